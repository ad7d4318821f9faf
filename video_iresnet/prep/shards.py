"""Pack the videos or frames of lists into tar files with an index, which runtime/shards.py reads."""

from __future__ import annotations

import filecmp
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from ..data.frame_rates import FILE_NAME, read_frame_rates, write_frame_rates
from ..data.labels import Label, label_text
from ..data.records import Record, read_class_names, read_frame_list, read_records, read_tsm_list
from ..runtime.errors import InputError
from ..runtime.shards import Index, root_of, split
from ..runtime.storage import atomic_write, path_manager
from .index import index_packets
from .jobs import run_jobs
from .lists import ANY_LABEL, held_folder, make_folder, write_csv
from .shard_files import (
    BLOCK,
    Check,
    Job,
    Row,
    Source,
    Status,
    Written,
    check_shard,
    look,
    sha256_of,
    write_shard,
)
from .shard_index import Catalogue

# What a run reads from the folder of its lists besides them.
COPIED = (
    "classes.txt",
    "classInd.txt",
    *(f"something-something-v2-{name}.json" for name in ("labels", "train", "validation")),
)
AT_ONCE = 1024  # videos whose files are looked at before the next ones


class Layout(NamedTuple):
    """How lists are read; see the keys of these names in DATA, and MULTI_LABEL."""

    list_format: str = "videos"
    path_prefix: str = ""
    frame_names: str = "img_%05d.jpg"
    class_names: str = ""
    many_labels: bool = False

    def read(self, path: Path, root: str) -> list[Record]:
        """Read a list whose names start at `root`. Raises InputError."""
        if self.list_format == "frames":
            return read_frame_list(str(path), root=root, labels=None)
        if self.list_format == "folders":
            return read_tsm_list(
                str(path),
                root=root,
                num_classes=ANY_LABEL,
                pattern=self.frame_names,
                many_labels=self.many_labels,
            )
        return read_records(
            str(path),
            root=root,
            num_classes=ANY_LABEL,
            class_names=read_class_names(str(path.parent / self.class_names)) if self.class_names else None,
            many_labels=self.many_labels,
        )


class Packed(NamedTuple):
    """What became of a list: the number of its videos and of shards that were written for it, and the names,
    labels and reasons of videos that are not there, or not whole.
    """

    list_path: Path
    num_videos: int
    num_shards: int
    missing: list[tuple[str, Label, str]]


def pack_lists(
    list_paths: Sequence[Path],
    out: Path,
    layout: Layout,
    *,
    shard_bytes: int,
    workers: int,
    ray_address: str | None = None,
) -> list[Packed]:
    """Pack what lists name into shards of about `shard_bytes` in `out`, write their index, and copy the lists
    there; see run_jobs.

    What is packed already stays. Raises InputError if `out` is the folder of a list, in use, or has other
    files of these names, or if a packed file has changed.
    """
    for path in list_paths:
        if os.path.realpath(path.parent) == os.path.realpath(out):
            raise InputError(f"--out {out} is the folder of {path}; name another one")
    out = Path(os.path.abspath(out))
    sources = [read_sources(path, layout, out) for path in list_paths]
    copies = files_to_copy(list_paths, layout, out)
    with held_folder(out):
        for copy in copies:
            check_copy(*copy)
        copy_frame_rates(sources, out)
        with closing(Catalogue(out)) as catalogue:
            shards, failures = plan(sources, catalogue, shard_bytes)
            for path, listed in zip(list_paths, sources, strict=True):
                if all(source.member in failures for source in listed):
                    raise InputError(
                        f"none of the {len(listed)} entries of {path} can be read, first {listed[0].path}: "
                        f"{failures[listed[0].member]}; correct the list, --prefix or --frame-names"
                    )
            stems = [path.stem for path, planned in zip(list_paths, shards, strict=True) for _ in planned]
            names = catalogue.begin(stems)
            catalogue.remove_leftovers()
            jobs = [
                Job(str(out / name), shard)
                for name, shard in zip(names, (s for planned in shards for s in planned), strict=True)
            ]
            try:
                for name, written in zip(names, in_order(jobs, workers, ray_address), strict=True):
                    catalogue.complete(name, written.size, written.rows)
                    failures |= written.failures
            finally:
                catalogue.remove_leftovers()
            catalogue.finish()
        for copy in copies:
            copy_file(*copy)
        members = [
            s.member for s in itertools.chain(*sources) if not s.num_frames and s.member not in failures
        ]
        videos = [f"{root_of(str(out))}/{member}" for member in members]
        index_packets(out, videos, workers=workers, ray_address=ray_address)
        results = []
        for path, listed, planned in zip(list_paths, sources, shards, strict=True):
            missing = [(s.name, s.label, failures[s.member]) for s in listed if s.member in failures]
            rows = [(name, label_text(label), why) for name, label, why in missing]
            write_csv(missing_list(path, out), ("path", "label", "reason"), rows)
            results.append(Packed(path, len(listed), len(planned), missing))
    return results


def missing_list(list_path: Path, out: Path) -> Path:
    """Return the path of the list of what is not in the shards: path, label and reason."""
    return out / f"{list_path.stem}_missing.csv"


def read_sources(path: Path, layout: Layout, out: Path) -> list[Source]:
    """Read a list. Members are what a run in `out` looks for. Raises InputError."""
    loose = layout.read(path, os.path.join(os.path.abspath(path.parent), layout.path_prefix))
    packed = layout.read(path, root_of(str(out)))
    return [
        Source(a.name, a.label, a.path, split(b.path)[1], a.first_frame, a.num_frames)
        for a, b in zip(loose, packed, strict=True)
    ]


def plan(
    sources: Sequence[Sequence[Source]], catalogue: Catalogue, shard_bytes: int
) -> tuple[list[list[list[Source]]], dict[str, str]]:
    """Return the shards to write for each list, which each member is in once, and the reasons why sources
    cannot be read, by their member.

    They depend on what the catalogue has, but not on how many runs it took to write it. Raises InputError if
    two files have one member, or if one has changed since it was packed.
    """
    paths: dict[str, str] = {}
    failures: dict[str, str] = {}
    shards: list[list[list[Source]]] = []
    for listed in sources:
        shards.append([])
        room = 0
        new = []
        for source in listed:
            first = paths.setdefault(source.member, "")
            if not first:
                paths[source.member] = source.path
                new.append(source)
            elif first != source.path and os.path.realpath(first) != os.path.realpath(source.path):
                raise InputError(
                    f"{first} and {source.path} would both become {source.member}; pack them into folders of "
                    "their own"
                )
        for source, found in look_at(new):
            done, size = set(), 0
            for (path, member), status in zip(source.files(), found, strict=True):
                if isinstance(status, str):
                    failures.setdefault(source.member, status)
                elif is_packed(path, status, catalogue.find(member)):
                    done.add(member)
                else:
                    size += BLOCK + status.size + -status.size % BLOCK
            if size > room:
                shards[-1].append([])
                room = shard_bytes
            room -= size
            if size:
                shards[-1][-1].append(source._replace(done=frozenset(done)))
    return shards, failures


def look_at(sources: Iterable[Source]) -> Iterator[tuple[Source, list[Status | str]]]:
    """Yield sources with the status of each of their files, or why it cannot be read.

    In many threads: on a network disk each call takes milliseconds.
    """
    remaining = iter(sources)
    with ThreadPoolExecutor(32) as pool:
        while some := list(itertools.islice(remaining, AT_ONCE)):
            yield from zip(some, pool.map(look, some, chunksize=16), strict=True)


def is_packed(path: str, status: Status, row: Row | None) -> bool:
    """Whether a file is in the shards already. Raises InputError if other bytes have its name there."""
    if row is None:
        return False
    if row.size == status.size and (row.mtime == status.mtime or sha256_of(path) == row.sha256):
        return True
    raise InputError(
        f"{path} is not the {row.name} that was packed before: another file, or changed since; name another "
        "--out"
    )


def in_order(jobs: list[Job], workers: int, ray_address: str | None) -> Iterator[Written]:
    """Write shards and yield them in their order, so that what a killed run leaves is the beginning."""
    early: dict[str, Written] = {}
    due = iter(jobs)
    work = run_jobs(
        write_shard,
        jobs,
        workers=workers,
        ray_address=ray_address,
        description="packing",
        name=lambda job: job.target,
    )
    with closing(work):
        job = next(due, None)
        for done, written in work:
            early[done.target] = written
            while job and job.target in early:
                yield early.pop(job.target)
                job = next(due, None)


def files_to_copy(list_paths: Sequence[Path], layout: Layout, out: Path) -> list[tuple[Path, Path]]:
    """Return the lists, and what a run reads besides them, with where they go. Raises InputError if two
    files would go to one place.
    """
    copies: dict[Path, Path] = {}
    for path in list_paths:
        beside = [path.parent / name for name in dict.fromkeys([*COPIED, layout.class_names]) if name]
        for source in [path, *(file for file in beside if file.exists())]:
            first = copies.setdefault(out / source.name, source)
            if not filecmp.cmp(first, source, shallow=False):
                raise InputError(
                    f"{first} and {source} differ, but have one name; pack them into folders of their own"
                )
    return [(source, target) for target, source in copies.items()]


def check_copy(source: Path, target: Path) -> None:
    """Raise InputError if another file is where a copy is to go."""
    if target.exists() and not filecmp.cmp(source, target, shallow=False):
        raise InputError(
            f"{target} exists with other content than {source} and is not overwritten; move it away, or name "
            "another --out"
        )


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, unless it was copied before."""
    check_copy(source, target)
    if not target.exists():
        with open(source, "rb") as reading, atomic_write(target, "wb") as file:
            shutil.copyfileobj(reading, file)


def copy_frame_rates(sources: Iterable[Iterable[Source]], out: Path) -> None:
    """Write the frame rates of folders to where they are looked for beside shards."""
    rates: dict[Path, dict[str, float]] = {}
    files: dict[str, Mapping[str, float] | float] = {}
    for source in itertools.chain.from_iterable(sources):
        if not source.num_frames:
            continue
        (path, member), *_ = source.files()
        parent, folder = os.path.split(os.path.dirname(path))
        known = os.path.join(parent, FILE_NAME)
        if known not in files:
            files[known] = read_frame_rates(known) if path_manager.exists(known) else {}
        there = files[known]
        rate = there.get(folder) if isinstance(there, Mapping) else there
        if rate:
            target, name = os.path.split(os.path.dirname(out / member))
            rates.setdefault(Path(target, FILE_NAME), {})[name] = rate
    for place, found in rates.items():
        make_folder(place.parent)
        write_frame_rates(place, found)


def check_shards(out: Path, *, workers: int, ray_address: str | None = None) -> tuple[int, list[str]]:
    """Read all shards of a folder; return the number of members that are as they were packed, and what is
    wrong with others. Raises InputError if there is no index.
    """
    try:
        index = Index(str(out))
    except FileNotFoundError as error:
        raise InputError(f"{out} has no index of shards; name the --out of an earlier run") from error
    num_right, problems = 0, []
    work = run_jobs(
        check_shard,
        [Check(str(out), name) for name in index.names()],
        workers=workers,
        ray_address=ray_address,
        description="checking",
        name=lambda check: check.shard,
    )
    with closing(work):
        for check, (right, found) in work:
            num_right += right
            problems += [f"{check.shard}: {problem}" for problem in found]
    if num_right < len(index) and not problems:
        problems.append(f"{len(index) - num_right} members of the index are in no shard")
    return num_right, sorted(problems)
