"""Write lists and class names for ImageNet (ILSVRC2012); unpack its archives where its folders are not there.

    python data_prep/imagenet.py --source /raw/imagenet --out /data/imagenet

SOURCE holds the folders train/n01440764/*.JPEG and val/n01440764/*.JPEG, or Kaggle's ILSVRC/Data/CLS-LOC with
LOC_synset_mapping.txt and LOC_val_solution.csv, or else ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,
whose images are unpacked into OUT. Validation images that are in no folders of classes get their classes from
LOC_val_solution.csv or from ILSVRC2012_devkit_t12.tar.gz (or its extracted folder), which needs scipy: pip
install 'video_iresnet[prep]'. The MD5 of each archive is compared with the official one, unless its size
says that it is a subset.

Writes train.csv, val.csv and classes.txt. Labels are those of all published networks: the position of a
synset in alphabetical order, among the classes that LOC_synset_mapping.txt or the devkit names, or else among
the folders that are there. So a subset has labels from 0 to 999 with one of these files, and from 0 to its
number of classes without.

Run it again to continue after an interruption. Existing lists with other content are not overwritten, and
SOURCE is only read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.prep.archives import unpack
from video_iresnet.prep.imagenet import (
    ARCHIVES,
    DEVKIT,
    MAPPING,
    OFFICIAL_IMAGES,
    SOLUTION,
    Annotations,
    Classes,
    Images,
    archive_to_unpack,
    check_archive,
    find_images,
    images_folder,
    number_classes,
    read_annotations,
)
from video_iresnet.prep.lists import held_folder, listed_path, print_next, write_class_names, write_list
from video_iresnet.runtime.errors import InputError, printable

CONFIG = "configs/imagenet/iresnet50.yaml"


def unpack_archives(source: Path, out: Path, annotations: Annotations) -> dict[str, Path]:
    """Unpack what is in archives alone; return the folder of each split that is there."""
    archives = {split: archive_to_unpack(source, split, out / split) for split in ARCHIVES}
    if archives["val"] and not annotations.val:
        raise InputError(
            f"nothing says the classes of the images in {archives['val']}; put {DEVKIT}.tar.gz or {SOLUTION} "
            "into --source"
        )
    if (source / f"{DEVKIT}.tar.gz").is_file():
        print(check_archive(source / f"{DEVKIT}.tar.gz", "devkit"))
    folders = {}
    for split, archive in archives.items():
        folder = images_folder(source, split)
        if archive:
            print(check_archive(archive, split))
            folder = out / split
            written, kept = unpack([archive], folder, inner=split == "train")
            print(f"{archive.name}: {written:,} files unpacked into {folder}, {kept:,} were there")
        if folder:
            folders[split] = folder
    if not folders:
        raise InputError(
            f"{source} holds neither folders train and val, nor {' and '.join(ARCHIVES.values())}; name the "
            "folder that holds them"
        )
    return folders


def print_classes(classes: Classes, annotations: Annotations, source: Path) -> None:
    labels = f"labels 0 to {len(classes.synsets) - 1} in the order of their synsets"
    if classes.is_official:
        print(f"the 1,000 classes of ILSVRC2012, {labels}")
        return
    print(f"{len(classes.synsets):,} classes, which are not the 1,000 of ILSVRC2012, {labels}")
    if not annotations.words:
        print(f"for labels among the 1,000, put {MAPPING} or {DEVKIT}.tar.gz into {source}")


def write_images(split: str, folder: Path, images: Images, classes: Classes, out: Path) -> None:
    """Write the list of a split, and print what was found."""
    label_of = {synset: label for label, synset in enumerate(classes.synsets)}
    path = out / f"{split}.csv"
    start = listed_path(folder, "x", out).removesuffix("x")
    write_list(path, [(start + name, label_of[synset]) for name, synset in images.entries])
    there = {synset for _, synset in images.entries}
    official = OFFICIAL_IMAGES[split]
    whole = f", all {official:,}" if len(images.entries) == official else f"; ILSVRC2012 has {official:,}"
    print(
        f"{split}: {len(images.entries):,} images of {len(there):,} classes"
        f"{whole if classes.is_official else ''} -> {path}"
    )
    for what, names in (("empty files", images.empty), ("images in no folder of a synset", images.outside)):
        if names:
            print(f"{split}: {len(names):,} {what} are passed over; the first is {printable(names[0])}")


def print_command(out: Path, classes: Classes, found: Mapping[str, Images]) -> None:
    overrides = {"DATA.PATH_TO_DATA_DIR": str(out.absolute())}
    if len(classes.synsets) != 1000:
        overrides["MODEL.NUM_CLASSES"] = str(len(classes.synsets))
    if "train" not in found:
        overrides["TRAIN.ENABLE"] = "False"
        overrides["TEST.CHECKPOINT_FILE_PATH"] = "CHECKPOINT"
    if "val" in found:
        print_next(CONFIG, overrides)


def prepare(options: argparse.Namespace) -> None:
    annotations = read_annotations(options.source)
    with held_folder(options.out):
        folders = unpack_archives(options.source, options.out, annotations)
        found = {
            split: find_images(folder, split, annotations, options.workers, options.ray)
            for split, folder in folders.items()
        }
        for split, images in found.items():
            if not images.entries:
                raise InputError(
                    f"{folders[split]} holds no images in folders such as n01440764; correct --source, or "
                    "take data_prep/folders.py --images for folders of other names"
                )
        synsets = {synset for images in found.values() for _, synset in images.entries}
        classes = number_classes(annotations.words, synsets)
        print_classes(classes, annotations, options.source)
        write_class_names(options.out / "classes.txt", classes.names)
        for split, images in found.items():
            write_images(split, folders[split], images, classes, options.out)
        print_command(options.out, classes, found)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="folder of the archives or images")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--workers", type=int, default=8, help="folders that are looked through at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="look through them on this Ray cluster")
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
