"""Decode every video of a list once, from the first frame to the last, and say what is wrong with the data.

    python data_prep/verify.py --list /data/k400/train.csv --against /data/k400/val.csv --report report.html

Bad, and left out of the clean list: missing, unreadable or truncated files, and such without video or without
frames. Worth a look, but left in it: pictures that the decoder had to patch up, frame rates outside [10, 61]
or uneven ones, copies (files of the same bytes) in the list and in those given with --against. Beside the
list, or under --out, for a train.csv: train_clean.csv; train_bad.csv (path, label, problem, reason);
train_verify.html, the report, or where --report says; train_verify.json, the same for machines;
train_verify.jsonl, what was found in each video.

It can be stopped and started again: a video whose path, size and time of change are in train_verify.jsonl is
not decoded again, unless it was bad. Videos are only read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # imports take seconds
    from video_iresnet.runtime.errors import quiet_interrupts

    quiet_interrupts()

import av
import jinja2
import numpy as np

from video_iresnet.data.lists import replace_list, write_csv
from video_iresnet.data.records import Record, read_records
from video_iresnet.runtime.errors import InputError, exit_code, reason
from video_iresnet.runtime.jobs import add_options, run_jobs
from video_iresnet.runtime.storage import atomic_write, remove_leftovers

ANY_LABEL = 2**31
RATES = (10, 61)  # frames a second that are usual
UNEVEN = 0.01  # the share of steps between frames that may differ from the usual one
GENERATOR = "video_iresnet data_prep/verify.py"
SHORT_SIDES = (0, 128, 200, 256, 320, 360, 480, 720, 1080)
DURATIONS = (0, 1, 2, 4, 6, 8, 9.5, 10.5, 15, 30, 60, 300)
MEBIBYTES = (0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50)
ROWS = 500  # of a table in the report; the files have all


class Job(NamedTuple):
    """A file, and whether to decode it or only to hash it."""

    path: str
    is_decoded: bool


class Finding(NamedTuple):
    """What there is to know of a file. Seconds, frames a second, bytes."""

    path: str
    size: int = 0
    mtime_ns: int = 0
    is_decoded: bool = False
    problem: str = ""  # missing, unreadable, no video, no frames, truncated
    reason: str = ""
    sha256: str = ""
    codec: str = ""
    height: int = 0
    width: int = 0
    num_frames: int = 0
    duration: float = 0.0
    frame_rate: float = 0.0
    uneven: int = 0  # steps between frames that differ from the usual one
    damage: str = ""


class BadVideoError(Exception):
    """A problem and its reason."""


def examine(job: Job) -> Finding:
    """Hash and decode one file. Every failure is a finding."""
    finding = Finding(job.path, is_decoded=job.is_decoded)
    try:
        status = os.stat(job.path)
        finding = finding._replace(size=status.st_size, mtime_ns=status.st_mtime_ns)
        with open(job.path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        finding = finding._replace(sha256=digest.hexdigest())
        if not status.st_size:
            raise BadVideoError("unreadable", "the file is empty")
        return finding._replace(**decode(job.path)) if job.is_decoded else finding
    except FileNotFoundError:
        return finding._replace(problem="missing", reason="No such file or directory")
    except OSError as error:
        return finding._replace(problem="unreadable", reason=reason(error))
    except BadVideoError as error:
        return finding._replace(problem=error.args[0], reason=error.args[1])


def decode(path: str) -> dict[str, Any]:
    """Decode strictly; where that fails, as training does, where the decoder patches up what is damaged."""
    try:
        return decode_all(path, "explode")
    except BadVideoError as error:
        found = decode_all(path, "")
        return {**found, "damage": f"decodes only with pictures patched up: {error.args[1]}"}


def decode_all(path: str, error_detection: str) -> dict[str, Any]:
    """What Finding says of the pictures. Raises BadVideoError."""
    try:
        container = av.open(path)
    except (OSError, ValueError) as error:  # every FFmpeg error is one of these
        raise BadVideoError("unreadable", reason(error)) from error
    with container:
        if not container.streams.video:
            raise BadVideoError(
                "no video",
                f"it has no video stream, only {', '.join(s.type for s in container.streams) or 'nothing'}",
            )
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1  # many videos at once use the cores better
        if error_detection:
            stream.codec_context.options = {"err_detect": error_detection}
        num_packets, num_shown, num_frames, times, end = 0, 0, 0, [], 0
        failure = None
        try:
            for packet in container.demux(stream):
                num_packets += bool(packet.size)
                num_shown += bool(packet.size) and not packet.is_discard
                try:
                    for frame in packet.decode() if failure is None else ():
                        num_frames += 1
                        if frame.pts is not None:
                            times.append(frame.pts)
                            end = max(end, frame.pts + frame.duration)
                except (OSError, ValueError) as error:  # the packets behind tell whether the end is missing
                    failure = BadVideoError("unreadable", f"{reason(error)} after {num_frames} frames")
        except (OSError, ValueError) as error:
            raise BadVideoError("unreadable", f"{reason(error)} after {num_frames} frames") from error
        claimed = (
            len(stream.index_entries) if "mp4" in container.format.name else 0
        )  # exact, and without what an edit list cuts off
        if num_packets < claimed:
            raise BadVideoError("truncated", f"{num_packets} of {claimed} frames are there")
        if failure is not None:
            raise failure
        if not num_frames:
            raise BadVideoError(
                "no frames",
                "it has no frames" if not num_packets else f"none of its {num_packets} frames can be decoded",
            )
        seconds = np.sort(np.array(times, float)) * float(stream.time_base)
        find_truncation(container, num_shown, num_frames, float(end * stream.time_base))
        found = {
            "codec": stream.codec_context.name,
            "height": stream.height,
            "width": stream.width,
            "num_frames": num_frames,
        }
        return {
            **found,
            **pace(seconds, num_frames, float(stream.average_rate or 0), float(stream.time_base)),
        }


def find_truncation(container: Any, num_shown: int, num_frames: int, end: float) -> None:
    """Raise BadVideoError where there is less than the header claims. `end`: of the last frame (seconds)."""
    stream, name = container.streams.video[0], container.format.name
    claimed = stream.frames
    if "mp4" in name:
        if num_frames < num_shown:
            raise BadVideoError("truncated", f"{num_frames} of {num_shown} frames can be decoded")
    elif num_frames < claimed - max(2, claimed // 100):  # writers of AVI count some frames that are not there
        raise BadVideoError("truncated", f"{num_frames} of {claimed} frames can be decoded")
    elif "matroska" in name:
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if tag:
            total = 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3])
        else:  # the container's is that of the longest stream
            total = (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0
        if end < total - max(0.25, 0.02 * total):
            raise BadVideoError("truncated", f"the last frame ends at {end:.2f} s of {total:.2f} s")


def pace(seconds: Any, num_frames: int, rate: float, tick: float) -> dict[str, Any]:
    """Duration, frame rate and the number of uneven steps, from the times of the frames; from the header's
    `rate` where they have none.
    """
    steps = np.diff(seconds)
    if num_frames < 2 or len(seconds) < num_frames or not seconds[-1] > seconds[0]:
        return {"duration": num_frames / rate if rate else 0.0, "frame_rate": rate, "uneven": 0}
    usual = float(np.median(steps))
    span = float(seconds[-1] - seconds[0])
    uneven = int((abs(steps - usual) > max(1.5 * tick, 0.1 * usual)).sum())
    return {
        "duration": round(span + usual, 6),
        "frame_rate": round((num_frames - 1) / span, 4),
        "uneven": uneven,
    }


def read_journal(path: Path) -> dict[tuple[str, int, int], Finding]:
    """What earlier runs found, by path, size and time of change. A line that a kill tore, or that an older
    script wrote, does not count.
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
    records: Sequence[Record], others: Sequence[Record], journal: Path, options: argparse.Namespace
) -> dict[str, Finding]:
    """A finding for each path: from the journal, or new and then in the journal too. Those of `others` are
    not decoded.
    """
    jobs = {os.path.abspath(record.path): Job(os.path.abspath(record.path), False) for record in others}
    jobs |= {os.path.abspath(record.path): Job(os.path.abspath(record.path), True) for record in records}
    known = read_journal(journal)
    findings: dict[str, Finding] = {}
    with ThreadPoolExecutor(32) as pool:  # on a network disk each question takes milliseconds
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
        workers=options.workers,
        ray_address=options.ray,
        description="verifying",
        name=lambda job: job.path,
    )
    try:
        with closing(work), open(journal, "ab") as file:
            if file.tell():
                file.write(b"\n")  # ends a line that was torn
            for job, finding in work:
                findings[job.path] = finding
                if finding.problem != "missing":
                    file.write(json.dumps(finding._asdict()).encode() + b"\n")
                    file.flush()
    except OSError as error:
        raise InputError(f"cannot write {journal}: {reason(error)}; what it held is kept") from error
    return findings


def identity(path: str) -> tuple[str, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return path, -1, -1
    return path, status.st_size, status.st_mtime_ns


def warnings_of(finding: Finding) -> Iterable[tuple[str, str]]:
    """(problem, reason) of what is odd in a video that can be decoded."""
    if finding.damage:
        yield "damaged", finding.damage
    if not RATES[0] <= finding.frame_rate <= RATES[1]:
        yield "odd frame rate", f"{finding.frame_rate:.2f} frames a second, outside [{RATES[0]}, {RATES[1]}]"
    if finding.uneven > UNEVEN * finding.num_frames:
        yield (
            "uneven frame rate",
            f"{finding.uneven} of {finding.num_frames - 1} steps between frames differ from the usual one",
        )


def find_copies(
    records: Sequence[Record], others: dict[str, Sequence[Record]], findings: dict[str, Finding]
) -> list[dict[str, Any]]:
    """Groups of entries whose files have the same bytes, with what that means. `others`: the other lists by
    name.
    """
    groups = defaultdict(list)
    for name, listed in [("", records), *others.items()]:
        for record in listed:
            finding = findings[os.path.abspath(record.path)]
            if not finding.problem:
                groups[finding.sha256].append({"list": name, "path": record.name, "label": record.label})
    copies = []
    for entries in groups.values():
        here = [entry for entry in entries if not entry["list"]]
        if here and len(entries) > 1:
            remarks = ["different labels"] * (len({entry["label"] for entry in entries}) > 1)
            remarks += sorted({f"also in {entry['list']}" for entry in entries if entry["list"]})
            copies.append({"remarks": remarks, "entries": entries})
    return sorted(copies, key=lambda copy: -len(copy["remarks"]))


def histogram(values: Iterable[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """(range, number of values) for [edge, next edge), without the empty ranges at both ends."""
    counts, _ = np.histogram(list(values), [*edges, np.inf])
    names = [f"{low:g} to below {high:g}" for low, high in pairwise(edges)] + [f"{edges[-1]:g} and more"]
    filled = np.flatnonzero(counts)
    return [(names[i], int(counts[i])) for i in range(filled[0], filled[-1] + 1)] if len(filled) else []


def assess(
    list_path: Path,
    records: Sequence[Record],
    others: dict[str, Sequence[Record]],
    findings: dict[str, Finding],
) -> dict[str, Any]:
    """Everything that the report says."""
    pairs = [(record, findings[os.path.abspath(record.path)]) for record in records]
    good = [finding for _, finding in pairs if not finding.problem]
    bad = [
        {"path": r.name, "label": r.label, "problem": f.problem, "reason": f.reason}
        for r, f in pairs
        if f.problem
    ]
    odd = [
        {"path": r.name, "label": r.label, "problem": p, "reason": why}
        for r, f in pairs
        if not f.problem
        for p, why in warnings_of(f)
    ]
    listed = Counter(record.label for record in records)
    fine = Counter(record.label for record, finding in pairs if not finding.problem)
    rates = Counter(f"{finding.frame_rate:.2f}" for finding in good)
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
            name: sum(bool(findings[os.path.abspath(r.path)].problem) for r in listed)
            for name, listed in others.items()
        },
        "classes": [
            {"label": label, "listed": n, "good": fine[label]} for label, n in sorted(listed.items())
        ],
        "distributions": {
            "short side, pixels": histogram((min(f.height, f.width) for f in good), SHORT_SIDES),
            "duration, seconds": histogram((f.duration for f in good), DURATIONS),
            "file size, MiB": histogram((f.size / 2**20 for f in good), MEBIBYTES),
            "frame rate, frames a second": sorted(rates.most_common(12), key=lambda item: float(item[0])),
            "codec": Counter(f.codec for f in good).most_common(12),
        },
    }


def render(result: dict[str, Any]) -> str:
    """The report as one HTML page that needs nothing else."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("verify.html.jinja").render(**result, generator=GENERATOR, max_rows=ROWS)


def verify(options: argparse.Namespace) -> dict[str, Any]:
    """Examine the list's videos and write all files."""
    root, stem = Path(os.path.abspath(options.list.parent)), options.list.stem
    out = Path(os.path.abspath(options.out)) if options.out else root
    clean, bad, machine, journal = (
        out / f"{stem}_{end}" for end in ("clean.csv", "bad.csv", "verify.json", "verify.jsonl")
    )
    report = options.report or out / f"{stem}_verify.html"
    records = read_records(str(options.list), root=str(root), num_classes=ANY_LABEL)
    others = {
        str(path): read_records(str(path), root=str(path.parent), num_classes=ANY_LABEL)
        for path in options.against
    }
    prepare(out, (clean, bad, machine), journal, report)
    findings = examine_all(
        records, [record for listed in others.values() for record in listed], journal, options
    )
    result = assess(options.list, records, others, findings)
    columns = ("path", "label", "problem", "reason")
    write_csv(bad, columns, [[row[column] for column in columns] for row in result["bad"]])
    good = [record for record in records if not findings[os.path.abspath(record.path)].problem]
    replace_list(
        clean,
        [(record.name if out == root else os.path.abspath(record.path), record.label) for record in good],
    )
    with atomic_write(machine, "wb") as file:
        file.write(json.dumps(result, indent=1, ensure_ascii=False).encode())
    with atomic_write(report, "wb") as file:
        file.write(render(result).encode())
    print(f"{clean}\n{bad}\n{machine}\n{report}")
    return result


def prepare(out: Path, results: Sequence[Path], journal: Path, report: Path) -> None:
    """Make the folder, remove what killed runs left, and see that nothing of others would be overwritten."""
    if report.suffix != ".html":
        raise InputError(f"--report is {report}; expected a name that ends in .html")
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out, {path.name for path in results})
        remove_leftovers(report.parent, {report.name})
    except OSError as error:
        raise InputError(f"cannot write to {error.filename or out}: {reason(error)}") from error
    for path in results:
        if path.exists() and not journal.exists():
            raise InputError(
                f"{path} is there and was not written by this script; name another folder with --out"
            )
    if report.exists() and GENERATOR.encode() not in report.read_bytes()[:1000]:
        raise InputError(f"{report} is there and was not written by this script; name another --report")


def summarise(result: dict[str, Any]) -> None:
    print(f"{result['good']} of {result['videos']} videos are good")
    for kind in ("bad", "warnings"):
        for problem, number in Counter(row["problem"] for row in result[kind]).most_common():
            print(f"  {number} {problem}" + (" (kept)" if kind == "warnings" else ""))
    if result["copies"]:
        remarks = Counter(remark for copy in result["copies"] for remark in copy["remarks"])
        print(
            f"  {len(result['copies'])} groups of copies (kept)"
            + "".join(f", {number} {remark}" for remark, number in remarks.items())
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--list", type=Path, required=True, help="`path label` lines; relative paths start at its folder"
    )
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="LIST",
        help="other lists, such as the validation's, to find copies in",
    )
    parser.add_argument("--out", type=Path, help="folder to write into (default: the list's)")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="(default: LIST_verify.html)")
    add_options(parser)
    options = parser.parse_args(arguments)
    return exit_code(lambda: summarise(verify(options)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
