"""Benchmark data loading, in one thread, as ratios within one run.

python tools/benchmark.py data --cfg CONFIG.yaml [--videos A.mp4 B.mp4 ...] [--repeats 30] [KEY VALUE ...]
    Time a training sample by stage; compare it with the plain way of other projects, also after
    data_prep/transcode.py; then time a whole test video. Default: the first videos of the training list.
python tools/benchmark.py memory [--records 100000]
    Memory of a process and its two decoding workers over an epoch, with packed records and with a list.
"""

from __future__ import annotations

import argparse
import bisect
import copy
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import av
import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.dataset import ClipDataset, SampleKey
from video_iresnet.data.decode.reader import DecodeError, Reader
from video_iresnet.data.functional import crop, short_side_size, spread_crops
from video_iresnet.data.loader import BatchShape, EpochBatches, clip_loader, collate_clips
from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import DenseSampler, Timeline
from video_iresnet.data.transforms import Compose, ShortSideJitter
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.seeding import Stream, generator

ROOT = Path(__file__).resolve().parents[1]
FEWEST = 500  # records per batch when measuring memory
STAGES = ("open and scan", "decode and convert", "crop, flip, augment", "collate")


class Stopwatch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds.setdefault(stage, []).append(time.perf_counter() - begin)

    def milliseconds(self, stage: str) -> float:
        """Return the median."""
        return 1000 * statistics.median(self.seconds[stage])


def plain_clip(path: str, indices: Sequence[int]) -> Tensor:
    """Read (T, H, W, 3) frames the plain way: seek to the first one, convert every frame up to the last one,
    then select.
    """
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        rate = float(stream.average_rate)
        start = stream.start_time or 0
        container.seek(start + round(indices[0] / rate / stream.time_base), stream=stream)
        numbers, frames = [], []
        for frame in container.decode(stream):
            number = round(float((frame.pts - start) * stream.time_base) * rate)
            if number >= indices[0]:
                numbers.append(number)
                frames.append(frame.reformat(format="rgb24", threads=1).to_ndarray())
            if number >= indices[-1]:
                break
    chosen = [min(bisect.bisect_left(numbers, index), len(numbers) - 1) for index in indices]
    return torch.from_numpy(np.stack(frames))[chosen]


def plain_sample(
    path: str,
    indices: Sequence[int],
    short_side: int,
    size: int,
    position: tuple[float, float] | tuple[int, int],
) -> Tensor:
    """Make a training sample or a test view the plain way: float, normalize full frames, resize, crop at
    (top, left), or at fractions of the room.
    """
    clip = plain_clip(path, indices).float() / 255
    clip = ((clip - 0.45) / 0.225).permute(3, 0, 1, 2)
    clip = F.interpolate(
        clip, short_side_size(*clip.shape[2:], short_side), mode="bilinear", align_corners=False
    )
    top, left = (
        int(c * (length - size)) if isinstance(c, float) else c
        for c, length in zip(position, clip.shape[2:], strict=True)
    )
    return clip[:, :, top : top + size, left : left + size].contiguous()


def training_sample(data: ClipDataset, record: Record, cfg: Config, draw: int, watch: Stopwatch) -> None:
    """Time a sample of the data set by stage, and its collation."""
    watched = copy.copy(data)
    watched.records = [record]

    def open_video(record: Record) -> Reader:
        with watch(STAGES[0]):
            reader = data.open_video(record)
        read = reader.read

        def timed(indices: Sequence[int]) -> Tensor:
            with watch(STAGES[1]):
                return read(indices)

        reader.read = timed  # type: ignore[method-assign]
        return reader

    watched.open_video = open_video
    with watch("sample"):
        sample = watched[SampleKey(draw, 0, *build.batch_shape(cfg)[1:])]
    total, opening, reading = (watch.seconds[stage][-1] for stage in ("sample", *STAGES[:2]))
    watch.seconds.setdefault(STAGES[2], []).append(total - opening - reading)
    with watch(STAGES[3]):
        collate_clips([sample])


def length_and_rate(data: ClipDataset, record: Record) -> Timeline:
    with data.open_video(record) as reader:
        return Timeline(len(reader), reader.fps)


def compare_samples(
    data: ClipDataset, records: dict[str, Record], cfg: Config, repeats: int
) -> dict[str, Stopwatch]:
    """Time a training sample of each version of a video, in turn, so that changes of the machine's speed
    affect all.
    """
    watches = {name: Stopwatch() for name in records}
    original = records["plain"]
    timeline = length_and_rate(data, original)
    for draw in tqdm(range(repeats), desc=f"samples of {original.name}", leave=False):
        for name, record in records.items():
            if name == "plain":
                rng = generator(cfg.RNG_SEED, Stream.SAMPLE, draw, 0)
                indices = data.sampler.random_clip(
                    timeline, cfg.DATA.NUM_FRAMES, rng, cfg.DATA.TRAIN_JITTER_RATE
                )
                with watches[name]("sample"):
                    plain_sample(
                        record.path,
                        indices,
                        int(rng.integers(256, 321)),
                        cfg.DATA.TRAIN_CROP_SIZE,
                        (rng.random(), rng.random()),
                    )
            else:
                training_sample(data, record, cfg, draw, watches[name])
    return watches


def compare_tests(cfg: Config, records: dict[str, Record], repeats: int) -> dict[str, float]:
    """Return milliseconds for all views of a video, with separate decodings and with one."""
    results: dict[str, list[float]] = {}
    for _ in tqdm(range(repeats), desc=f"test views of {records['plain'].name}", leave=False):
        for name, record in records.items():
            data = build.build_test_data(cfg, [record])
            begin = time.perf_counter()
            if name == "plain":
                with data.open_video(record) as reader:
                    clips = data.sampler.uniform_clips(
                        Timeline(len(reader), reader.fps), data.num_frames, data.num_clips
                    )
                size = av_size(record.path)
                for clip in clips:
                    for position in spread_crops(
                        *short_side_size(*size, data.short_side), data.crop_size, data.num_crops
                    ):
                        plain_sample(record.path, clip, data.short_side, data.crop_size, position)
            else:
                views = data[0]
                for clip in views.clips:
                    for top, left in views.crops:
                        crop(views.frames, top, left, data.crop_size, data.crop_size)[clip]
            results.setdefault(name, []).append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in results.items()}


def av_size(path: str) -> tuple[int, int]:
    with av.open(path) as container:
        return container.streams.video[0].height, container.streams.video[0].width


def transcoded(videos: Sequence[str], folder: Path) -> dict[str, str]:
    """Transcode the videos with data_prep/transcode.py into a folder."""
    (folder / "list.csv").write_text("".join(f"{Path(video).resolve()},0\n" for video in videos))
    script, out = str(ROOT / "data_prep/transcode.py"), folder / "out"
    command = [
        sys.executable,
        script,
        "--list",
        str(folder / "list.csv"),
        "--out",
        str(out),
        "--workers",
        "1",
    ]
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


def benchmark_data(options: argparse.Namespace) -> None:
    cfg = load_config(options.cfg, options.overrides)
    videos = options.videos or [record.path for record in build.build_records(cfg, "DATA.TRAIN_LIST")[:4]]
    for video in videos:
        if not os.path.exists(video):
            raise InputError(f"--videos: {video} does not exist; correct it")
    if options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}; expected 1 or more")
    torch.set_num_threads(1)
    data = build.build_training_data(cfg, [])
    print(
        f"{date.today()}, {processor()}, one thread, PyAV {av.__version__}, PyTorch {torch.__version__}, "
        f"{cfg.DATA.DECODING_BACKEND}"
    )
    stages, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        small = transcoded(videos, Path(folder))
        for video in videos:
            paths = {"plain": video, "here": video, "here, transcoded": small[video]}
            records = {name: Record(Path(video).name, path, 0) for name, path in paths.items()}
            watches = compare_samples(data, records, cfg, options.repeats)
            times = {name: watch.milliseconds("sample") for name, watch in watches.items()}
            tests = compare_tests(cfg, records, max(1, options.repeats // 10))
            for kind, values in (
                (f"sample {build.clip_text(cfg)}", times),
                (f"test {cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}", tests),
            ):
                for name, value in values.items():
                    ratios.append(
                        (Path(video).name, kind, name, f"{value:.1f}", f"{values['plain'] / value:.1f}")
                    )
            for name in ("here", "here, transcoded"):
                parts = [watches[name].milliseconds(stage) for stage in STAGES]
                largest = max(range(len(parts)), key=lambda i: parts[i])
                bound = f"{STAGES[largest]} ({100 * parts[largest] / sum(parts):.0f} %)"
                stages.append(
                    (
                        Path(video).name,
                        name,
                        *(f"{part:.2f}" for part in parts),
                        f"{1000 / sum(parts):.1f}",
                        bound,
                    )
                )
    headers = ["video", "version", *(f"{stage}, ms" for stage in STAGES), "samples/s per core", "bound by"]
    print(tabulate(stages, headers=headers, tablefmt="github", disable_numparse=True), end="\n\n")
    print(
        tabulate(
            ratios,
            headers=["video", "what", "way", "ms", "times as fast"],
            tablefmt="github",
            disable_numparse=True,
        )
    )


class Grey:
    """A video of grey frames, for any record."""

    fps = 25.0

    def __init__(self, record: Record) -> None:
        self.name = record.name

    def __len__(self) -> int:
        return 4

    def __enter__(self) -> Grey:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, indices: Sequence[int]) -> Tensor:
        return torch.zeros(len(indices), 40, 40, 3, dtype=torch.uint8)


def memory_of(pids: Sequence[int]) -> float:
    """Return the memory of processes in MB, counting shared pages once (Linux)."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return (
        sum(int(size) for text in texts for size in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE)) / 1000
    )


def benchmark_memory(options: argparse.Namespace) -> None:
    if options.records < FEWEST:
        raise InputError(f"--records is {options.records}; expected {FEWEST} or more")
    records = [
        Record(
            f"class {i % 400:03d}/{i:011d}_000000_000010.mp4",
            f"/data/k400/class {i % 400:03d}/{i:011d}_000000_000010.mp4",
            0,
        )
        for i in range(options.records)
    ]
    kinds: dict[str, Callable[[], Sequence[Record]]] = {
        "packed": lambda: PackedRecords(records),
        "list": lambda: records,
    }
    rows = []
    for name, make in kinds.items():
        data = ClipDataset(
            make(),
            sampler=DenseSampler(1),
            open_video=Grey,
            crop=ShortSideJitter(32, 32, 40),
            flip=None,
            augment=Compose([]),
            seed=0,
        )
        batches = EpochBatches(len(records), [BatchShape(FEWEST, 1, 32)], seed=0)
        with clip_loader(data, batches, num_workers=2, pin_memory=False) as loader:
            iterator = iter(loader.loader)
            used = []
            for step in tqdm(range(batches.steps(0)), desc=name, leave=False):
                next(iterator)
                if step in [batches.steps(0) * tenths // 10 for tenths in (1, 4, 7)] + [batches.steps(0) - 1]:
                    used.append(memory_of([os.getpid(), *(worker.pid for worker in iterator._workers)]))
        rows.append((name, *(f"{value:.1f}" for value in used), f"{used[-1] - used[0]:+.1f}"))
    print(
        f"{date.today()}, {processor()}: the memory of a process and its two decoding workers in MB over an "
        f"epoch of {len(records):,} records"
    )
    print(
        tabulate(
            rows,
            headers=["records", "10 %", "40 %", "70 %", "end", "grown by"],
            tablefmt="github",
            disable_numparse=True,
        )
    )


def processor() -> str:
    names = (
        re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return names[0] if names else platform.processor()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("data")
    command.add_argument("--cfg", required=True, metavar="CONFIG.yaml")
    command.add_argument("--videos", nargs="+", default=[])
    command.add_argument("--repeats", type=int, default=30)
    command.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    command.set_defaults(run=benchmark_data)
    command = commands.add_parser("memory")
    command.add_argument("--records", type=int, default=100_000)
    command.set_defaults(run=benchmark_memory)
    options = parser.parse_args(arguments)
    return exit_code(lambda: options.run(options), DecodeError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
