"""Transcode the videos of a list to H.264 in MP4: small, fast to decode, with the same frames and times."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from contextlib import closing
from pathlib import Path
from typing import IO, Any, NamedTuple

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ..data.decode.container import VideoFile
from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..data.labels import label_text
from ..data.records import Record, read_records
from ..runtime.errors import InputError, reason
from ..runtime.storage import Output, atomic_write, remove_leftovers
from .index import index_packets
from .jobs import run_jobs
from .lists import ANY_LABEL, held_folder, replace_list, write_csv
from .pictures import Pictures, timed_frames

WRITER = "video_iresnet data_prep/transcode.py"
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
# With more than SSE4.2, x264's output depends on the processor, and with AVX-512 changes at each run; the
# limit costs a few percent of the speed.
ASM = "asm=sse4.2:" if platform.machine().lower() in ("x86_64", "amd64") else ""
# Five of six frames are not referenced, so readers of clips can skip them.
X264 = f"{ASM}bframes=5:b-adapt=0:b-pyramid=none"


class Settings(NamedTuple):
    """Options of the encoder."""

    short_side: int
    gop: int
    crf: int
    preset: str


class Job(NamedTuple):
    """A source, its target, and the settings."""

    source: str
    target: str
    settings: Settings


class Outcome(NamedTuple):
    """The result of a job: a failure with its reason, or a file; sizes in bytes."""

    failure: str = ""
    was_there: bool = False
    bytes_before: int = 0
    bytes_after: int = 0


def transcode(job: Job) -> Outcome:
    """Transcode one video, unless it is done. Raises InputError if the target cannot be written or contains
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
    """Return the metadata of a transcoded video. The source's path is hashed, since videos are shared."""
    source = hashlib.sha256(os.path.realpath(job.source).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return {
        "writer": WRITER,
        "source": source,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        **job.settings._asdict(),
    }


def is_made(job: Job, stamp: dict[str, Any]) -> bool:
    """Whether the target is up to date. Raises InputError if it was made with other settings or from another
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
            f"{job.target} was made from another video than {job.source}; name another --out for this list"
        )
    return same_content


def encode(reader: PyAVReader, file: IO[bytes], settings: Settings, comment: str) -> int:
    """Encode all frames into an MP4 file and return their number. Raises DecodeError, or OSError if writing
    to `file` fails.
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
    """Add an H.264 stream for the pictures, with the source's clock, pixel aspect ratio and colours."""
    options = {
        "crf": str(settings.crf),
        "g": str(settings.gop),
        "preset": settings.preset,
        "tune": "fastdecode",
        "flags": "+frame_duration",
        "x264-params": X264,
    }
    stream: VideoStream = target.add_stream("libx264", rate=source.average_rate or 25, options=options)
    context: Any = stream.codec_context
    context.thread_count = 1  # the output depends on the number of threads
    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
    context.time_base = picture.time_base
    ratio = source.sample_aspect_ratio
    if ratio:
        context.sample_aspect_ratio = 1 / ratio if is_transposed else ratio
    context.color_range, context.colorspace = picture.color_range, picture.colorspace
    context.color_primaries, context.color_trc = picture.color_primaries, picture.color_trc
    return stream


def check(file: IO[bytes], num_frames: int) -> None:
    """Read the result back, before it gets its name."""
    file.flush()
    file.seek(0)
    container: Any
    with av.open(file, format="mp4") as container:
        found = sum(bool(packet.size) for packet in container.demux(container.streams.video[0]))
    if found != num_frames:
        raise DecodeError(f"{found} of {num_frames} frames were written")


def plan(records: list[Record], root: Path, out: Path, settings: Settings) -> list[Job]:
    """Return a job for every record. Raises InputError if two videos would get the same name."""
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


def transcode_list(
    list_path: Path,
    out: Path,
    settings: Settings,
    *,
    workers: int,
    ray_address: str | None = None,
    many_labels: bool = False,
) -> dict[Job, Outcome]:
    """Transcode the videos of a list, then write the lists of successes and failures; see run_jobs.
    `many_labels`: see read_records.

    Raises InputError if `out` is the folder of the list or in use, or contains foreign files.
    """
    root = Path(os.path.abspath(list_path.parent))
    if os.path.realpath(root) == os.path.realpath(out):
        raise InputError(
            f"--out {out} is the folder of the list itself; name another one, so that nothing is overwritten"
        )
    out = Path(os.path.abspath(out))
    records = read_records(str(list_path), root=str(root), num_classes=ANY_LABEL, many_labels=many_labels)
    jobs = plan(records, root, out, settings)
    made, failed = out / list_path.name, failed_list(list_path, out)
    with held_folder(out):
        names: dict[str, set[str]] = {str(out): {made.name, failed.name}}
        for job in jobs:
            names.setdefault(os.path.dirname(job.target), set()).add(os.path.basename(job.target))
        clear(out, names)
        if made.exists() and not failed.exists():
            raise InputError(f"{made} is there and was not written by this script; name another --out")
        outcomes: dict[Job, Outcome] = {}
        work = run_jobs(
            transcode,
            list(dict.fromkeys(jobs)),
            workers=workers,
            ray_address=ray_address,
            description="transcoding",
            name=lambda job: job.source,
        )
        try:
            with closing(work):
                outcomes.update(work)
        finally:
            clear(out, names)
        pairs = [(record, job, outcomes[job].failure) for record, job in zip(records, jobs, strict=True)]
        rows = [(r.name, label_text(r.label), why) for r, _, why in pairs if why]
        write_csv(failed, ("path", "label", "reason"), rows)
        replace_list(made, [(os.path.relpath(job.target, out), r.label) for r, job, why in pairs if not why])
        done = [job.target for _, job, why in pairs if not why]
        index_packets(out, done, workers=workers, ray_address=ray_address)
    return outcomes


def clear(out: Path, names: dict[str, set[str]]) -> None:
    """Create the folders, and delete leftovers of killed runs in them."""
    try:
        for folder in names:
            os.makedirs(folder, exist_ok=True)
            remove_leftovers(folder, names[folder])
    except OSError as error:
        raise InputError(f"cannot write to --out {out}: {reason(error)}: {error.filename}") from error


def failed_list(list_path: Path, out: Path) -> Path:
    """Return the path of the list of failures: path, label and reason."""
    return Path(os.path.abspath(out), f"{list_path.stem}_failed.csv")
