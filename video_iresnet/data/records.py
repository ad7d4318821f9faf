"""Readers of annotation lists. A new benchmark is a new reader here."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeVar

from ..runtime.errors import InputError
from ..runtime.ranges import prepare, version_of
from ..runtime.shards import join
from ..runtime.storage import open_text, path_manager, read_lines
from .labels import Label, classes_of

EXPECTED = "expected `path label`, as in `videos/a b.mp4 7` or `videos/a b.mp4,7`"
EXPECTED_MANY = 'expected `path labels`, as in `videos/a b.mp4 3,17,42`, or `videos/a b.mp4 ""` for none'
EXPECTED_FRAME = 'expected `id video frame path labels`, as in `78687 0 0 78687/78687_000001.jpg ""`'
EXPECTED_FOLDER = "expected `folder frames label`, as in `videos/a b 117 7`"
# A label, and the labels of a video that may have many.
ONE = r"(?P<label>-?\d+)"
MANY = r'(?P<label>\d+(?:,\d+)*|"(?:\d+(?:,\d+)*)?")'
# Limit of labels, numbers of frames and numbers in their names, which arrays store.
LARGEST = 10**9
# Files that a thread looks at in turn: a task for each file takes more time and memory than the look.
TASK = 64
Answer = TypeVar("Answer")


class Record(NamedTuple):
    """A video before decoding: its name in the list, its path, and its label.

    With `num_frames`, `path` is a printf pattern of extracted frames such as "74225/%06d.jpg", numbered from
    `first_frame`, at `fps` frames per second (0: unknown).
    """

    name: str
    path: str
    label: Label
    first_frame: int = 0
    num_frames: int = 0
    fps: float = 0.0


class ClassNames(NamedTuple):
    """The class names in order, and the number of each in lists."""

    names: tuple[str, ...]
    numbers: tuple[int, ...]


def read_class_names(path: str) -> ClassNames:
    """Read one name per line. If all lines are `number name` (UCF101's classInd.txt, from 1), lists use that
    number.
    """
    lines = [line.strip() for line in read_lines(path) if line.strip()]
    if not lines:
        raise InputError(f"{path} names no class; expected one name a line")
    numbered = [re.fullmatch(r"(\d+)\s+(.+)", line) for line in lines]
    if all(numbered):
        return ClassNames(tuple(m[2] for m in numbered if m), tuple(_integer(m[1]) for m in numbered if m))
    return ClassNames(tuple(lines), tuple(range(len(lines))))


def read_records(
    path: str,
    *,
    root: str,
    num_classes: int,
    class_names: ClassNames | None = None,
    separator: str = "",
    many_labels: bool = False,
) -> list[Record]:
    """Read a list of `path label` lines; relative paths start at `root`.

    The label is taken from the right, so paths may contain spaces and commas. `separator` is a space, tab,
    comma or semicolon; if empty, it is detected from the first line. With `class_names`, a line without a
    label belongs to the class of its folder, as in UCF101's test lists. `many_labels`: lines are `path
    3,17,42`, which no comma separates from the path, or `path ""` for a video of no class.

    Raises InputError, with file and line, for an unreadable or empty list, a malformed line or a label
    outside [0, num_classes).
    """
    rows = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    expected = EXPECTED_MANY if many_labels else EXPECTED
    if not rows:
        raise InputError(f"{path} is empty; {expected}")
    pattern = _line_pattern(separator or _sniff(rows[0][1], many_labels), many_labels)
    to_class = {number: index for index, number in enumerate(class_names.numbers)} if class_names else None
    records: list[Record] = []
    for number, line in rows:
        where = f"line {number} of {path}"
        match = pattern.fullmatch(line)
        if match:
            name = match["path"].strip()
            label = _label(match["label"], where, num_classes, many_labels, to_class)
        elif class_names and not many_labels and os.path.basename(os.path.dirname(line)) in class_names.names:
            name, label = line, class_names.names.index(os.path.basename(os.path.dirname(line)))
        else:
            raise InputError(f"{where} is {line!r}; {expected}")
        if len(name) > 1 and name[0] == name[-1] == '"':
            name = name[1:-1]
        records.append(Record(name, join(root, name), label))
    return records


def _label(
    text: str, where: str, num_classes: int, many_labels: bool, to_class: Mapping[int, int] | None = None
) -> Label:
    """Return the label in a row. Raises InputError if it is outside [0, num_classes)."""
    found = []
    for number in text.strip('"').split(",") if text != '""' else ():
        label = _integer(number) if to_class is None else to_class.get(_integer(number), -1)
        if not 0 <= label < num_classes:
            known = f"[{min(to_class)}, {max(to_class)}]" if to_class else f"[0, {num_classes})"
            raise InputError(
                f"label {number} of {where} is outside {known}; correct the list, or MODEL.NUM_CLASSES "
                f"({num_classes})"
            )
        found.append(label)
    return tuple(sorted(set(found))) if many_labels else found[0]


def read_frame_list(
    path: str, *, root: str, labels: Mapping[str, int | None] | None, num_classes: int = 0
) -> list[Record]:
    """Read PySlowFast's list of frames: a header, then a row per frame, `id video frame path labels`;
    relative paths start at `root`.

    The rows of a video are consecutive, and so are the numbers of its frames. `labels`: id -> class (see
    read_json_labels), or None for class 0; those in the list are ignored. With `num_classes`, a video has the
    labels of all of its rows instead, such as "3,17" or "".

    Raises InputError, with file and line, for an unreadable or empty list, a malformed row, a gap in the
    numbers or a video without a label.
    """
    records: list[Record] = []
    seen: set[str] = set()
    for video, rows in itertools.groupby(_frame_rows(path), key=lambda row: row[0]):
        frames = _frame_range(rows, root)
        label: Label | None = 0 if labels is None else labels.get(video)
        if num_classes:
            label = _labels_of_rows(frames, num_classes)
        if label is None:
            raise InputError(
                f"video {video} of {frames.where} has no label; give the annotations that name it, or take "
                "it out of the list"
            )
        if video in seen:
            raise InputError(
                f"video {video} of {frames.where} was listed further up; expected all of its rows together"
            )
        seen.add(video)
        records.append(Record(video, frames.path, label, frames.first_frame, frames.num_frames))
    if not records:
        raise InputError(f"{path} lists no frame; {EXPECTED_FRAME}")
    return records


def _labels_of_rows(frames: _FrameRange, num_classes: int) -> Label:
    """Return the labels of all rows of a video together."""
    found: set[int] = set()
    for text in frames.labels:
        if not re.fullmatch(MANY, text):
            raise InputError(
                f'labels {text} of the video of {frames.where} cannot be read; expected such as "3,17" or ""'
            )
        found.update(classes_of(_label(text, f"the video of {frames.where}", num_classes, True)))
    return tuple(sorted(found))


def read_tsm_list(
    path: str,
    *,
    root: str,
    num_classes: int,
    pattern: str = "img_%05d.jpg",
    many_labels: bool = False,
) -> list[Record]:
    """Read a list of `folder frames label` lines, as in TSM and MMAction2; relative folders start at `root`.

    `pattern`: the file names of the frames, such as `{folder}_%06d.jpg`, where `{folder}` is the folder's own
    name. Frames are numbered from 1, or from 0 if the first folder has a frame 0. `many_labels`: the label is
    as in read_records.

    Raises InputError, with file and line, for an unreadable or empty list, a malformed line, no frames, a
    label outside [0, num_classes) or a first folder that could be numbered either way.
    """
    rows = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    if not rows:
        raise InputError(f"{path} is empty; {EXPECTED_FOLDER}")
    if len(re.findall(r"%0?\d*d", pattern)) != 1 or pattern.count("%") != 1:
        raise InputError(
            f"the pattern of frame names is {pattern!r}; expected one number in it, as in img_%05d.jpg"
        )
    between = _between(_sniff(rows[0][1], many_labels))
    label_pattern = MANY if many_labels else ONE
    line_pattern = re.compile(rf"(?P<path>.+?){between}(?P<frames>\d+){between}{label_pattern}")
    records = []
    for number, line in rows:
        match = line_pattern.fullmatch(line)
        if not match or not 0 < _integer(match["frames"]) < LARGEST:
            raise InputError(f"line {number} of {path} is {line!r}; {EXPECTED_FOLDER}")
        name = match["path"].strip()
        label = _label(match["label"], f"line {number} of {path}", num_classes, many_labels)
        folder = _escaped(join(root, name))
        file = pattern.replace("{folder}", _escaped(os.path.basename(name)))
        records.append(Record(name, os.path.join(folder, file), label, 1, _integer(match["frames"])))
    if not path_manager.exists(records[0].path % 0):
        return records
    _check_last(records[0])
    return [record._replace(first_frame=0) for record in records]


def _check_last(record: Record) -> None:
    """Raise InputError if a folder with a frame 0 also has the last frame of a numbering from 1."""
    first, last = (record.path % number for number in (0, record.num_frames))
    if path_manager.exists(last):
        raise InputError(
            f"{record.name} has {record.num_frames} frames by its list, but {first} and {last} are both "
            "there; correct the list, or take the one away that does not belong there"
        )


def read_json_classes(path: str) -> list[str]:
    """Read Something-Something's labels.json, {"Opening something": "0"}; returns the names in order. Raises
    InputError.
    """
    classes = _read_json(path)
    try:
        numbers = {str(name): int(number) for name, number in classes.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f'{path} does not hold classes; expected an object such as {{"Opening something": "0"}}'
        ) from error
    if not numbers or sorted(numbers.values()) != list(range(len(numbers))):
        raise InputError(
            f"{path} numbers {len(numbers)} classes, but not from 0 to {len(numbers) - 1}; expected each "
            "number once"
        )
    return sorted(numbers, key=lambda name: numbers[name])


def read_json_labels(path: str, names: Sequence[str]) -> dict[str, int | None]:
    """Read a split of Something-Something, [{"id": "7", "template": "Opening [something]"}]; returns id ->
    class, None in the test split.

    Raises InputError for a malformed file, a template that is not in `names`, or a duplicate id.
    """
    numbers = {name: number for number, name in enumerate(names)}
    labels: dict[str, int | None] = {}
    entries = _read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and "id" in entry for entry in entries
    ):
        raise InputError(
            f"{path} does not hold a split; expected a list such as "
            '[{"id": "7", "template": "Opening [something]"}]'
        )
    for entry in entries:
        video, template = str(entry["id"]), entry.get("template")
        name = None if template is None else str(template).replace("[", "").replace("]", "")
        if name is not None and name not in numbers:
            close = get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; give the labels file of the same release"
            raise InputError(
                f"label {name!r} of video {video} in {path} is not among the {len(names)} classes{hint}"
            )
        if video in labels:
            raise InputError(f"video {video} comes twice in {path}; take one of its entries out")
        labels[video] = None if name is None else numbers[name]
    return labels


def missing_videos(records: Sequence[Record]) -> list[Record]:
    """Return the records whose file, or first frame, does not exist."""
    exists = _of_files(records, path_manager.exists)
    return [record for record, found in zip(records, exists, strict=True) if not found]


def file_sizes(records: Sequence[Record]) -> list[int]:
    """Return the size of each record's file, or first frame, in bytes; -1 if it does not exist."""

    def size(path: str) -> int:
        try:
            return version_of(path).size
        except OSError:
            return -1

    return _of_files(records, size)


def _of_files(records: Sequence[Record], ask: Callable[[str], Answer]) -> list[Answer]:
    """Stat files in many threads: on a network disk each call takes milliseconds."""
    paths = [_first_file(record) for record in records]
    prepare(paths)

    def ask_some(first: int) -> list[Answer]:
        return [ask(path) for path in paths[first : first + TASK]]

    with ThreadPoolExecutor(32) as pool:
        return [answer for some in pool.map(ask_some, range(0, len(records), TASK)) for answer in some]


def _first_file(record: Record) -> str:
    return record.path % record.first_frame if record.num_frames else record.path


FrameRow = tuple[str, str, str, str]  # id, path, file and line, and labels


class _FrameRange(NamedTuple):
    where: str
    path: str
    first_frame: int
    num_frames: int
    labels: set[str]


def _frame_rows(path: str) -> Iterator[FrameRow]:
    """Yield the rows one by one: Something-Something has 20 million."""
    row_pattern = re.compile(r"(\S+)\s+\S+\s+\S+\s+(.+?)\s+(\S+)")
    with open_text(path) as file:
        header = file.readline()
        if not re.match(r"original_vide?o_id\s", header):
            raise InputError(
                f"line 1 of {path} is {header.strip()!r}; expected the header `original_vido_id video_id "
                "frame_id path labels`"
            )
        for number, line in enumerate(file, 2):
            if line.isspace():
                continue
            match = row_pattern.fullmatch(line.strip())
            if not match:
                raise InputError(f"line {number} of {path} is {line.strip()!r}; {EXPECTED_FRAME}")
            yield match[1], match[2], f"line {number} of {path}", match[3]


def _frame_range(rows: Iterable[FrameRow], root: str) -> _FrameRange:
    """Return the rows of one video as a pattern and a range of numbers."""
    rows = iter(rows)
    _, first, first_row, text = next(rows)
    stem, suffix = os.path.splitext(first)
    match = re.fullmatch(r"(.*?)(\d+)([^\d/]*)", stem)
    if not match or _integer(match[2]) >= LARGEST:
        raise InputError(
            f"frame {first} of {first_row} has no number; expected names such as 78687/78687_000001.jpg"
        )
    start = _integer(match[2])
    pattern = f"{_escaped(match[1])}%0{len(match[2])}d{_escaped(match[3] + suffix)}"
    count, labels = 1, {text}
    for _, name, where, text in rows:
        if name != pattern % (start + count):
            raise InputError(
                f"frame {name} of {where} should be {pattern % (start + count)}; expected consecutive "
                "numbers under one pattern"
            )
        count += 1
        labels.add(text)
    return _FrameRange(first_row, join(_escaped(root), pattern), start, count, labels)


def _integer(text: str) -> int:
    """Return the number, or LARGEST, which no list allows, if it has more digits than Python accepts."""
    return int(text) if len(text) < 1000 else LARGEST


def _escaped(text: str) -> str:
    """Escape a text for a printf pattern."""
    return text.replace("%", "%%")


def _read_json(path: str) -> Any:
    text = "\n".join(read_lines(path))
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path} is not JSON of this kind: it is nested too deeply") from error


def _sniff(line: str, many_labels: bool) -> str:
    match = re.fullmatch(rf".+?([;\t ])\s*{MANY}" if many_labels else rf".+?([,;\t ])\s*{ONE}", line)
    return match[1] if match else " "


def _line_pattern(separator: str, many_labels: bool) -> re.Pattern[str]:
    if many_labels and separator == ",":
        raise InputError(
            "DATA.PATH_LABEL_SEPARATOR is ',', which is between the labels of a video (DATA.MULTI_LABEL); "
            "expected a blank, a tab, a semicolon, or nothing to find out"
        )
    if separator not in (" ", "\t", ",", ";"):
        raise InputError(
            f"DATA.PATH_LABEL_SEPARATOR is {separator!r}; expected a blank, a tab, a comma, a semicolon, or "
            "nothing to find out"
        )
    return re.compile(rf"(?P<path>.+?){_between(separator)}{MANY if many_labels else ONE}")


def _between(separator: str) -> str:
    return r"\s+" if separator.isspace() else rf"\s*{separator}\s*"
