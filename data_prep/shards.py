"""Pack the videos, or folders of frames, of lists into tar files of about 1 GB: a few files instead of
hundreds of thousands, on a network disk or in an object store.

    python data_prep/shards.py --list /data/k400/train.csv /data/k400/val.csv --out /shards/k400
    python data_prep/shards.py --list /data/ssv2/train.csv --format frames --prefix frames --out /shards/ssv2
    python data_prep/shards.py --check /shards/k400

OUT gets train-00000.tar and so on, shards.sqlite, the index of their members, packets.sqlite, that of the
packets of videos, the lists as they are, classes.txt and what else a run reads beside them.
DATA.PATH_TO_DATA_DIR OUT is all that changes in a run: its samples and results are the same. A video in
several lists is packed once; more lists can be added later. Videos that cannot be read stay in the list, as
missing ones, and are in LIST_missing.csv (path, label, reason).

Each shard is read back and compared with the SHA-256 of what was packed before it gets its name; --check
reads all shards again. A run that was killed goes on where it was when it is started again, and ends with
the same shards. `tar xf` unpacks them: absolute paths lose their first slash, and `..` becomes `_`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.prep.jobs import add_options
from video_iresnet.prep.shards import Layout, Packed, check_shards, missing_list, pack_lists
from video_iresnet.runtime.errors import InputError, printable

SHOWN = 5  # problems that are printed


def print_packed(packed: Packed, out: Path) -> None:
    shards = f"{packed.num_shards} new shards" if packed.num_shards != 1 else "1 new shard"
    print(
        f"{printable(packed.list_path.name)}: {packed.num_videos - len(packed.missing):,} of "
        f"{packed.num_videos:,} videos are packed, {shards}"
    )
    for name, _, why in packed.missing[:SHOWN]:
        print(f"  {printable(name)}: {why}")
    if packed.missing:
        print(f"  all that are missing: {missing_list(packed.list_path, out)}")


def check(options: argparse.Namespace) -> None:
    num_right, problems = check_shards(options.check, workers=options.workers, ray_address=options.ray)
    for problem in problems[:SHOWN]:
        print(f"  {printable(problem)}")
    if problems:
        raise InputError(
            f"{options.check}: {num_right:,} files are as they were packed, {len(problems):,} problems; copy "
            "these shards again, or pack again"
        )
    print(f"{options.check}: all {num_right:,} files are as they were packed")


def prepare(options: argparse.Namespace) -> None:
    if options.check:
        return check(options)
    if not options.list or not options.out:
        raise InputError("there is nothing to do; give --list and --out, or --check")
    if options.size < 1:
        raise InputError(f"--size is {options.size}; expected 1 or more MB")
    layout = Layout(
        options.format, options.prefix, options.frame_names, options.class_names, options.many_labels
    )
    results = pack_lists(
        options.list,
        options.out,
        layout,
        shard_bytes=options.size * 10**6,
        workers=options.workers,
        ray_address=options.ray,
    )
    for packed in results:
        print_packed(packed, options.out)
    return None


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", type=Path, nargs="+", default=[], help="lists of one format")
    parser.add_argument("--out", type=Path, help="folder to write into")
    parser.add_argument("--check", type=Path, metavar="OUT", help="read the shards of a folder again")
    parser.add_argument(
        "--format",
        choices=("videos", "frames", "folders"),
        default="videos",
        help="of the lists, as DATA.LIST_FORMAT (default: %(default)s)",
    )
    parser.add_argument(
        "--prefix", default="", help="as DATA.PATH_PREFIX: what the names in the lists are relative to"
    )
    parser.add_argument(
        "--frame-names", default="img_%05d.jpg", help="as DATA.FRAME_NAMES (default: img_%%05d.jpg)"
    )
    parser.add_argument(
        "--class-names",
        default="",
        help="as DATA.CLASS_NAMES: a file beside the lists, to copy and for lists without labels",
    )
    parser.add_argument("--size", type=int, default=1000, help="MB of a shard (default: %(default)s)")
    parser.add_argument(
        "--many-labels",
        action="store_true",
        help="lists have lines of `path 3,17,42`, as with DATA.MULTI_LABEL",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
