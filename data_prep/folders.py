"""Write lists and class names for videos or images in class folders; for UCF101 and HMDB51 by their splits.

    python data_prep/folders.py --videos /my/videos --out /data/mine --val-fraction 0.2
    python data_prep/folders.py --images --videos /my/pictures --out /data/pictures --test-fraction 0.2
    python data_prep/folders.py --videos /raw/UCF-101 --splits /raw/ucfTrainTestlist --out /data/ucf101
    python data_prep/folders.py --videos /raw/hmdb51 --splits /raw/hmdb51_splits --fold 1 --out /data/hmdb51

Without --splits, a fraction of each class goes to val.csv and to test.csv, the rest to train.csv. The
choice depends only on --seed and the names. Clips cut from one video, by names like UCF101's
(v_Class_g01_c01), stay together. Where the folders are train, val and test, with the classes below, they are
the splits. Of them and of those of --splits, --val-fraction holds out a part of the training videos. --images
looks for JPEG, PNG and WebP files, each of which is a video of one frame, and not for videos.

Existing lists with other content are not overwritten, and videos are not changed or moved. At the end the
script prints a command that trains and tests on them. Without a test.csv it tests on the validation videos,
with a warning; --test-fraction 0.2 holds out videos for testing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.data.decode.image import SUFFIXES, is_image
from video_iresnet.prep.lists import (
    VIDEO_SUFFIXES,
    Wanted,
    by_stem,
    class_key,
    find_videos,
    held_folder,
    listed_path,
    of_class,
    print_found,
    print_next,
    report_doubles,
    video_stem,
    write_class_names,
    write_list,
    write_split,
)
from video_iresnet.prep.splits import Video, check_each_once, divide, given_splits, read_splits
from video_iresnet.runtime.errors import InputError

SMALL_CONFIG = "configs/own/iR3D18_small.yaml"
VAL_FRACTION = 0.2  # of folders that are not divided


class Kind(NamedTuple):
    """What is looked for, by its endings, and the config of the command for it."""

    name: str
    suffixes: frozenset[str]
    config: str


VIDEOS = Kind("videos", VIDEO_SUFFIXES, "configs/own/iR3D18.yaml")
IMAGES = Kind("images", SUFFIXES, "configs/own/iresnet18.yaml")


def prepare_folders(options: argparse.Namespace) -> None:
    """Options for class folders."""
    kind = IMAGES if options.images else VIDEOS
    found = find_videos(options.videos, options.workers, options.ray, kind.suffixes)
    given = given_splits(found.videos)
    depth = 1 if given else 0  # of the class in a path
    outside = [path for path in found.videos if path.count("/") <= depth]
    classes: dict[str, dict[str, list[str]]] = {}
    for split, paths in (given or {"train": found.videos}).items():
        classes[split] = defaultdict(list)
        for path in paths:
            if path.count("/") > depth:
                classes[split][path.split("/")[depth]].append(path)
    names = sorted(set().union(*classes.values()))
    print(
        f"{options.videos}: {len(found.videos) - len(outside):,} {kind.name} of {len(names):,} classes; "
        f"passed over: {len(found.others):,} other files, {len(found.empty):,} empty {kind.name}, "
        f"{len(outside):,} {kind.name} in no class folder"
    )
    if not names:
        pictures = any(is_image(path) for path in found.others)
        raise InputError(
            f"{options.videos} holds no folder with {kind.name}; expected one folder for each class"
            + (", or --images where they hold pictures" if pictures else "")
        )
    if given:
        print(f"{options.videos}: its folders are the splits {', '.join(sorted(given))}")
    else:
        print_empty(options.videos, kind, names)
    with held_folder(options.out):
        write_divided(options, kind, classes, names)


def print_empty(folder: Path, kind: Kind, names: Sequence[str]) -> None:
    """Print which folders are no class."""
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    if empty := sorted(folders - set(names)):
        print(
            f"{len(empty):,} folders hold no {kind.name.removesuffix('s')} and are no class: "
            f"{', '.join(empty[:5])}"
        )


def fractions_of(options: argparse.Namespace, splits: Collection[str]) -> dict[str, float]:
    """Return the fraction of the training videos that goes to each other split. Raises InputError for one
    that has its own folder.
    """
    default = 0 if len(splits) > 1 else VAL_FRACTION
    val = default if options.val_fraction is None else options.val_fraction
    fractions = {"test": options.test_fraction, "val": val}
    for split, fraction in fractions.items():
        if fraction and split in splits:
            raise InputError(
                f"--{split}-fraction is {fraction}, but {options.videos} has a folder for {split}; leave "
                "the option out"
            )
    return fractions


def write_divided(
    options: argparse.Namespace,
    kind: Kind,
    classes: Mapping[str, Mapping[str, list[str]]],
    names: Sequence[str],
) -> None:
    """Divide the training videos of each class; write the lists and the class names."""
    fractions = fractions_of(options, classes)
    lists: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for label, name in enumerate(names):
        train = classes["train"].get(name, [])
        parts = divide(train, fractions, f"{options.seed}/{name}")
        parts |= {split: videos.get(name, []) for split, videos in classes.items() if split != "train"}
        for split, paths in parts.items():
            lists[split] += [(listed_path(options.videos, path, options.out), label) for path in paths]
    write_class_names(options.out / "classes.txt", names)
    for split in ("train", "val", "test"):
        entries = lists[split]
        there = {label for _, label in entries}
        absent = [name for label, name in enumerate(names) if label not in there]
        if entries:
            write_list(options.out / f"{split}.csv", entries)
            print(f"{split}: {len(entries):,} {kind.name} -> {options.out / f'{split}.csv'}")
            if absent:
                print(
                    f"{split}: {len(absent):,} classes have too few {kind.name} to be in it: "
                    f"{', '.join(absent[:5])}"
                )
    there = {split for split, entries in lists.items() if entries}
    print_next_command(options.out, kind, len(names), there)


def prepare_splits(options: argparse.Namespace) -> None:
    """Options for an official split."""
    names, videos = read_splits(options.splits, options.fold)
    check_each_once(videos, options.splits)
    found = find_videos(options.videos, options.workers, options.ray)
    print_found(options.videos, found)
    with held_folder(options.out):
        write_official(options, names, videos, by_stem(found.videos))


def write_official(
    options: argparse.Namespace,
    names: list[str],
    videos: dict[str, list[Video]],
    stems: Mapping[str, list[str]],
) -> None:
    """Write the lists of an official split, the class names and the reports."""
    if options.val_fraction:
        train, videos["train"], videos["val"] = videos["train"], [], []
        for name in names:
            members = [video for of, video in train if of == name]
            for split, part in divide(
                members, {"val": options.val_fraction}, f"{options.seed}/{name}"
            ).items():
                videos[split] += [(name, video) for video in part]
    doubles = []
    write_class_names(options.out / "classes.txt", names)
    for split, members in videos.items():
        wanted = []
        for name, video in members:
            paths = _same_class(stems.get(video_stem(video), []), name, names)
            match = of_class(paths, name)
            wanted.append(
                Wanted(
                    (name, video),
                    names.index(name),
                    match and listed_path(options.videos, match, options.out),
                )
            )
            if match and len(paths) > 1:
                doubles.append((match, paths))
        write_split(options.out, split, wanted, columns=("class", "video"), names=names, inputs=[])
    report_doubles(doubles)
    there = {split for split in videos if (options.out / f"{split}.csv").exists()}
    print_next_command(options.out, VIDEOS, len(names), there)


def print_next_command(out: Path, kind: Kind, num_classes: int, splits: Collection[str]) -> None:
    """Print the command that trains and tests on the written lists."""
    if "train" not in splits or len(splits) == 1:
        print(f"{out} does not hold what run_net.py needs: train.csv, and val.csv or test.csv")
        return
    overrides = {
        "DATA.PATH_TO_DATA_DIR": os.path.abspath(out),
        "DATA.CLASS_NAMES": "classes.txt",
        "MODEL.NUM_CLASSES": str(num_classes),
        "OUTPUT_DIR": os.path.join("output", os.path.basename(os.path.abspath(out))),
    }
    if "test" not in splits:
        overrides["DATA.TEST_LIST"] = "val.csv"
        print(
            f"there is no test.csv: the command below tests on the validation {kind.name}, and its accuracy "
            "flatters what was chosen by them; hold out others with --test-fraction"
        )
    elif "val" not in splits:
        overrides["DATA.VAL_LIST"] = "test.csv"
        print(
            f"there is no val.csv: the command below validates on the test {kind.name}; hold out training "
            f"{kind.name} with --val-fraction before choosing anything by the validation"
        )
    if kind is VIDEOS:
        print(f"on a CPU, {SMALL_CONFIG} in its place needs a tenth of the computation")
    print_next(kind.config, overrides)


def _same_class(paths: Sequence[str], name: str, names: Sequence[str]) -> list[str]:
    """Return the videos below a folder of the class, or else those below no class folder: HMDB51 has the same
    names in several classes.
    """
    folders = [set(map(class_key, path.split("/")[:-1])) for path in paths]
    in_class = [path for path, keys in zip(paths, folders, strict=True) if class_key(name) in keys]
    return in_class or [
        path for path, keys in zip(paths, folders, strict=True) if keys.isdisjoint(map(class_key, names))
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--videos", type=Path, required=True, help="folder with a folder for each class")
    parser.add_argument("--images", action="store_true", help="look for pictures instead of videos")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--val-fraction",
        type=float,
        help="part of the videos for val.csv; 0.2, or 0 with --splits or folders of splits",
    )
    parser.add_argument("--test-fraction", type=float, default=0, help="part of the videos for test.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=Path, help="folder of the official split files of UCF101 or HMDB51")
    parser.add_argument("--fold", type=int, default=1, help="which of the official splits")
    parser.add_argument("--workers", type=int, default=8, help="folders that are looked through at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="look through them on this Ray cluster")
    options = parser.parse_args(arguments)
    val, test = options.val_fraction or 0, options.test_fraction
    if min(val, test) < 0 or val + test >= 1:
        parser.error(
            f"--val-fraction {val} and --test-fraction {test}: expected fractions from 0 on that leave "
            "some for training"
        )
    if options.splits and options.test_fraction:
        parser.error("--test-fraction cannot be given with --splits, which say what the test videos are")
    if options.splits and options.images:
        parser.error("--images cannot be given with --splits, which are of videos")
    return exit_code(lambda: prepare_splits(options) if options.splits else prepare_folders(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
