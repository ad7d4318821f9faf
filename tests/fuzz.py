"""Damage small videos at random and read them with every decoder: each is read, or refused in one clear line.

    python tests/fuzz.py --files 2400 --out /tmp/fuzz
    python tests/fuzz.py --files 2400 --out /tmp/fuzz --only 1234

File number n is one of `foreign.KINDS` or `foreign.HOSTILE`, damaged by a generator that is keyed by
(seed, n): the same options give the same files. Each decoder reads it in a process of its own; every fourth
one is examined by verify.py's and transcode.py's functions too. A crash, a hang, an exception that is no
DecodeError, and wrong frames of a file that is whole or cut short are failures: they are listed with the
number to repeat them by, their files stay under --out, and the exit status is 1. Takes about 25 minutes on 2
cores; not part of `make test`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import av
import foreign
import numpy as np
import torch
from tabulate import tabulate

from video_iresnet.data.decode import BACKENDS, DecodeError, load_backend, open_video
from video_iresnet.data.records import Record
from video_iresnet.prep import examine as examination
from video_iresnet.prep import transcode
from video_iresnet.runtime.errors import InputError

fork = multiprocessing.get_context("fork")

TOLERANCE = (
    4  # mean levels of luma by which a frame may differ from plain decoding; its neighbours differ by 7
)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # differs least between ways of scaling chroma up
OUTCOMES = ("read", "refused", "wrong", "exception", "crash", "hang")
FAILURES = OUTCOMES[2:]
PREPARED_EVERY = 4  # every n-th file is verified and transcoded too


# ---- damage


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data))]


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """Other values for 1 to 64 bytes."""
    damaged = bytearray(data)
    for place in rng.integers(len(data), size=2 ** rng.integers(7)):
        damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Other values for 1 to 8 bytes among the first 600, or in the tables of an MP4."""
    moov = data.find(b"moov")
    start = moov if moov >= 0 and rng.integers(2) else 0
    stop = min(len(data), start + (1200 if start else 600))
    return data[:start] + _flip_some(data[start:stop], 2 ** rng.integers(4), rng) + data[stop:]


def _flip_some(data: bytes, number: int, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for place in rng.integers(len(data), size=number):
        damaged[place] ^= 1 << int(rng.integers(8)) if rng.integers(2) else int(rng.integers(1, 256))
    return bytes(damaged)


def _block(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """Start and end of up to an eighth of the file."""
    size = int(rng.integers(1, max(2, len(data) // 8)))
    start = int(rng.integers(max(1, len(data) - size)))
    return start, start + size


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:start] + bytes(stop - start) + data[stop:]


def noise(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:start] + rng.bytes(stop - start) + data[stop:]


def remove(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:start] + data[stop:]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _block(data, rng)
    return data[:stop] + data[start:]


def swap(data: bytes, rng: np.random.Generator) -> bytes:
    """Exchange a block and its neighbour."""
    start, stop = _block(data, rng)
    end = 2 * stop - start
    return data[:start] + data[stop:end] + data[start:stop] + data[end:]


DAMAGES = (cut, flip, flip_header, zero, noise, remove, repeat, swap)


class Case(NamedTuple):
    number: int
    kind: str
    damage: str  # "whole", or the name of one of DAMAGES


def plan(num_damaged: int) -> list[Case]:
    """Each kind whole, the hostile files, then damaged ones: kinds in turn, damages in turn."""
    kinds = list(foreign.KINDS)
    cases = [(kind, "whole") for kind in [*kinds, *foreign.HOSTILE]]
    cases += [
        (kinds[n % len(kinds)], DAMAGES[n // len(kinds) % len(DAMAGES)].__name__) for n in range(num_damaged)
    ]
    return [Case(number, *case) for number, case in enumerate(cases)]


def make(case: Case, originals: Path, folder: Path, seed: int) -> Path:
    if case.damage == "whole":
        return originals / case.kind
    rng = np.random.default_rng([seed, case.number])
    damage = next(damage for damage in DAMAGES if damage.__name__ == case.damage)
    path = folder / f"{case.number:06d}_{case.kind}"
    path.write_bytes(damage((originals / case.kind).read_bytes(), rng))
    return path


# ---- what happens to a file; each of these runs in a process of its own


def plain_decoding(path: Path) -> list[np.ndarray]:
    """The frames that decoding in file order gives: packets that cannot be decoded are left out."""
    frames = []
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        if "still_first" in path.name:
            stream = container.streams.video[1]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        with contextlib.suppress(IndexError):  # a stream appears
            for packet in container.demux(stream):
                with contextlib.suppress(av.FFmpegError):
                    frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
    across = -1 if "mirrored_across" in path.name else 1
    down = -1 if "mirrored_down" in path.name else 1
    return [frame[::down, ::across] for frame in frames]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Mean levels of luma."""
    return float(np.abs(one @ LUMA - other @ LUMA).mean()) if one.shape == other.shape else np.inf


def read(case: Case, path: Path, seed: int, *, backend: str) -> tuple[str, str]:
    """Random frames in random order, singly and in batches; where the file is whole or cut short, they are
    compared with all of its frames in order.
    """
    rng = np.random.default_rng([seed, case.number, 1])
    is_video = case.kind in foreign.KINDS
    try:
        with open_video(Record(path.name, str(path), 0), backend) as reader:
            count, rate = len(reader), reader.fps
            if not (count > 0 and 0 < rate < np.inf):
                return "wrong", f"{count} frames, {rate} frames a second"
            calls = [[int(index)] for index in rng.integers(count, size=6)]
            calls += [rng.integers(count, size=rng.integers(1, 9)).tolist() for _ in range(3)]
            calls.append(sorted(calls[-1]))
            found = [(call, reader.read(call)) for call in calls]
        is_compared = is_video and foreign.KINDS[case.kind].numbers is not None
        if not is_compared or case.damage not in ("whole", "cut"):
            return "read", f"{count} frames"
        with open_video(Record(path.name, str(path), 0), backend) as reader:
            everything = reader.read(range(count))
    except DecodeError as error:
        outcome = "wrong" if is_video and case.damage == "whole" else "refused"
        return ("exception", f"{error!r}") if "\n" in str(error) else (outcome, str(error))
    expected = plain_decoding(path)
    if len(expected) != count:
        return "wrong", f"{count} frames; plain decoding gives {len(expected)}"
    for index in range(count):
        if distance(everything[index].numpy(), expected[index]) > TOLERANCE:
            return "wrong", f"frame {index} of {count} is another than in plain decoding"
    for call, frames in found:
        if not torch.equal(frames, everything[call]):
            return "wrong", f"{call} of {count} frames are others than when all are read"
    return "read", f"{count} frames"


def examine(case: Case, path: Path, seed: int) -> tuple[str, str]:
    finding = examination.examine(examination.Job(str(path), True))
    if finding.problem:
        outcome = "wrong" if case.kind in foreign.KINDS and case.damage == "whole" else "refused"
        return outcome, f"{finding.problem}: {finding.reason}"
    return "read", f"{finding.num_frames} frames"


def encode(case: Case, path: Path, seed: int) -> tuple[str, str]:
    target = path.parent / f"{case.number:06d}.transcoded.mp4"
    try:
        outcome = transcode.transcode(
            transcode.Job(str(path), str(target), transcode.Settings(48, 12, 28, "ultrafast"))
        )
    except InputError as error:
        return "exception", repr(error)
    finally:
        for left in path.parent.glob(f"*{case.number:06d}.transcoded*"):
            left.unlink()
    if outcome.failure:
        is_whole = case.kind in foreign.KINDS and case.damage == "whole"
        return "wrong" if is_whole else "refused", outcome.failure
    return "read", ""


Check = Callable[[Case, Path, int], tuple[str, str]]
READERS: dict[str, Check] = {name: partial(read, backend=name) for name in BACKENDS}
PREPARATION: dict[str, Check] = {"verify": examine, "transcode": encode}


# ---- processes


class Result(NamedTuple):
    case: Case
    reader: str
    outcome: str
    detail: str


def child(check: Check, case: Case, path: Path, seed: int, answer: Connection, errors: int) -> None:
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    torch.set_num_threads(1)
    try:
        answer.send(check(case, path, seed))
    except BaseException:
        answer.send(("exception", traceback.format_exc()))
    os._exit(0)  # what libraries do at the end of a process is not looked at


def isolated(check: Check, case: Case, path: Path, seed: int, timeout: float) -> tuple[str, str]:
    """The check in a process of its own: (outcome, detail)."""
    here, there = fork.Pipe(duplex=False)
    with tempfile.TemporaryFile() as errors:
        process = fork.Process(target=child, args=(check, case, path, seed, there, errors.fileno()))
        process.start()
        there.close()
        try:
            outcome = here.recv() if here.poll(timeout) else ("hang", f"after {timeout:g} seconds")
        except EOFError:
            process.join()
            number = -(process.exitcode or 0)
            outcome = "crash", signal.Signals(number).name if number > 0 else f"exit status {-number}"
        process.kill()
        process.join()
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    here.close()
    if outcome[0] in ("read", "refused") and ("Traceback (most" in text or "Exception ignored" in text):
        return "exception", text
    return outcome


def check_case(
    case: Case, originals: Path, out: Path, seed: int, timeout: float, names: list[str]
) -> list[Result]:
    path = make(case, originals, out, seed)
    checks = {name: READERS[name] for name in names}
    if case.damage == "whole" or case.number % PREPARED_EVERY == 0:
        checks.update(PREPARATION)
    results = [
        Result(case, name, *isolated(check, case, path, seed, timeout)) for name, check in checks.items()
    ]
    if path.parent == out and not any(result.outcome in FAILURES for result in results):
        path.unlink()
    return results


def build_originals(folder: Path, kinds: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    builders = {name: kind.build for name, kind in foreign.KINDS.items()} | foreign.HOSTILE
    for name in sorted(set(kinds)):
        if not os.path.lexists(folder / name):
            builders[name](folder / name)


# ---- the report


def report(results: list[Result], seed: int) -> int:
    """Print what happened, by kind and by reader; return how many failed."""
    names = [name for name in (*READERS, *PREPARATION) if any(result.reader == name for result in results)]
    tables = {
        "kind": lambda case: case.kind,
        "damage": lambda case: case.damage if case.kind in foreign.KINDS else "hostile",
    }
    for title, key in tables.items():
        counts: dict[tuple[str, str], Counter[str]] = {}
        for result in results:
            counts.setdefault((key(result.case), result.reader), Counter())[result.outcome] += 1
        rows = []
        for group in dict.fromkeys(key(result.case) for result in results):
            of_group = [counts.get((group, name), Counter()) for name in names]
            failed = [f"{n} {outcome}" for outcome in FAILURES if (n := sum(c[outcome] for c in of_group))]
            cells = [f"{count['read']} / {count['refused']}" for count in of_group]
            rows.append([group, max(count.total() for count in of_group), *cells, ", ".join(failed)])
        headers = [title, "files", *(f"{name}: read / refused" for name in names), "failed"]
        print(tabulate(rows, headers), end="\n\n")
    totals = {name: Counter(r.outcome for r in results if r.reader == name) for name in names}
    print(
        tabulate(
            [[n, c.total(), *(c[o] for o in OUTCOMES)] for n, c in totals.items()],
            ["reader", "files", *OUTCOMES],
        )
    )
    failures = sorted((r for r in results if r.outcome in FAILURES), key=lambda r: -OUTCOMES.index(r.outcome))
    for number, name, outcome, detail in ((r.case.number, r.reader, r.outcome, r.detail) for r in failures):
        case = next(r.case for r in failures if r.case.number == number)
        text = " ".join(detail.strip().splitlines()[-1:])[:160]
        print(f"--seed {seed} --only {number}: {case.kind}, {case.damage}: {name}: {outcome}: {text}")
    return len(failures)


def run(
    cases: list[Case], out: Path, *, seed: int = 0, timeout: float = 60, processes: int, names: list[str]
) -> list[Result]:
    """What became of each file with each of the decoders `names`, and with the scripts of preparation."""
    originals = out / "originals"
    build_originals(originals, [case.kind for case in cases])
    check = partial(check_case, originals=originals, out=out, seed=seed, timeout=timeout, names=names)
    found = []
    with ProcessPoolExecutor(processes, mp_context=fork) as pool:
        for number, results in enumerate(pool.map(check, cases), 1):
            found += results
            if number % 100 == 0:
                failed = sum(result.outcome in FAILURES for result in found)
                print(f"{number} of {len(cases)} files, {failed} failures", flush=True)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files", type=int, default=2400, help="damaged files, beside one whole of each kind"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "video_iresnet_fuzz")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of files, to repeat failures")
    parser.add_argument("--timeout", type=float, default=30, help="seconds that a reader has for a file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    names = []
    for name in BACKENDS:
        try:
            load_backend(name)
            names.append(name)
        except InputError as error:
            print(f"not tried: {error}")
    cases = plan(options.files)
    if options.only:
        cases = [cases[number] for number in options.only]
    results = run(
        cases,
        options.out,
        seed=options.seed,
        timeout=options.timeout,
        processes=options.processes,
        names=names,
    )
    return 1 if report(results, options.seed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
