"""Benchmarks, as ratios within one run, in Markdown tables with date, machine and command.

python tools/benchmark.py data --cfg CONFIG.yaml [--videos A.mp4 B.mp4 ...] [--repeats 30] [KEY VALUE ...]
    Time a training sample by stage, in one thread, and a whole test video; compare them with the plain way of
    other projects, also after data_prep/transcode.py. Default: the first videos of the training list.
python tools/benchmark.py folders --cfg CONFIG.yaml --folders A B --samples 200 [KEY VALUE ...]
    Training samples from several DATA.PATH_TO_DATA_DIR with the same list, such as loose files and shards.
python tools/benchmark.py memory [--records 100000]
    Memory of a process and its two decoding workers over an epoch, with packed records and with a list.
python tools/benchmark.py model --cfg CONFIG.yaml [--clips 8,16,...] [--repeats 30] [--compile] [KEY VALUE]
    Training steps and test views of a network, from an ordinary loop to the fastest, with random clips,
    beside torchvision's r3d_18; and the half-precision errors of its convolutions.
python tools/benchmark.py train --cfg CONFIG.yaml [--steps 40] [KEY VALUE ...]
    Training from the videos of the training list: loading alone, the step alone, both, and the waiting.
python tools/benchmark.py test --cfg CONFIG.yaml [--videos A.mp4 B.mp4 ...] [KEY VALUE ...]
    Testing from videos, against one view at a time. Default: the first videos of the test list.

All take --out FILE.json for the same numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

# Waiting threads should sleep, as in run_net.py. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import av
import torch
from tabulate import tabulate

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.decode.image import is_image
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.records import Record
from video_iresnet.engine.precision import supports
from video_iresnet.engine.probe import HEADERS, convolutions, probe, rows
from video_iresnet.runtime.cores import processor, usable_cores
from video_iresnet.runtime.devices import prepare
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import atomic_write
from video_iresnet.speed import memory, whole
from video_iresnet.speed.data import STAGES, compare_folders, compare_samples, compare_tests
from video_iresnet.speed.model import testing_ways, training_ways
from video_iresnet.speed.timing import measure, peak

ROOT = Path(__file__).resolve().parents[1]


class Table(NamedTuple):
    """A table and what it shows, in words."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[Any]]


def transcoded(videos: Sequence[str], folder: Path) -> dict[str, str]:
    """Transcode the videos with data_prep/transcode.py into a folder."""
    (folder / "list.csv").write_text("".join(f"{Path(video).resolve()},0\n" for video in videos))
    out = folder / "out"
    script = [sys.executable, str(ROOT / "data_prep/transcode.py")]
    command = [*script, "--list", str(folder / "list.csv"), "--out", str(out), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"data_prep/transcode.py failed: {done.stderr.strip().splitlines()[-1]}")
    outputs = {video: (out / Path(video).resolve().relative_to("/")).with_suffix(".mp4") for video in videos}
    for video, path in outputs.items():
        if not path.exists():
            raise InputError(
                f"--videos: {video} cannot be read; take another one (data_prep/verify.py says what is wrong "
                "with it)"
            )
    return {video: str(path) for video, path in outputs.items()}


def chosen(options: argparse.Namespace, cfg: Config, key: str, number: int) -> list[Record]:
    """Return the videos of --videos, or else the first ones of a list. Raises InputError if one is absent."""
    for video in options.videos:
        if not os.path.exists(video):
            raise InputError(f"--videos: {video} does not exist; correct it")
    if options.videos:
        return [Record(Path(video).name, video, 0) for video in options.videos]
    return list(build.build_records(cfg, key)[:number])


def at_least(least: int, **numbers: int) -> None:
    """Raise InputError where an option is too small."""
    for name, number in numbers.items():
        if number < least:
            raise InputError(f"--{name} is {number}; expected {least} or more")


def benchmark_data(options: argparse.Namespace) -> Iterator[Table]:
    cfg = load_config(options.cfg, options.overrides)
    videos = [record.path for record in chosen(options, cfg, "DATA.TRAIN_LIST", 4)]
    at_least(1, repeats=options.repeats)
    if pictures := [video for video in videos if is_image(video)]:
        raise InputError(f"{pictures[0]} is a picture, and ways to decode videos are compared; name videos")
    torch.set_num_threads(1)
    data = build.build_training_data(cfg, [])
    stages, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        small = transcoded(videos, Path(folder))
        for video in videos:
            paths = {"plain": video, "here": video, "here, transcoded": small[video]}
            records = {name: Record(Path(video).name, path, 0) for name, path in paths.items()}
            watches = compare_samples(data, records, cfg, options.repeats)
            times = {name: watch.milliseconds("sample") for name, watch in watches.items()}
            tests = compare_tests(cfg, records, max(1, options.repeats // 10))
            kinds = {
                f"sample {build.clip_text(cfg)}": times,
                f"test {cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}": tests,
            }
            for kind, values in kinds.items():
                for name, value in values.items():
                    row = Path(video).name, kind, name, f"{value:.1f}", f"{values['plain'] / value:.1f}"
                    ratios.append(row)
            for name in ("here", "here, transcoded"):
                parts = [watches[name].milliseconds(stage) for stage in STAGES]
                largest = max(range(len(parts)), key=lambda i: parts[i])
                bound = f"{STAGES[largest]} ({100 * parts[largest] / sum(parts):.0f} %)"
                shown = [f"{part:.2f}" for part in parts]
                stages.append((Path(video).name, name, *shown, f"{1000 / sum(parts):.1f}", bound))
    headers = ["video", "version", *(f"{stage}, ms" for stage in STAGES), "samples/s per core", "bound by"]
    about = f"one thread, PyAV {av.__version__}, {cfg.DATA.DECODING_BACKEND}"
    yield Table(f"Stages of a training sample, {about}", headers, stages)
    yield Table("Against the plain way", ["video", "what", "way", "ms", "times as fast"], ratios)


def benchmark_folders(options: argparse.Namespace) -> Iterator[Table]:
    cfg = load_config(options.cfg, options.overrides)
    at_least(1, samples=options.samples)
    torch.set_num_threads(1)
    found = compare_folders(cfg, options.folders, options.samples)
    first = found[options.folders[0]][0]
    yield Table(
        f"Samples of {build.clip_text(cfg)} from folders, one thread, {cfg.DATA.DECODING_BACKEND}",
        ["folder", "ms", "times as fast", "equal samples"],
        [
            (folder, f"{time:.2f}", f"{first / time:.2f}", f"{same} of {options.samples}")
            for folder, (time, same) in found.items()
        ],
    )


def benchmark_memory(options: argparse.Namespace) -> Iterator[Table]:
    at_least(memory.FEWEST, records=options.records)
    used = memory.over_an_epoch(options.records)
    yield Table(
        f"The memory of a process and its two decoding workers in MB over an epoch of {options.records:,} "
        "records",
        ["records", "10 %", "40 %", "70 %", "end", "grown by"],
        [
            (name, *(f"{value:.1f}" for value in some), f"{some[-1] - some[0]:+.1f}")
            for name, some in used.items()
        ],
    )


def start(cfg: Config) -> Processes:
    """Return the process and its device, set up as a run does."""
    processes = Processes(use_gpu=cfg.NUM_GPUS > 0)
    prepare(processes.device, cfg.ALLOW_TF32, processes.local_size)
    return processes


def benchmark_model(options: argparse.Namespace) -> Iterator[Table]:
    cfg = load_config(options.cfg, options.overrides)
    at_least(1, repeats=options.repeats, clips=min(options.clips))
    cfg.TRAIN.HALF_PROBLEMS = "float32"
    processes = start(cfg)
    device, half = processes.device, getattr(torch, cfg.TRAIN.HALF_DTYPE)
    has_half = supports(device, half)
    peaks = {False: peak(device, torch.float32), True: peak(device, half) if has_half else 0.0}
    name = f"{cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH}, {cfg.DATA.NUM_FRAMES} frames"
    products = f"large matrix products: float32 {peaks[False] / 1e12:.3f} TFLOP/s"
    if has_half:
        products += f", {cfg.TRAIN.HALF_DTYPE} {peaks[True] / 1e12:.3f}"
    for title, ways_of, size in (
        ("Training steps", training_ways, cfg.DATA.TRAIN_CROP_SIZE),
        ("Test views", testing_ways, cfg.DATA.TEST_CROP_SIZE),
    ):
        lines: list[tuple[Any, ...]] = []
        for clips in options.clips:
            ways = ways_of(cfg, clips, processes, has_half, options.compile)
            costs = measure({way: ways[way].make for way in ways}, device, options.repeats)
            first = next(iter(costs.values()), None)
            for way, (_, is_half, operations) in ways.items():
                if (cost := costs.get(way)) is None or first is None:
                    lines.append((way, clips, "out of memory", "-", "-", "-"))
                    continue
                share = clips * operations / cost.seconds / peaks[is_half]
                memory_used = f"{cost.memory / 2**30:.2f}" if device.type == "cuda" else "not measured"
                numbers = f"{clips / cost.seconds:.2f}", f"{first.seconds / cost.seconds:.2f}"
                lines.append((way, clips, *numbers, f"{100 * share:.0f} %", memory_used))
        headers = ["way", "clips", "clips/s", "times as fast", "of the matrix product", "GiB"]
        yield Table(f"{title} of {name} of {size} pixels; {products}", headers, lines)
    if has_half:
        shape = 1, 3, cfg.DATA.NUM_FRAMES, *[cfg.DATA.TRAIN_CROP_SIZE] * 2
        network = build.build_network(cfg, device)
        found = probe(network, convolutions(network, shape, training=True), device, half)
        yield Table(
            f"Convolutions in {cfg.TRAIN.HALF_DTYPE}; errors in its epsilons", HEADERS, rows(found, half)
        )


def benchmark_train(options: argparse.Namespace) -> Iterator[Table]:
    cfg = build.without_multigrid(load_config(options.cfg, options.overrides))
    at_least(1, steps=options.steps)
    processes = start(cfg)
    records = build.build_records(cfg, "DATA.TRAIN_LIST")
    network = build.build_network(cfg, processes.device)
    build.check_precision(cfg, network, processes)
    found = whole.training(cfg, records, build.build_step(cfg, network, processes), options.steps, processes)
    size = cfg.DATA.TRAIN_CROP_SIZE
    yield Table(
        f"Training {cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH} on clips of {build.clip_text(cfg)} @{size}, "
        f"{cfg.TRAIN.BATCH_SIZE} at a time, {cfg.DATA_LOADER.NUM_WORKERS} workers; waiting for data: "
        f"{100 * found.waiting:.0f} % of the time",
        ["what", "clips/s"],
        [
            ("loading alone", f"{found.loading:.2f}"),
            ("the step alone", f"{found.step:.2f}"),
            ("both", f"{found.both:.2f}"),
        ],
    )


def benchmark_test(options: argparse.Namespace) -> Iterator[Table]:
    cfg = load_config(options.cfg, options.overrides)
    processes = start(cfg)
    records = chosen(options, cfg, "DATA.TEST_LIST", 8)
    found = {
        "one view at a time": whole.plain_testing(cfg, records, processes.device),
        "here": whole.testing(cfg, records, processes),
    }
    slowest = found["one view at a time"]
    views = f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS} @{cfg.DATA.TEST_CROP_SIZE}"
    yield Table(
        f"Testing {cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH} with {views} views of {build.clip_text(cfg)}",
        ["way", "videos/s", "times as fast"],
        [(way, f"{speed:.3f}", f"{speed / slowest:.1f}") for way, speed in found.items()],
    )


def numbers(text: str) -> list[int]:
    """8,16 -> [8, 16]."""
    return [int(number) for number in text.split(",")]


def show(options: argparse.Namespace, arguments: list[str]) -> None:
    """Print the tables of a command, and write them to --out."""
    about = {
        "date": str(date.today()),
        "machine": f"{device()}, {usable_cores()} cores, PyTorch {torch.__version__}",
        "command": shlex.join(["python", "tools/benchmark.py", *arguments]),
    }
    print(f"{about['date']}, {about['machine']}:\n{about['command']}")
    tables = []
    for table in options.tables(options):
        print(f"\n{table.title}\n")
        print(tabulate(table.rows, headers=table.headers, tablefmt="github", disable_numparse=True))
        tables.append(table._asdict())
    if options.out:
        with atomic_write(options.out) as file:
            json.dump(about | {"tables": tables}, file, indent=1)


def device() -> str:
    """Return the name of the first GPU, or else of the processor."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


COMMANDS = {
    "data": benchmark_data,
    "folders": benchmark_folders,
    "memory": benchmark_memory,
    "model": benchmark_model,
    "train": benchmark_train,
    "test": benchmark_test,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, tables in COMMANDS.items():
        command = commands.add_parser(name)
        command.set_defaults(tables=tables)
        command.add_argument("--out", default="", metavar="FILE.json")
        if name == "memory":
            command.add_argument("--records", type=int, default=100_000)
            continue
        command.add_argument("--cfg", required=True, metavar="CONFIG.yaml")
        if name in ("data", "test"):
            command.add_argument("--videos", nargs="+", default=[])
        if name == "folders":
            command.add_argument("--folders", nargs="+", required=True)
            command.add_argument("--samples", type=int, default=200)
        if name in ("data", "model"):
            command.add_argument("--repeats", type=int, default=30)
        if name == "model":
            command.add_argument("--clips", type=numbers, default=[8], metavar="N[,N...]")
            command.add_argument("--compile", action="store_true")
        if name == "train":
            command.add_argument("--steps", type=int, default=40)
        command.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    options = parser.parse_args(arguments)
    return exit_code(lambda: show(options, arguments), DecodeError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
