"""Divide class folders into training, validation and test; read the official splits of UCF101 and HMDB51."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from ..data.records import read_class_names
from ..runtime.errors import InputError
from ..runtime.storage import read_lines
from .lists import video_stem

SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_FOLDERS |= {"test": "test", "testing": "test"}
HMDB_USE = {"1": "train", "2": "test"}  # 0: in neither
Video = tuple[str, str]  # its class, and its name or path


class Splits(NamedTuple):
    """Official splits: class names in order, and the videos of train and test."""

    names: list[str]
    videos: dict[str, list[Video]]


def given_splits(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the split that each path belongs to by the name of its first folder: {"train": [...]}; {} where
    the folders are classes. Raises InputError if two folders are one split.

    They are splits if all have such names, train is among them, and there are folders below.
    """
    folders = defaultdict(list)
    for path in paths:
        if "/" in path:
            folders[path.split("/")[0]].append(path)
    splits = {SPLIT_FOLDERS.get(folder.casefold(), ""): folder for folder in folders}
    if "train" not in splits or "" in splits or not any(path.count("/") > 1 for path in paths):
        return {}
    if len(splits) < len(folders):
        raise InputError(f"the folders {', '.join(sorted(folders))} name a split twice; rename one of them")
    return {split: folders[folder] for split, folder in splits.items()}


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
