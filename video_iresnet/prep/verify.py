"""Examine every video of a list; write the clean list, the bad files and a report."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from ..data.decode.reader import DecodeError
from ..data.labels import classes_of, label_text
from ..data.records import Record, read_records
from ..runtime.errors import InputError, reason
from ..runtime.ranges import is_ranged
from ..runtime.shards import list_root
from ..runtime.storage import atomic_write, remove_leftovers
from .examine import Finding, Job, examine, size_and_time, warnings_of
from .index import index_packets
from .jobs import run_jobs
from .lists import ANY_LABEL, held_folder, replace_list, write_csv

GENERATOR = "video_iresnet data_prep/verify.py"
SHORT_SIDES = (0, 128, 200, 256, 320, 360, 480, 720, 1080)
DURATIONS = (0, 1, 2, 4, 6, 8, 9.5, 10.5, 15, 30, 60, 300)
MEBIBYTES = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50)
ROWS = 500  # rows of a table in the report; the files have all


def read_journal(path: Path) -> dict[tuple[str, int, int], Finding]:
    """Return earlier findings by path, size and time of change. Incomplete lines and those of older versions
    are skipped.
    """
    findings = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            if set(values) != set(Finding._fields):
                continue
            finding = Finding(**values)
        except (ValueError, TypeError):
            continue
        if not finding.problem:
            key = (finding.path, finding.size, finding.mtime_ns)
            if finding.is_decoded or key not in findings:
                findings[key] = finding
    return findings


def examine_all(
    records: Sequence[Record],
    others: Sequence[Record],
    journal: Path,
    *,
    workers: int,
    ray_address: str | None,
) -> dict[str, Finding]:
    """Return a finding per path, from the journal or else examined and added to it. Files of `others` are
    not decoded.
    """
    jobs = {place(record): Job(place(record), False) for record in others}
    jobs |= {place(record): Job(place(record), True) for record in records}
    known = read_journal(journal)
    findings: dict[str, Finding] = {}
    with ThreadPoolExecutor(32) as pool:  # on a network disk each stat takes milliseconds
        for job, key in zip(jobs.values(), pool.map(identity, jobs, chunksize=256), strict=True):
            finding = known.get(key)
            if finding and (finding.is_decoded or not job.is_decoded):
                findings[job.path] = finding
    if findings:
        print(f"{len(findings)} of {len(jobs)} videos were verified before")
    new = [job for job in jobs.values() if job.path not in findings]
    work = run_jobs(
        examine,
        new,
        workers=workers,
        ray_address=ray_address,
        description="verifying",
        name=lambda job: job.path,
    )
    try:
        with closing(work), open(journal, "ab") as file:
            if file.tell():
                file.write(b"\n")  # ends an incomplete line
            for job, finding in work:
                findings[job.path] = finding
                if finding.problem != "missing":
                    file.write(json.dumps(finding._asdict()).encode() + b"\n")
                    file.flush()
    except OSError as error:
        raise InputError(f"cannot write {journal}: {reason(error)}; what it held is kept") from error
    return findings


def place(record: Record) -> str:
    """Return what tells the record's file from others: its address, or its absolute path."""
    return record.path if is_ranged(record.path) else os.path.abspath(record.path)


def identity(path: str) -> tuple[str, int, int]:
    try:
        return path, *size_and_time(path)
    except (OSError, DecodeError):
        return path, -1, -1


def shown(record: Record) -> int | str:
    """Return the label of a record, or its labels as a text."""
    return record.label if isinstance(record.label, int) else label_text(record.label)


def find_copies(
    records: Sequence[Record], others: Mapping[str, Sequence[Record]], findings: dict[str, Finding]
) -> list[dict[str, Any]]:
    """Group entries whose files have the same bytes, with remarks. `others`: the other lists by name."""
    groups = defaultdict(list)
    for name, listed in [("", records), *others.items()]:
        for record in listed:
            finding = findings[place(record)]
            if not finding.problem:
                groups[finding.sha256].append({"list": name, "path": record.name, "label": shown(record)})
    copies = []
    for entries in groups.values():
        here = [entry for entry in entries if not entry["list"]]
        if here and len(entries) > 1:
            remarks = ["different labels"] * (len({entry["label"] for entry in entries}) > 1)
            remarks += sorted({f"also in {entry['list']}" for entry in entries if entry["list"]})
            copies.append({"remarks": remarks, "entries": entries})
    return sorted(copies, key=lambda copy: -len(copy["remarks"]))


def histogram(values: Iterable[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """Return (range, number of values) for each [edge, next edge), without empty ranges at both ends."""
    counts, _ = np.histogram(list(values), [*edges, np.inf])
    names = [f"{low:g} to below {high:g}" for low, high in pairwise(edges)] + [f"{edges[-1]:g} and more"]
    filled = np.flatnonzero(counts)
    return [(names[i], int(counts[i])) for i in range(filled[0], filled[-1] + 1)] if len(filled) else []


def assess(
    list_path: Path,
    records: Sequence[Record],
    others: Mapping[str, Sequence[Record]],
    findings: dict[str, Finding],
) -> dict[str, Any]:
    """Return the contents of the report."""
    pairs = [(record, findings[place(record)]) for record in records]
    good = [finding for _, finding in pairs if not finding.problem]
    bad = [
        {"path": r.name, "label": shown(r), "problem": f.problem, "reason": f.reason}
        for r, f in pairs
        if f.problem
    ]
    odd = [
        {"path": r.name, "label": shown(r), "problem": p, "reason": why}
        for r, f in pairs
        if not f.problem
        for p, why in warnings_of(f)
    ]
    listed = Counter(number for record in records for number in classes_of(record.label))
    fine = Counter(number for r, f in pairs if not f.problem for number in classes_of(r.label))
    rates = Counter(f"{finding.frame_rate:.2f}" for finding in good if finding.frame_rate)  # not of pictures
    return {
        "list": str(list_path),
        "videos": len(records),
        "good": len(good),
        "hours": round(sum(finding.duration for finding in good) / 3600, 3),
        "bytes": sum(finding.size for finding in good),
        "bad": bad,
        "warnings": odd,
        "copies": find_copies(records, others, findings),
        "against": {
            name: sum(bool(findings[place(r)].problem) for r in listed) for name, listed in others.items()
        },
        "classes": [
            {"label": label, "listed": n, "good": fine[label]} for label, n in sorted(listed.items())
        ],
        "distributions": {
            "short side, pixels": histogram((min(f.height, f.width) for f in good), SHORT_SIDES),
            "duration, seconds": histogram((f.duration for f in good if f.duration), DURATIONS),
            "file size, MiB": histogram((f.size / 2**20 for f in good), MEBIBYTES),
            "frame rate, frames a second": sorted(rates.most_common(12), key=lambda item: float(item[0])),
            "codec": Counter(f.codec for f in good).most_common(12),
        },
    }


def render(result: dict[str, Any]) -> str:
    """Render the report as a single HTML page."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("verify.html.jinja").render(**result, generator=GENERATOR, max_rows=ROWS)


class Files(NamedTuple):
    """The output files of `verify`."""

    clean: Path
    bad: Path
    machine: Path
    report: Path
    journal: Path


def output_files(list_path: Path, out: Path | None = None, report: Path | None = None) -> Files:
    """Return the output files for a list, in `out` or else next to it."""
    start = Path(os.path.abspath(out or list_path.parent), list_path.stem)
    clean, bad, machine, default, journal = (
        Path(f"{start}_{end}")
        for end in ("clean.csv", "bad.csv", "verify.json", "verify.html", "verify.jsonl")
    )
    return Files(clean, bad, machine, report or default, journal)


def verify(
    list_path: Path,
    against: Sequence[Path],
    files: Files,
    *,
    workers: int,
    ray_address: str | None = None,
    many_labels: bool = False,
) -> dict[str, Any]:
    """Examine the videos of a list, find copies in others, and write all files; see run_jobs. `many_labels`:
    see read_records.

    Returns the contents of the report. Raises InputError if another process writes there, or if a file is
    foreign.
    """
    out, root = files.clean.parent, Path(os.path.abspath(list_path.parent))
    with held_folder(out):
        records, *listed = (
            read_records(
                str(path),
                root=list_root(str(folder)),
                num_classes=ANY_LABEL,
                many_labels=many_labels,
            )
            for path, folder in [(list_path, root), *((path, path.parent) for path in against)]
        )
        others = dict(zip(map(str, against), listed, strict=True))
        prepare(files)
        findings = examine_all(
            records,
            [record for listed in others.values() for record in listed],
            files.journal,
            workers=workers,
            ray_address=ray_address,
        )
        result = assess(list_path, records, others, findings)
        columns = ("path", "label", "problem", "reason")
        write_csv(files.bad, columns, [[row[column] for column in columns] for row in result["bad"]])
        good = [record for record in records if not findings[place(record)].problem]
        replace_list(
            files.clean,
            [(record.name if out == root else place(record), record.label) for record in good],
        )
        for path, text in (
            (files.machine, json.dumps(result, indent=1, ensure_ascii=False)),
            (files.report, render(result)),
        ):
            with atomic_write(path, "wb") as file:
                file.write(text.encode())
        index_packets(out, [record.path for record in good], workers=workers, ray_address=ray_address)
    return result


def prepare(files: Files) -> None:
    """Delete leftovers of killed runs. Raises InputError if a foreign file would be overwritten."""
    *results, report, journal = files
    if report.suffix != ".html":
        raise InputError(f"--report is {report}; expected a name that ends in .html")
    try:
        remove_leftovers(journal.parent, {path.name for path in results})
        remove_leftovers(report.parent, {report.name})
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or journal.parent}: {reason(error)}") from error
    for path in results:
        if path.exists() and not journal.exists():
            raise InputError(
                f"{path} is there and was not written by this script; name another folder with --out"
            )
    if report.exists() and GENERATOR.encode() not in report.read_bytes()[:1000]:
        raise InputError(f"{report} is there and was not written by this script; name another --report")
