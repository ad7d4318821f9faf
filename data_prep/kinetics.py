"""Write the list and the class names for Kinetics videos from the official annotations, and what is missing.

    python data_prep/kinetics.py --videos /raw/k400 --annotations val.csv --split val --out /data/k400

For Kinetics-400, 600 and 700. The csv has the header `label,youtube_id,time_start,time_end,split`; the
videos are `id_000012_000022.mp4` or `id_12_22.mp4` (start and end in seconds) or `id.mp4`, with any video
extension, in any folders. Classes are numbered alphabetically, by the names in the csv or in --class-names.

Writes <split>.csv and classes.txt, and as reports <split>_missing.csv (in the official format) and
<split>_shortfall.txt. Existing lists with other content are not overwritten, and videos are not changed
or moved.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.data.records import read_class_names
from video_iresnet.prep.lists import (
    Found,
    Wanted,
    by_stem,
    class_key,
    find_videos,
    held_folder,
    listed_path,
    of_class,
    print_found,
    report_doubles,
    write_class_names,
    write_split,
)
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import read_lines

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
SPLIT_NAMES = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
OFFICIAL_ROWS = {(400, "val"): 19906}  # (classes, split)


class Segment(NamedTuple):
    """A row of the official csv; times in seconds."""

    label: str
    youtube_id: str
    start: int
    end: int
    split: str
    where: str

    @property
    def stem(self) -> str:
        return segment_stem(self.youtube_id, self.start, self.end)


def segment_stem(youtube_id: str, start: int, end: int) -> str:
    """Return the usual name of a segment's video."""
    return f"{youtube_id}_{start:06d}_{end:06d}"


def read_segments(path: Path, split: str) -> list[Segment]:
    """Return the rows of a split, or all if the csv has no splits. Raises InputError with file and line."""
    rows = csv.reader(read_lines(str(path)))
    header = next(rows, [])
    if not set(COLUMNS[1:4]) <= set(header):
        raise InputError(
            f"line 1 of {path} is {','.join(header)!r}; expected the header `{','.join(COLUMNS)}` of the "
            "official annotations"
        )
    segments = []
    for row in rows:
        if not row:
            continue
        where = f"line {rows.line_num} of {path}"
        fields = dict(zip(header, row, strict=False))
        try:
            start, end = int(float(fields["time_start"])), int(float(fields["time_end"]))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{where} is {','.join(row)!r}; expected {','.join(header)} with times in seconds"
            ) from error
        segments.append(
            Segment(
                fields.get("label", "").strip(),
                fields["youtube_id"].strip(),
                start,
                end,
                fields.get("split", "").strip(),
                where,
            )
        )
    chosen = [segment for segment in segments if segment.split in ("", *SPLIT_NAMES[split])]
    if not chosen:
        there = ", ".join(sorted({segment.split for segment in segments})) or "no row at all"
        raise InputError(f"{path} has no row of the split {split}; it has {there}")
    return each_once(chosen)


def each_once(segments: Sequence[Segment]) -> list[Segment]:
    """Drop duplicate rows, and print how many. Raises InputError if labels differ."""
    first: dict[str, Segment] = {}
    for segment in segments:
        before = first.setdefault(segment.stem, segment)
        if class_key(before.label) != class_key(segment.label):
            raise InputError(
                f"{segment.stem} has the label {before.label!r} in {before.where} and {segment.label!r} in "
                f"{segment.where}; remove one of the lines"
            )
    repeated = [segment for segment in segments if first[segment.stem] is not segment]
    if repeated:
        where = f"{repeated[0].where}: {repeated[0].stem}"
        print(f"{len(repeated):,} rows repeat an earlier one and are left out; the first is {where}")
    return list(first.values())


def number_classes(segments: Sequence[Segment], class_names: Path | None) -> tuple[list[str], dict[str, int]]:
    """Return the names in order, and the number of each label, ignoring case and underscores. Raises
    InputError for an unknown label.
    """
    labels = {segment.label for segment in segments if segment.label}
    names = list(read_class_names(str(class_names)).names) if class_names else sorted(labels)
    number = {class_key(name): index for index, name in enumerate(names)}
    for segment in segments:
        if segment.label and class_key(segment.label) not in number:
            raise InputError(
                f"label {segment.label!r} of {segment.where} is not among the {len(names)} names of "
                f"{class_names}; correct one of them"
            )
    return names, {label: number[class_key(label)] for label in labels}


def match_videos(
    segments: Sequence[Segment], found: Found
) -> tuple[list[str | None], list[tuple[str, list[str]]]]:
    """Return the video of each segment, and the choices among several of one name.

    Names with the times come first, with or without leading zeros; the id alone counts if it has one segment.
    Among several, the one in the folder of its class is used.
    """
    stems = by_stem(found.videos)
    timed: dict[str, list[str]] = defaultdict(list)
    for stem, paths in stems.items():
        if match := re.fullmatch(r"(.+)_(\d+)_(\d+)", stem):
            timed[segment_stem(match[1], int(match[2]), int(match[3]))] += paths
    count = Counter(segment.youtube_id for segment in segments)
    matches: list[str | None] = []
    doubles = []
    for segment in segments:
        paths = (
            timed.get(segment.stem)
            or (stems.get(segment.youtube_id) if count[segment.youtube_id] == 1 else None)
            or []
        )
        chosen = of_class(paths, segment.label)
        matches.append(chosen)
        if chosen and len(paths) > 1:
            doubles.append((chosen, paths))
    return matches, doubles


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder that holds the videos, at any depth"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="the official csv")
    parser.add_argument("--split", choices=list(SPLIT_NAMES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--class-names", type=Path, help="file with a name a line, where the csv does not have all classes"
    )
    parser.add_argument("--workers", type=int, default=8, help="folders that are looked through at once")
    parser.add_argument("--ray", metavar="ADDRESS", help="look through them on this Ray cluster")
    options = parser.parse_args(arguments)
    return exit_code(lambda: prepare(options))


def prepare(options: argparse.Namespace) -> None:
    segments = read_segments(options.annotations, options.split)
    names, numbers = number_classes(segments, options.class_names)
    found = find_videos(options.videos, options.workers, options.ray)
    matches, doubles = match_videos(segments, found)
    print_found(options.videos, found)
    report_doubles(doubles)
    with held_folder(options.out):
        write(options, segments, matches, names, numbers)


def write(
    options: argparse.Namespace,
    segments: Sequence[Segment],
    matches: Sequence[str | None],
    names: Sequence[str],
    numbers: Mapping[str, int],
) -> None:
    """Write the list, the class names and the reports."""
    official = OFFICIAL_ROWS.get((len(names), options.split))
    if official:
        print(
            f"{options.annotations}: {len(segments):,} rows; the official file of Kinetics-400 has "
            f"{official:,}"
        )
    if names:
        write_class_names(options.out / "classes.txt", names)
    wanted = [
        Wanted(
            (
                segment.label,
                segment.youtube_id,
                str(segment.start),
                str(segment.end),
                segment.split or options.split,
            ),
            numbers.get(segment.label),
            match and listed_path(options.videos, match, options.out),
        )
        for segment, match in zip(segments, matches, strict=True)
    ]
    write_split(
        options.out, options.split, wanted, columns=COLUMNS, names=names, inputs=[options.annotations]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
