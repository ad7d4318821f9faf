"""Write lists and class names for videos in class folders; also for UCF101 and HMDB51 with official splits.

    python data_prep/folders.py --videos /my/videos --out /data/mine --val-fraction 0.2
    python data_prep/folders.py --videos /raw/UCF-101 --splits /raw/ucfTrainTestlist --out /data/ucf101
    python data_prep/folders.py --videos /raw/hmdb51 --splits /raw/hmdb51_splits --fold 1 --out /data/hmdb51

Without --splits, a fraction of each class goes to val.csv and to test.csv, the rest to train.csv. The
choice depends only on --seed and the names. Clips cut from one video, by names like UCF101's
(v_Class_g01_c01), stay together. With --splits, --val-fraction holds out a part of the official training
videos.

Existing lists with other content are not overwritten, and videos are not changed or moved. At the end the
script prints a command that trains and tests on them. Without a test.csv it tests on the validation videos,
with a warning; --test-fraction 0.2 holds out videos for testing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.data.records import read_class_names
from video_iresnet.prep.lists import (
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
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import read_lines

CONFIG = "configs/own/iR3D18.yaml"
SMALL_CONFIG = "configs/own/iR3D18_small.yaml"
HMDB_USE = {"1": "train", "2": "test"}  # 0: in neither
Video = tuple[str, str]  # its class, and its name or path


class Splits(NamedTuple):
    """Official splits: class names in order, and the videos of train and test."""

    names: list[str]
    videos: dict[str, list[Video]]


def divide(videos: Sequence[str], fractions: Mapping[str, float], key: str) -> dict[str, list[str]]:
    """Divide the videos of one class: split -> its videos. `fractions`: split -> fraction of the videos; the
    rest is train.

    Groups are ordered by the hash of their name and `key`. A split with a fraction has at least one group, if
    train keeps one too.
    """
    groups = defaultdict(list)
    for video in videos:
        groups[_group(video)].append(video)
    order = sorted(
        groups, key=lambda group: sha256(f"{key}/{group}".encode("utf-8", "surrogateescape")).digest()
    )
    parts: dict[str, list[str]] = {}
    for split, fraction in fractions.items():
        part = parts[split] = []
        while (
            fraction
            and len(order) > 1
            and (not part or len(part) + len(groups[order[0]]) / 2 <= fraction * len(videos))
        ):
            part.extend(groups[order.pop(0)])
    parts["train"] = [video for group in order for video in groups[group]]
    return {split: sorted(part) for split, part in parts.items()}


def _group(video: str) -> str:
    match = re.fullmatch(r"v_.+_(g\d+)_c\d+", video_stem(video))
    return match[1] if match else video


def read_splits(folder: Path, fold: int) -> Splits:
    """Read UCF101's trainlist01.txt, testlist01.txt and classInd.txt, or HMDB51's <class>_test_split1.txt.
    Raises InputError with file and line.
    """
    if (folder / f"trainlist{fold:02d}.txt").exists():
        return _read_ucf101(folder, fold)
    files = sorted(folder.glob(f"*_test_split{fold}.txt"))
    if not files:
        raise InputError(
            f"{folder} holds neither trainlist{fold:02d}.txt (UCF101) nor <class>_test_split{fold}.txt "
            "(HMDB51); correct --splits or --fold"
        )
    names = [path.name.removesuffix(f"_test_split{fold}.txt") for path in files]
    videos: dict[str, list[Video]] = {"train": [], "test": []}
    for name, path in zip(names, files, strict=True):
        for number, line in enumerate(read_lines(str(path)), 1):
            match = re.fullmatch(r"\s*(\S.*?)\s+([012])\s*", line)
            if match and match[2] in HMDB_USE:
                videos[HMDB_USE[match[2]]].append((name, match[1]))
            elif line.strip() and not match:
                raise InputError(
                    f"line {number} of {path} is {line!r}; expected `name 0`, `name 1` or `name 2`"
                )
    return Splits(names, videos)


def _read_ucf101(folder: Path, fold: int) -> Splits:
    videos: dict[str, list[Video]] = {"train": [], "test": []}
    names = (
        list(read_class_names(str(folder / "classInd.txt")).names)
        if (folder / "classInd.txt").exists()
        else []
    )
    for split, found in videos.items():
        path = folder / f"{split}list{fold:02d}.txt"
        for number, line in enumerate(read_lines(str(path)), 1):
            match = re.fullmatch(r"\s*([^/]+)/(.+?)(?:\s+\d+)?\s*", line)
            if match and (match[1] in names or not (folder / "classInd.txt").exists()):
                found.append((match[1], match[2]))
            elif line.strip():
                expected = f"a class of {folder / 'classInd.txt'}" if match else "`class/name`"
                raise InputError(f"line {number} of {path} is {line!r}; expected {expected}")
    return Splits(names or sorted({name for found in videos.values() for name, _ in found}), videos)


def check_each_once(videos: Mapping[str, Sequence[Video]], folder: Path) -> None:
    """Raise InputError if a video is listed twice, in one split or in both."""
    seen: set[Video] = set()
    for name, video in (entry for entries in videos.values() for entry in entries):
        if (name, video_stem(video)) in seen:
            raise InputError(f"{name}/{video} is listed twice in {folder}; remove one of the lines")
        seen.add((name, video_stem(video)))


def prepare_folders(options: argparse.Namespace) -> None:
    """Options for class folders."""
    found = find_videos(options.videos, options.workers, options.ray)
    classes = defaultdict(list)
    for path in found.videos:
        classes[PurePosixPath(path).parts[0]].append(path)
    outside = [path for path in found.videos if "/" not in path]
    names = sorted(set(classes) - set(outside))
    print(
        f"{options.videos}: {len(found.videos) - len(outside):,} videos of {len(names):,} classes; passed "
        f"over: {len(found.others):,} other files, {len(found.empty):,} empty videos, {len(outside):,} "
        "videos in no class folder"
    )
    if not names:
        raise InputError(f"{options.videos} holds no folder with videos; expected one folder for each class")
    empty = sorted(
        {path.name for path in options.videos.iterdir() if path.is_dir() and not path.name.startswith(".")}
        - set(names)
    )
    if empty:
        print(f"{len(empty):,} folders hold no video and are no class: {', '.join(empty[:5])}")
    with held_folder(options.out):
        write_divided(options, classes, names)


def write_divided(
    options: argparse.Namespace, classes: Mapping[str, list[str]], names: Sequence[str]
) -> None:
    """Divide the videos of each class; write the lists and the class names."""
    fractions = {"test": options.test_fraction, "val": options.val_fraction}
    lists: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for label, name in enumerate(names):
        for split, paths in divide(classes[name], fractions, f"{options.seed}/{name}").items():
            lists[split] += [(listed_path(options.videos, path, options.out), label) for path in paths]
    write_class_names(options.out / "classes.txt", names)
    for split in ("train", "val", "test"):
        entries = lists[split]
        absent = [name for label, name in enumerate(names) if label not in {entry[1] for entry in entries}]
        if entries:
            write_list(options.out / f"{split}.csv", entries)
            print(f"{split}: {len(entries):,} videos -> {options.out / f'{split}.csv'}")
            if absent:
                print(
                    f"{split}: {len(absent):,} classes have too few videos to be in it: "
                    f"{', '.join(absent[:5])}"
                )
    print_next_command(options.out, len(names), {split for split, entries in lists.items() if entries})


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
    print_next_command(options.out, len(names), there)


def print_next_command(out: Path, num_classes: int, splits: Collection[str]) -> None:
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
            "there is no test.csv: the command below tests on the validation videos, and its accuracy "
            "flatters what was chosen by them; hold out others with --test-fraction"
        )
    elif "val" not in splits:
        overrides["DATA.VAL_LIST"] = "test.csv"
        print(
            "there is no val.csv: the command below validates on the test videos; hold out training videos "
            "with --val-fraction before choosing anything by the validation"
        )
    print(f"on a CPU, {SMALL_CONFIG} in its place needs a tenth of the computation")
    print_next(CONFIG, overrides)


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
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--val-fraction", type=float, help="part of the videos for val.csv; 0.2, or 0 with --splits"
    )
    parser.add_argument("--test-fraction", type=float, default=0, help="part of the videos for test.csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", type=Path, help="folder of the official split files of UCF101 or HMDB51")
    parser.add_argument("--fold", type=int, default=1, help="which of the official splits")
    parser.add_argument("--workers", type=int, default=8, help="folders that are looked through at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="look through them on this Ray cluster")
    options = parser.parse_args(arguments)
    if options.val_fraction is None:
        options.val_fraction = 0 if options.splits else 0.2
    val, test = options.val_fraction, options.test_fraction
    if min(val, test) < 0 or val + test >= 1:
        parser.error(
            f"--val-fraction {val} and --test-fraction {test}: expected fractions from 0 on that leave "
            "some for training"
        )
    if options.splits and options.test_fraction:
        parser.error("--test-fraction cannot be given with --splits, which say what the test videos are")
    return exit_code(lambda: prepare_splits(options) if options.splits else prepare_folders(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
