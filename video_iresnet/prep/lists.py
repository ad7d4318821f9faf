"""Find videos; write lists that read_records reads back exactly, and reports of missing videos."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import shlex
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tabulate import tabulate
from tqdm import tqdm

from ..data.decode.image import SUFFIXES
from ..data.labels import Label, label_text
from ..runtime.errors import InputError, reason
from ..runtime.root import ROOT, script_words
from ..runtime.storage import atomic_write, exclusive
from .jobs import run_jobs

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".ts"]
)
ANY_LABEL = 2**31  # a number of classes that allows every label
SEPARATORS = (" ", ",", "\t", ";")
WORST = 10  # printed classes of a shortfall; the file has all


class Found(NamedTuple):
    """The files of a folder, as relative paths with forward slashes, in alphabetical order."""

    videos: list[str]
    empty: list[str]  # videos of zero bytes, left behind by failed downloads
    others: list[str]


class Place(NamedTuple):
    """A folder to look through, below a root, for files of these endings."""

    root: str
    folder: str
    suffixes: frozenset[str]


# Folders with their identities, videos, empty videos, other files.
Scanned = tuple[list[tuple[str, tuple[int, int]]], list[str], list[str], list[str]]


class Wanted(NamedTuple):
    """A video in the annotations: its row, its class (None in a test split), and its path in our list (None
    if missing).
    """

    row: Sequence[str]
    label: int | None
    path: str | None


def find_videos(
    folder: Path,
    workers: int,
    ray_address: str | None = None,
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
) -> Found:
    """Search a folder recursively, level by level, in threads or on a Ray cluster. Hidden files are skipped.
    `suffixes`: of what counts as a video; those of pictures, for instance.

    Raises InputError if it is not a folder, and as `run_jobs` does.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; name the folder that holds the videos")
    found = Found([], [], [])
    level = {"": frozenset({_identity(folder)})}  # folders, with the identities of their parents
    while level:
        below = {}
        for (_, name, _), (folders, *files) in _scan_all(
            [Place(str(folder), name, suffixes) for name in level], workers, ray_address
        ):
            for names, more in zip(found, files, strict=True):
                names.extend(more)
            # A link may lead back up.
            below.update(
                {
                    child: level[name] | {identity}
                    for child, identity in folders
                    if identity not in level[name]
                }
            )
        level = below
    return Found(*map(sorted, found))


def named_videos(names: Sequence[str], workers: int, *, of_images: bool = False) -> list[str]:
    """Return the paths of files, and of all videos in folders, that a user names; `of_images`: and pictures.
    Raises InputError if a folder holds none.
    """
    suffixes = VIDEO_SUFFIXES | SUFFIXES if of_images else VIDEO_SUFFIXES
    wanted = "videos or pictures" if of_images else "videos"
    paths = []
    for name in names:
        if not os.path.isdir(name):
            paths.append(name)
            continue
        found = find_videos(Path(name), workers, suffixes=suffixes)
        inside = sorted(found.videos + found.empty)
        if not inside:
            raise InputError(f"{name} holds no {wanted}; name files, or a folder of {wanted}")
        paths += [os.path.join(name, video) for video in inside]
    return paths


def _scan_all(folders: list[Place], workers: int, ray_address: str | None) -> Iterator[tuple[Place, Scanned]]:
    if ray_address is not None:
        yield from run_jobs(
            _scan, folders, workers=0, ray_address=ray_address, description="looking for videos"
        )
    else:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            results = pool.map(_scan, folders)
            yield from zip(
                folders,
                tqdm(results, desc="looking for videos", total=len(folders), disable=None),
                strict=True,
            )


def _scan(place: Place) -> Scanned:
    """Return the folders, videos, empty videos and other files in a folder, as paths below the root."""
    root, folder, suffixes = place
    folders: list[tuple[str, tuple[int, int]]] = []
    videos: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append((name, _identity(entry)))
            elif PurePosixPath(name).suffix.lower() not in suffixes or not entry.is_file():
                others.append(name)
            else:
                (videos if entry.stat().st_size else empty).append(name)
    return folders, videos, empty, others


def _identity(folder: Path | os.DirEntry[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def video_stem(path: str) -> str:
    """Return the name of a video without folder and extensions; some downloaders leave two, as in
    `x.mp4.mkv`.
    """
    name = PurePosixPath(path)
    while name.suffix.lower() in VIDEO_SUFFIXES:
        name = name.with_suffix("")
    return name.name


def print_found(folder: Path, found: Found) -> None:
    print(
        f"{folder}: {len(found.videos):,} videos, {len(found.empty):,} empty ones (taken for missing), "
        f"{len(found.others):,} other files"
    )


def by_stem(videos: Iterable[str]) -> dict[str, list[str]]:
    """Return {name without extensions: its videos, in the given order}."""
    stems = defaultdict(list)
    for path in videos:
        stems[video_stem(path)].append(path)
    return dict(stems)


def of_class(paths: Sequence[str], name: str) -> str | None:
    """Return the first of several videos with one name that is below a folder of its class, or else the
    first; None if there is none.
    """
    in_class = [path for path in paths if class_key(name) in map(class_key, path.split("/")[:-1])]
    return next(iter([*in_class, *paths]), None)


def class_key(name: str) -> str:
    """Return a canonical spelling of a class name: folders often have underscores instead of spaces."""
    return " ".join(name.replace("_", " ").split()).casefold()


def report_doubles(doubles: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print which of several videos with one name was used. `doubles`: (the one used, all of that name)."""
    if doubles:
        taken, paths = doubles[0]
        other = next(path for path in paths if path != taken)
        print(
            f"{len(doubles)} names belong to several videos; the first is {video_stem(taken)}: took {taken}, "
            f"not {other}"
        )


def listed_path(folder: Path, name: str, out: Path) -> str:
    """Return the path of a video in a list in `out`: relative if it is below `out`, so that both can be moved
    together; otherwise absolute.
    """
    path = Path(os.path.abspath(folder), name)
    return (
        path.relative_to(os.path.abspath(out)).as_posix()
        if path.is_relative_to(os.path.abspath(out))
        else str(path)
    )


def print_next(config: str, overrides: Mapping[str, str]) -> None:
    """Print the command that trains and tests with a config and overrides."""
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    script = "tools/run_net.py" if Path.cwd() == ROOT else str(ROOT / "tools/run_net.py")
    words = [*script_words(script), "--cfg", config, *itertools.chain(*overrides.items())]
    print(f"next: {shlex.join([python, *words])}")


def write_list(path: Path, entries: Sequence[tuple[str, int]]) -> None:
    """Write `path label` lines. The separator is one that occurs in no path, so that other projects can read
    the list; a space if all occur.

    Raises InputError for a path that no list can contain, or if a list with other content exists.
    """
    write_new(path, _list_lines(entries))


def replace_list(path: Path, entries: Sequence[tuple[str, Label]]) -> None:
    """Write a list as `write_list` does, replacing an earlier one."""
    with atomic_write(path, "wb") as file:
        file.writelines(line.encode() for line in _list_lines(entries))


def _list_lines(entries: Sequence[tuple[str, Label]]) -> list[str]:
    many = any(isinstance(label, tuple) for _, label in entries)  # with commas between them
    marks = [mark for mark in SEPARATORS if mark != "," or not many]
    separator = next((mark for mark in marks if not any(mark in name for name, _ in entries)), " ")
    return [f"{_quoted(_checked(name))}{separator}{label_text(label)}\n" for name, label in entries]


def write_class_names(path: Path, names: Sequence[str]) -> None:
    """Write one class name per line, with their numbers if the names look numbered. Raises InputError."""
    for name in names:
        if name != name.strip() or not name:
            raise InputError(f"the class name {name!r} begins or ends with blanks; rename it")
    numbered = all(re.match(r"\d+\s+\S", name) for name in names)
    write_new(
        path,
        [
            f"{number} {_checked(name)}\n" if numbered else f"{_checked(name)}\n"
            for number, name in enumerate(names)
        ],
    )


def make_folder(folder: Path) -> None:
    """Create a folder for output, unless it exists. Raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {reason(error)}; name another --out") from error


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """Create a folder for output, unless it exists, and lock it while the block runs. Raises InputError."""
    make_folder(folder)
    with exclusive(folder):
        yield


def write_new(path: Path, lines: Iterable[str]) -> None:
    """Write a file, unless it exists with the same content. Raises InputError if it has other content."""
    if path.exists():
        with path.open("rb") as file:
            if not all(file.readline() == line.encode() for line in lines) or file.read(1):
                raise InputError(
                    f"{path} exists with other content and is not overwritten; move it away, or name another "
                    "--out"
                )
        return
    make_folder(path.parent)
    with atomic_write(
        path, "wb"
    ) as file:  # as bytes: text would depend on the platform's line ends and encoding
        file.writelines(line.encode() for line in lines)


def write_split(
    out: Path,
    split: str,
    wanted: Sequence[Wanted],
    *,
    columns: Sequence[str],
    names: Sequence[str],
    inputs: Sequence[Path],
) -> None:
    """Write `<split>.csv` with the existing videos, and the reports `<split>_missing.csv` and
    `<split>_shortfall.txt`; print a summary.

    Videos without a label are listed with class 0. Reports describe the last run and replace earlier ones.
    `columns`: of the rows. Raises InputError if a list with other content exists, or a report would overwrite
    one of `inputs`.
    """
    make_folder(out)
    missing_file, shortfall_file = out / f"{split}_missing.csv", out / f"{split}_shortfall.txt"
    for path in inputs:
        if any(report.exists() and path.samefile(report) for report in (missing_file, shortfall_file)):
            raise InputError(f"{path} is read and would be overwritten by a report; name another --out")
    missing = [item for item in wanted if item.path is None]
    entries = [(item.path, item.label or 0) for item in wanted if item.path is not None]
    if entries:
        write_list(out / f"{split}.csv", entries)
    write_csv(missing_file, columns, [item.row for item in missing])
    table = _shortfall(wanted, names)
    if table:
        with atomic_write(shortfall_file, "wb") as file:
            file.write((_table(table) + "\n").encode())
    written = f" -> {out / f'{split}.csv'}" if entries else "; no list was written"
    print(f"{split}: {len(entries):,} of {len(wanted):,} videos are there{written}")
    if entries and all(item.label is None for item in wanted):
        print(
            f"{split}: the annotations have no labels, class 0 stands for each: predictions can be made, "
            "accuracies would mean nothing"
        )
    if missing:
        print(
            f"{split}: {len(missing):,} ({100 * len(missing) / len(wanted):.2f} %) are missing: "
            f"{missing_file}"
        )
    worst = [row for row in table if row[2]]
    if worst:
        print(_table(worst[:WORST]))
        print(
            f"(the worst {min(WORST, len(worst))} of {len(worst)} classes with missing videos; all classes: "
            f"{shortfall_file})"
        )


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a report, replacing an earlier one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with atomic_write(path, "wb") as file:
        file.write(text.getvalue().encode())


def _shortfall(wanted: Sequence[Wanted], names: Sequence[str]) -> list[tuple[str, int, int, float]]:
    """Return (class, wanted, missing, % missing), worst first."""
    total = Counter(item.label for item in wanted if item.label is not None)
    gone = Counter(item.label for item in wanted if item.label is not None and item.path is None)
    rows = [
        (names[label], total[label], gone[label], 100 * gone[label] / total[label]) for label in sorted(total)
    ]
    return sorted(rows, key=lambda row: (-row[3], -row[2]))


def _table(rows: Sequence[tuple[str, int, int, float]]) -> str:
    return tabulate(rows, headers=["class", "videos", "missing", "%"], floatfmt=".1f", disable_numparse=[0])


def _checked(name: str) -> str:
    """Return the name if it fits into one line of UTF-8."""
    if name.splitlines() != [name]:
        raise InputError(f"the name {name!r} holds a line break, which no list can; rename it")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {name!r} is not UTF-8, which lists are; rename it") from error
    return name


def _quoted(name: str) -> str:
    """Quote a name whose ends a reader would misinterpret."""
    quoted = name != name.strip() or name[0] in '"\ufeff' or name[-1] in ",;"
    return f'"{name}"' if quoted else name
