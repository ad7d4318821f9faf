"""Decode every video of a list once, from the first frame to the last, and say what is wrong with the data.

    python data_prep/verify.py --list /data/k400/train.csv --against /data/k400/val.csv --report report.html

Bad, and left out of the clean list: missing, unreadable or truncated files, and such without video or without
frames. Worth a look, but left in it: pictures that the decoder had to patch up, frames lost inside, frames at
the start that cannot be shown, frame rates outside [10, 61] or uneven ones, copies (files of the same bytes)
in the list and in those given with --against. Beside the list, or under --out, for a train.csv:
train_clean.csv; train_bad.csv (path, label, problem, reason); train_verify.html, the report, or where
--report says; train_verify.json, the same for machines; train_verify.jsonl, what was found in each video.

It can be stopped and started again: a video whose path, size and time of change are in train_verify.jsonl is
not decoded again, unless it was bad. Videos are only read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import jinja2
import numpy as np

from video_iresnet.data.decode.container import VideoFile, check_regular
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.records import Record, read_records
from video_iresnet.prep.jobs import add_options, run_jobs
from video_iresnet.prep.lists import held_folder, replace_list, write_csv
from video_iresnet.runtime.errors import InputError, reason
from video_iresnet.runtime.storage import atomic_write, remove_leftovers

ANY_LABEL = 2**31
RATES = (10, 61)  # frames a second that are usual
UNEVEN = 0.01  # the fraction of steps between frames that may differ from the usual one
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
    lost: int = 0  # frames between the first and the last, as a constant rate has gaps
    unshown: int = 0  # frames at the start that need others which are not there
    damage: str = ""


def examine(job: Job) -> Finding:
    """Hash and decode one file. Every failure is a finding."""
    finding = Finding(job.path, is_decoded=job.is_decoded)
    try:
        status = os.stat(job.path)
        finding = finding._replace(size=status.st_size, mtime_ns=status.st_mtime_ns)
        check_regular(status)
        with open(job.path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
        finding = finding._replace(sha256=digest.hexdigest())
        if not status.st_size:
            raise DecodeError("the file is empty")
        return finding._replace(**decode(job.path)) if job.is_decoded else finding
    except FileNotFoundError:
        return finding._replace(problem="missing", reason="No such file or directory")
    except OSError as error:
        return finding._replace(problem="unreadable", reason=reason(error))
    except DecodeError as error:
        return finding._replace(problem=error.problem, reason=str(error))


def decode(path: str) -> dict[str, Any]:
    """Decode strictly; where that fails, as training does, where the decoder patches up what is damaged. What
    Finding says of the pictures. Raises DecodeError.
    """
    with PyAVReader(path) as reader:
        stream = reader.stream
        found = {
            "codec": stream.codec_context.name,
            "height": stream.height,
            "width": stream.width,
            "num_frames": len(reader),
            "unshown": reader.num_unshown,
            **pace(reader),
        }
        failure = damage(path, len(reader))
        if failure:
            deque(reader.frames(), maxlen=0)
            found["damage"] = f"decodes only with pictures patched up: {failure}"
        return found


def damage(path: str, num_frames: int) -> str:
    """Why the frames cannot be decoded without patching up pictures; empty where they can."""
    decoded, has_keyframe = 0, False
    with VideoFile(path) as video:
        video.stream.codec_context.options = {"err_detect": "explode"}
        try:
            for packet in video.packets():
                has_keyframe |= packet.is_keyframe
                try:
                    decoded += len(video.decode(packet))
                except DecodeError:
                    if has_keyframe:
                        raise
        except DecodeError as error:
            return f"{error} after {decoded} frames"
    return "" if decoded >= num_frames else f"{decoded} of {num_frames} frames can be decoded"


def pace(reader: PyAVReader) -> dict[str, Any]:
    """Duration, frame rate, how many frames are lost between the first and the last, and the number of uneven
    steps, from the times of the frames.
    """
    seconds = np.array(reader.seconds, float)
    if len(seconds) < 2:
        rate = float(reader.given_rate)
        return {"duration": len(seconds) / rate, "frame_rate": rate}
    steps, tick = np.diff(seconds), float(reader.stream.time_base or 0)
    usual, span = float(np.median(steps)), float(seconds[-1] - seconds[0])
    regular = 1 / float(reader.given_rate)
    gaps = steps / regular
    # Of a constant rate, every step is a multiple of the regular one.
    is_constant = bool((abs(gaps - gaps.round()) * regular <= max(1.5 * tick, 0.1 * regular)).all())
    return {
        "duration": round(span + usual, 6),
        "frame_rate": round(len(steps) / span, 4),
        "lost": int(gaps.round().sum()) - len(steps) if is_constant and gaps.min() > 0.5 else 0,
        "uneven": int((abs(steps - usual) > max(1.5 * tick, 0.1 * usual)).sum()),
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
    if finding.unshown:
        yield (
            "begins in the middle",
            f"the first {finding.unshown} frames need others that are not there, and are not counted",
        )
    if finding.lost > UNEVEN * finding.num_frames:
        total = finding.num_frames + finding.lost
        yield "frames lost", f"{finding.num_frames} of {total} frames are there, at a constant rate with gaps"
    elif finding.uneven > UNEVEN * finding.num_frames:
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
    """Examine the list's videos and write all files. Raises InputError where another process does."""
    out = Path(os.path.abspath(options.out or options.list.parent))
    with held_folder(out):
        return verify_into(out, options)


def verify_into(out: Path, options: argparse.Namespace) -> dict[str, Any]:
    root, stem = Path(os.path.abspath(options.list.parent)), options.list.stem
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
    """Remove what killed runs left, and see that nothing of others would be overwritten."""
    if report.suffix != ".html":
        raise InputError(f"--report is {report}; expected a name that ends in .html")
    try:
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
