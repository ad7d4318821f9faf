"""Annotation lists -> records. A new benchmark is a new reader here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from ..runtime.errors import InputError
from ..runtime.storage import path_manager, read_lines

EXPECTED = "expected `path label`, as in `videos/a b.mp4 7` or `videos/a b.mp4,7`"


class Record(NamedTuple):
    """A video before decoding: its path as the list has it, the file, and its class.

    With `num_frames`, `path` is a printf pattern of extracted frames, as "74225/%06d.jpg", numbered from `first_frame` on.
    """

    name: str
    path: str
    label: int
    first_frame: int = 0
    num_frames: int = 0


class ClassNames(NamedTuple):
    """The names of the classes in order, and the number that lists use for each of them."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]


def read_class_names(path: str) -> ClassNames:
    """One name a line; where every line is `number name` (UCF101's classInd.txt, from 1), lists mean that number."""
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    if not lines:
        raise InputError(f"{path} names no class; expected one name a line")
    numbered = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if all(numbered):
        return ClassNames(tuple(m[2] for m in numbered if m), tuple(int(m[1]) for m in numbered if m))
    return ClassNames(tuple(lines), tuple(range(len(lines))))


def read_records(path: str, *, root: str, num_classes: int, class_names: ClassNames | None = None, separator: str = "") -> list[Record]:
    """Read a list of `path label` lines; relative paths start at `root`.

    The label is taken from the right, so paths may hold spaces and commas. `separator` is a blank, a tab, a comma or a semicolon; when
    empty, the first line tells. With `class_names`, a line without a label takes its folder's name as its class, as in UCF101's test lists.

    Raises InputError, with file and line, for an unreadable or empty list, a malformed line or a label outside [0, num_classes).
    """
    rows = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not rows:
        raise InputError(f"{path} is empty; {EXPECTED}")
    pattern = _line_pattern(separator or _sniff(rows[0][1]))
    to_class = {number: index for index, number in enumerate(class_names.numbers)} if class_names else None
    records = []
    for number, line in rows:
        where = f"line {number} of {path}"
        match = pattern.fullmatch(line)
        if match:
            name, label = match["path"].strip(), int(match["label"])
            if to_class is not None:
                label = to_class.get(label, -1)
            if not 0 <= label < num_classes:
                known = f"[{min(to_class)}, {max(to_class)}]" if to_class else f"[0, {num_classes})"
                raise InputError(f"label {match['label']} of {where} is outside {known}; correct the list, or MODEL.NUM_CLASSES ({num_classes})")
        elif class_names and os.path.basename(os.path.dirname(line)) in class_names.names:
            name, label = line, class_names.names.index(os.path.basename(os.path.dirname(line)))
        else:
            raise InputError(f"{where} is {line!r}; {EXPECTED}")
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1]
        records.append(Record(name, os.path.join(root, name), label))
    return records


def missing_videos(records: Sequence[Record]) -> list[Record]:
    """The records whose file does not exist. Many threads ask at once: on a network disk each question takes milliseconds."""
    with ThreadPoolExecutor(32) as pool:
        exists = list(pool.map(lambda record: bool(path_manager.exists(record.path)), records, chunksize=256))
    return [record for record, found in zip(records, exists, strict=True) if not found]


def _sniff(line: str) -> str:
    match = re.fullmatch(r".+?([,;\t ])\s*-?\d+", line)
    return match[1] if match else " "


def _line_pattern(separator: str) -> re.Pattern[str]:
    if separator not in (" ", "\t", ",", ";"):
        raise InputError(f"DATA.PATH_LABEL_SEPARATOR is {separator!r}; expected a blank, a tab, a comma, a semicolon, or nothing to find out")
    between = r"\s+" if separator.isspace() else rf"\s*{separator}\s*"
    return re.compile(rf"(?P<path>.+?){between}(?P<label>-?\d+)")
