"""Make videos small and fast to decode: H.264 in MP4 of a given short side with a keyframe every 16 frames,
without sound.

    python data_prep/transcode.py --list /data/k400/train.csv --out /data/k400_256 --short-side 256

Every frame is kept, at its time after the first one (variable rates stay variable), upright (rotation is
applied), with its colours' meaning; nothing is enlarged. OUT mirrors the folders of the list's relative
paths, and those of its absolute paths from the root on. At the end OUT holds the list of what succeeded under
the list's own name, and LIST_failed.csv (path, label, reason). Originals are only read.

It can be stopped and started again: a video that is there, from the same source with the same settings, is
skipped; one whose source has changed is made anew. A video appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from video_iresnet.data.decode.container import VideoFile
from video_iresnet.data.decode.picture import orientation
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.records import Record, read_records
from video_iresnet.prep.jobs import add_options, run_jobs
from video_iresnet.prep.lists import held_folder, replace_list, write_csv
from video_iresnet.runtime.errors import InputError, reason
from video_iresnet.runtime.storage import atomic_write, remove_leftovers

ANY_LABEL = 2**31
WRITER = "video_iresnet data_prep/transcode.py"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
# Above SSE4.2 x264 gives other bits on other processors, and with AVX-512 at every run; it costs some percent
# of the time.
ASM = "asm=sse4.2:" if platform.machine().lower() in ("x86_64", "amd64") else ""
# Between two frames that others need stand five that no other needs, and which a reader of clips therefore
# leaves undecoded.
X264 = f"{ASM}bframes=5:b-adapt=0:b-pyramid=none"


class Settings(NamedTuple):
    """What the encoder is told."""

    short_side: int
    gop: int
    crf: int
    preset: str


class Job(NamedTuple):
    """A source, the file to make of it, and how."""

    source: str
    target: str
    settings: Settings


class Outcome(NamedTuple):
    """What became of a job: a failure with its reason, or a file; sizes in bytes."""

    failure: str = ""
    was_there: bool = False
    bytes_before: int = 0
    bytes_after: int = 0


def transcode(job: Job) -> Outcome:
    """Make one video, unless it is there. Raises InputError where the target cannot be written, or holds
    something else.
    """
    try:
        status = os.stat(job.source)
        stamp = make_stamp(job, status)
        if os.path.exists(job.target) and is_made(job, stamp):
            return Outcome("", True, status.st_size, os.path.getsize(job.target))
        with PyAVReader(job.source) as reader, atomic_write(job.target, "w+b") as file:
            num_frames = encode(reader, file, job.settings, json.dumps(stamp))
            check(file, num_frames)
        return Outcome("", False, status.st_size, os.path.getsize(job.target))
    except (DecodeError, OSError) as error:
        return Outcome(reason(error))


def make_stamp(job: Job, status: os.stat_result) -> dict[str, Any]:
    """What a video says of its making. The path of its source is hashed, because videos are passed on."""
    source = hashlib.sha256(os.path.realpath(job.source).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {
        "writer": WRITER,
        "source": source,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        **job.settings._asdict(),
    }


def is_made(job: Job, stamp: dict[str, Any]) -> bool:
    """Whether the target is there for good. Raises InputError where it was made otherwise, or of another
    video.
    """
    try:
        with VideoFile(job.target) as video:
            found = json.loads(video.container.metadata.get("comment", ""))
            ours = found["writer"] == WRITER
    except (DecodeError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(f"{job.target} is there and was not written by this script; name another --out")
    for key, value in job.settings._asdict().items():
        if found.get(key) != value:
            raise InputError(
                f"{job.target} was made with {key} {found.get(key)}, not {value}; give the same options, or "
                "name another --out"
            )
    same_path, same_content = (
        found["source"] == stamp["source"],
        all(found[key] == stamp[key] for key in ("size", "mtime_ns")),
    )
    if not (same_path or same_content):
        raise InputError(
            f"{job.target} was made of another video than {job.source}; name another --out for this list"
        )
    return same_content


def timed_frames(reader: PyAVReader) -> Iterator[VideoFrame]:
    """All frames that the reader numbers, in its order; the first one's time is 0."""
    tick = 1 / reader.given_rate if reader.is_counted else reader.stream.time_base
    seconds = reader.seconds
    for frame, time in zip(reader.frames(), seconds, strict=True):
        frame.pts, frame.time_base = round((time - seconds[0]) / tick), tick
        if reader.is_counted:
            frame.duration = 1
        yield frame


class Output:
    """A file for PyAV to write to. It keeps the reason why the disk takes no more, which PyAV may lose."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._write = file.write
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._write(data)
        except OSError as error:
            self.error = error
            raise


def encode(reader: PyAVReader, file: IO[bytes], settings: Settings, comment: str) -> int:
    """Encode all frames into an MP4 file and return their number. Raises DecodeError, or OSError where `file`
    does not take it.
    """
    pictures = Pictures(settings.short_side)
    output = Output(file)
    num_frames = 0
    try:
        with av.open(output, "w", format="mp4") as target:
            target.metadata["comment"] = comment
            stream = None
            for frame in timed_frames(reader):
                picture = pictures.convert(frame)
                stream = stream or add_stream(
                    target, reader.stream, picture, pictures.is_transposed, settings
                )
                target.mux(stream.encode(picture))
                num_frames += 1
            if stream is not None:
                target.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        if output.error is None:
            raise DecodeError(f"it cannot be encoded: {reason(error)}") from error
    if output.error is not None:
        raise output.error
    return num_frames


def add_stream(
    target: Any, source: VideoStream, picture: VideoFrame, is_transposed: bool, settings: Settings
) -> VideoStream:
    """An H.264 stream for such pictures, with the source's clock, shape of pixels and colours."""
    options = {
        "crf": str(settings.crf),
        "g": str(settings.gop),
        "preset": settings.preset,
        "tune": "fastdecode",
        "flags": "+frame_duration",
        "x264-params": X264,
    }
    stream: VideoStream = target.add_stream("libx264", rate=source.average_rate or 25, options=options)
    context = stream.codec_context
    context.thread_count = 1  # the number of threads would change the bits
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    context.time_base = picture.time_base
    ratio = source.sample_aspect_ratio
    if ratio:
        context.sample_aspect_ratio = 1 / ratio if is_transposed else ratio
    context.color_range, context.colorspace = picture.color_range, picture.colorspace
    context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
    return stream


class Pictures:
    """Turns decoded frames into upright 8-bit 4:2:0 pictures of the right size; the first frame of a video
    tells which.
    """

    def __init__(self, short_side: int) -> None:
        self._short_side = short_side
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None

    def convert(self, frame: VideoFrame) -> VideoFrame:
        if self._size is None:
            self._size = target_size(frame.height, frame.width, self._short_side)
            self.is_transposed, self._flip_rows, self._flip_columns = orientation(frame)
        height, width = self._size
        # RGB has neither a matrix nor a range that could be kept; without names the decoder would have to
        # guess them.
        named: dict[str, Any] = (
            {"dst_colorspace": "ITU601", "dst_color_range": "MPEG"} if frame.format.is_rgb else {}
        )
        picture = self._reformatter.reformat(
            frame, width, height, "yuv420p", interpolation="BICUBIC", threads=1, **named
        )
        if self.is_transposed or self._flip_rows or self._flip_columns:
            picture = self._turn(picture)
        picture.pts, picture.time_base, picture.duration = frame.pts, frame.time_base, frame.duration
        picture.pict_type = 0  # x264 would repeat the source's choice of keyframes
        return picture

    def _turn(self, picture: VideoFrame) -> VideoFrame:
        """Half as many colours as pixels a row and a column: Y, U and V are turned each for itself."""
        height, width = picture.height, picture.width
        planes = np.split(picture.to_ndarray().reshape(-1), [height * width, height * width * 5 // 4])
        turned = []
        for plane, half in zip(planes, (1, 2, 2), strict=True):
            grid = plane.reshape(height // half, width // half)
            grid = grid.T if self.is_transposed else grid
            turned.append(
                grid[:: -1 if self._flip_rows else 1, :: -1 if self._flip_columns else 1].reshape(-1)
            )
        result = VideoFrame.from_ndarray(
            np.concatenate(turned).reshape(-1, height if self.is_transposed else width), format="yuv420p"
        )
        result.color_range, result.colorspace = picture.color_range, picture.colorspace
        result.color_primaries, result.color_trc = picture.color_primaries, picture.color_trc
        return result


def target_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even (height, width) with this short side, or at most the source's own."""
    if min(height, width) <= short_side:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    scale = short_side / min(height, width)
    return round(height * scale / 2) * 2, round(width * scale / 2) * 2


def check(file: IO[bytes], num_frames: int) -> None:
    """Read back what was written, before it gets its name."""
    file.flush()
    file.seek(0)
    with av.open(file, format="mp4") as container:
        found = sum(bool(packet.size) for packet in container.demux(container.streams.video[0]))
    if found != num_frames:
        raise DecodeError(f"{found} of {num_frames} frames were written")


class Likeness(NamedTuple):
    """How a transcoded video resembles its source at the same size, in luma: PSNR in dB of the mean squared
    error, mean SSIM.
    """

    failure: str = ""
    psnr: float = 0.0
    ssim: float = 0.0


def compare(job: Job) -> Likeness:
    """Decode both and compare them frame by frame."""
    pictures = Pictures(job.settings.short_side)
    errors, similarities = [], []
    try:
        with PyAVReader(job.source) as before, PyAVReader(job.target) as after:
            for one, other in zip(timed_frames(before), timed_frames(after), strict=True):
                x, y = luma(pictures.convert(one)), luma(other)
                errors.append(float(np.square(x - y).mean()))
                similarities.append(ssim(x, y))
    except (DecodeError, ValueError) as error:
        return Likeness(str(error))
    return Likeness(
        "", float(10 * np.log10(255**2 / max(np.mean(errors), 1e-10))), float(np.mean(similarities))
    )


def luma(picture: VideoFrame) -> NDArray[np.float32]:
    """(H, W)."""
    return picture.to_ndarray()[: picture.height].astype(np.float32)


def ssim(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Mean structural similarity of two (H, W) pictures in [0, 255]: Wang et al. 2004, 11 x 11 Gaussian
    window of sigma 1.5.
    """
    offsets = np.arange(min(11, *x.shape)) - min(10, x.shape[0] - 1, x.shape[1] - 1) / 2
    window = np.exp(-(offsets**2) / 4.5).astype(np.float32)
    window /= window.sum()

    def blur(picture: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, columns = (size - len(window) + 1 for size in picture.shape)
        picture = sum(weight * picture[i : i + rows] for i, weight in enumerate(window))
        return sum(weight * picture[:, i : i + columns] for i, weight in enumerate(window))

    mx, my = blur(x), blur(y)
    vx, vy, covariance = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        ((2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()
    )


def plan(records: list[Record], root: Path, out: Path, settings: Settings) -> list[Job]:
    """A job for every record. Raises InputError where two videos would get one name."""
    jobs: dict[str, Job] = {}
    result = []
    for record in records:
        source = os.path.abspath(record.path)
        relative = os.path.relpath(source, root)
        if relative.startswith(os.pardir + os.sep):
            relative = source.lstrip(os.sep)
        job = Job(source, str((out / relative).with_suffix(".mp4")), settings)
        first = jobs.setdefault(job.target, job)
        if first.source != source:
            raise InputError(
                f"{first.source} and {source} would both become {job.target}; rename one, or split the list "
                "and give each part its own --out"
            )
        result.append(job)
    return result


def run(
    records: list[Record], jobs: list[Job], list_path: Path, out: Path, options: argparse.Namespace
) -> dict[Job, Outcome]:
    """Work through the jobs, then write the lists."""
    with held_folder(out):
        return work_through(records, jobs, list_path, out, options)


def work_through(
    records: list[Record], jobs: list[Job], list_path: Path, out: Path, options: argparse.Namespace
) -> dict[Job, Outcome]:
    names: dict[str, set[str]] = {str(out): {list_path.name, failed_name(list_path)}}
    for job in jobs:
        names.setdefault(os.path.dirname(job.target), set()).add(os.path.basename(job.target))
    try:
        for folder in names:
            os.makedirs(folder, exist_ok=True)
            remove_leftovers(folder, names[folder])
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {reason(error)}: {error.filename}") from error
    if (out / list_path.name).exists() and not (out / failed_name(list_path)).exists():
        raise InputError(
            f"{out / list_path.name} is there and was not written by this script; name another --out"
        )
    outcomes: dict[Job, Outcome] = {}
    try:
        where = {"workers": options.workers, "ray_address": options.ray}
        work = run_jobs(
            transcode,
            list(dict.fromkeys(jobs)),
            **where,
            description="transcoding",
            name=lambda job: job.source,
        )
        with closing(work):
            outcomes.update(work)
    finally:
        for folder in names:
            remove_leftovers(folder, names[folder])
    failed = [
        (r.name, r.label, outcomes[job].failure)
        for r, job in zip(records, jobs, strict=True)
        if outcomes[job].failure
    ]
    write_csv(out / failed_name(list_path), ("path", "label", "reason"), failed)
    made = [
        (os.path.relpath(job.target, out), r.label)
        for r, job in zip(records, jobs, strict=True)
        if not outcomes[job].failure
    ]
    replace_list(out / list_path.name, made)
    return outcomes


def failed_name(list_path: Path) -> str:
    return f"{list_path.stem}_failed.csv"


def summarise(outcomes: dict[Job, Outcome], options: argparse.Namespace, out: Path, list_path: Path) -> None:
    done = {job: outcome for job, outcome in outcomes.items() if not outcome.failure}
    skipped = sum(outcome.was_there for outcome in done.values())
    before, after = (
        sum(outcome.bytes_before for outcome in done.values()),
        sum(outcome.bytes_after for outcome in done.values()),
    )
    print(f"{len(done) - skipped} done, {skipped} skipped (done before), {len(outcomes) - len(done)} failed")
    for job, outcome in [(job, outcome) for job, outcome in outcomes.items() if outcome.failure][:5]:
        print(f"  {job.source}: {outcome.failure}")
    if len(outcomes) > len(done):
        print(f"  all of them: {out / failed_name(list_path)}")
    if done:
        print(
            f"size: {before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB after ({after / before:.2f} x)"
        )
    if options.compare and done:
        some = [
            list(done)[i]
            for i in np.linspace(0, len(done) - 1, min(options.compare, len(done))).round().astype(int)
        ]
        with closing(
            run_jobs(compare, some, workers=options.workers, ray_address=options.ray, description="comparing")
        ) as work:
            found = [likeness for _, likeness in work]
        alike = [likeness for likeness in found if not likeness.failure]
        if alike:
            psnr, similarity = (np.array([[likeness.psnr, likeness.ssim] for likeness in alike])).T
            lowest = f"lowest {psnr.min():.2f} and {similarity.min():.4f}"
            print(
                f"luma of {len(alike)} videos: PSNR {psnr.mean():.2f} dB, SSIM {similarity.mean():.4f} "
                f"({lowest})"
            )
        for likeness in found:
            if likeness.failure:
                print(f"  cannot be compared: {likeness.failure}")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--list", type=Path, required=True, help="`path label` lines; relative paths start at its folder"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--short-side", type=int, default=256, help="pixels, even (default: %(default)s)")
    parser.add_argument(
        "--gop", type=int, default=16, help="frames from keyframe to keyframe, at most (default: %(default)s)"
    )
    parser.add_argument(
        "--crf", type=int, default=23, help="0 to 51: better to smaller (default: %(default)s)"
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="medium", help="x264's: faster or smaller (default: %(default)s)"
    )
    parser.add_argument(
        "--compare",
        type=int,
        default=0,
        metavar="N",
        help="then give PSNR and SSIM of N videos, evenly spaced over the list",
    )
    add_options(parser)
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    for name, value, expected, fits in (
        (
            "short-side",
            options.short_side,
            "an even number from 16 on",
            options.short_side >= 16 and options.short_side % 2 == 0,
        ),
        ("gop", options.gop, "1 or more", options.gop >= 1),
        ("crf", options.crf, "0 to 51", 0 <= options.crf <= 51),
        ("compare", options.compare, "0 or more", options.compare >= 0),
    ):
        if not fits:
            raise InputError(f"--{name} is {value}; expected {expected}")
    root, out = Path(os.path.abspath(options.list.parent)), Path(os.path.abspath(options.out))
    if os.path.realpath(root) == os.path.realpath(out):
        raise InputError(
            f"--out {options.out} is the folder of the list itself; name another one, so that nothing is "
            "overwritten"
        )
    records = read_records(str(options.list), root=str(root), num_classes=ANY_LABEL)
    settings = Settings(options.short_side, options.gop, options.crf, options.preset)
    jobs = plan(records, root, out, settings)
    outcomes = run(records, jobs, options.list, out, options)
    summarise(outcomes, options, out, options.list)
    if all(outcome.failure for outcome in outcomes.values()):
        raise InputError(f"no video of {options.list} could be transcoded")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
