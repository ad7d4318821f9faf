"""Write CIFAR-10 or CIFAR-100 as two tar files of pictures, with their index, lists and class names.

    python data_prep/cifar.py --source cifar-10-python.tar.gz --out /data/cifar10
    python data_prep/cifar.py --source cifar-100-binary --out /data/cifar100

The source is an official archive, of pickles or of bytes, or the folder of one; or a folder or a zip with
train/CLASS/*.jpg and test/CLASS/*.jpg (PNG and WebP too), or a folder with such zips. Archives with an
official name must have the official MD5. Of pickles, arrays alone are read: they cannot run anything.

OUT gets train.csv, test.csv, classes.txt, and shards as of data_prep/shards.py: 60,000 small pictures are
slow to copy and to open one by one. Official arrays become PNG files, with the same pixels in the same
order; pictures of class folders are packed as they are, ordered by name. Existing files with other content
are not overwritten. At the end the script prints a command that trains and tests a network.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.prep.cifar import check_md5, opened, pack, read_cifar
from video_iresnet.prep.lists import print_next
from video_iresnet.runtime.errors import printable

OFFICIAL = {"train": 50_000, "test": 10_000}


def prepare(options: argparse.Namespace) -> None:
    if found := check_md5(options.source):
        print(found)
    with opened(options.source) as files:
        cifar = read_cifar(files)
        print(f"{printable(str(options.source))}: {cifar.title}, {len(cifar.names)} classes")
        counts = pack(cifar, options.out)
    for split, count in counts.items():
        beside = "" if count == OFFICIAL[split] else f" (CIFAR has {OFFICIAL[split]:,})"
        print(f"{split}: {count:,} pictures{beside} -> {options.out / f'{split}.csv'}")
    overrides = {"DATA.PATH_TO_DATA_DIR": os.path.abspath(options.out)}
    if len(cifar.names) != 10:
        overrides["MODEL.NUM_CLASSES"] = str(len(cifar.names))
        overrides["OUTPUT_DIR"] = f"output/{options.out.name}"
    print_next("configs/cifar/iresnet20.yaml", overrides)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="an archive or a folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
