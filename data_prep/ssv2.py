"""Write lists and class names for Something-Something-v2; optionally unpack archives and extract frames.

    python data_prep/ssv2.py --videos /raw/ssv2 --annotations /raw/labels --out /data/ssv2
    python data_prep/ssv2.py --videos /raw/ssv2 --annotations /raw/labels --out /data/ssv2 \\
        --archives /download/20bn-something-something-v2-??
    python data_prep/ssv2.py --videos /raw/ssv2 --annotations /raw/labels --out /data/ssv2 \\
        --frames --fps 30 --workers 16

Writes train.csv, val.csv, test.csv and classes.txt; of the test split, whose labels are not public, with
class 0 throughout. --archives: joins the parts and unpacks them into --videos first. --frames: writes
out/frames/<id>/<id>_000001.jpg and so on, as they are in the video (12 a second) or at --fps (PySlowFast uses
30, which repeats frames), their rates in out/frames/frame_rates.json, and lists of them in out/frame_lists:
train.csv for PySlowFast, with out/frames as its DATA.PATH_PREFIX, and train.txt, `folder frames label`.

Run it again to continue after an interruption, one run at a time. Originals are never changed, lists with
other content never overwritten.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from video_iresnet.data.frame_rates import FILE_NAME, write_frame_rates
from video_iresnet.data.records import read_json_classes, read_json_labels
from video_iresnet.prep.archives import MAX_EXPANSION, group_parts, partial_folder, unpack
from video_iresnet.prep.frames import FrameJob, extract_frames, frame_rows
from video_iresnet.prep.jobs import run_jobs
from video_iresnet.prep.lists import (
    Wanted,
    by_stem,
    find_videos,
    held_folder,
    listed_path,
    print_found,
    report_doubles,
    write_class_names,
    write_csv,
    write_new,
    write_split,
)
from video_iresnet.runtime.errors import InputError

# Names of both releases of the annotations.
CLASSES = ("something-something-v2-labels.json", "labels.json")
SPLITS = {
    "train": ("something-something-v2-train.json", "train.json"),
    "val": ("something-something-v2-validation.json", "validation.json"),
    "test": ("something-something-v2-test.json", "test.json"),
}
OFFICIAL_VIDEOS = {"train": 168913, "val": 24777, "test": 27157}
NUM_CLASSES = 174


class Annotations(NamedTuple):
    """Class names, and for each existing split its file and its videos: id -> class."""

    names: list[str]
    files: dict[str, Path]
    labels: dict[str, dict[str, int | None]]


def read_annotations(folder: Path) -> Annotations:
    """Read the official files of a folder. Raises InputError if the classes or all splits are missing."""
    classes = _first_file(folder, CLASSES)
    files = {split: path for split, names in SPLITS.items() if (path := _first_file(folder, names))}
    if not classes or not files:
        expected = CLASSES[0] if not classes else ", ".join(names[0] for names in SPLITS.values())
        raise InputError(f"{folder} does not hold {expected}; name the folder of the official annotations")
    names = read_json_classes(str(classes))
    labels = {split: read_json_labels(str(path), names) for split, path in files.items()}
    for split, videos in labels.items():
        for video in videos:
            if not re.fullmatch(r"\w[\w.-]*", video):
                raise InputError(
                    f"the id {video!r} in {files[split]} cannot be the name of a folder; expected a number "
                    "such as 78687"
                )
    return Annotations(names, files, labels)


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def extract(videos: Mapping[str, Path], options: argparse.Namespace) -> dict[str, int]:
    """Extract the frames of all videos (id -> file); returns id -> number of frames. Unreadable videos are
    reported in unreadable.csv.
    """
    frames = options.out / "frames"
    check_settings(options.out / "frames.json", {"fps": options.fps, "short_side": options.short_side})
    counts: dict[str, int] = {}
    rates: dict[str, float] = {}
    unreadable: dict[str, str] = {}
    with partial_folder(frames) as partial:
        jobs = [
            FrameJob(str(path), name, str(frames), str(partial), options.fps, options.short_side)
            for name, path in videos.items()
        ]
        where = {"workers": options.workers, "ray_address": options.ray}
        for job, result in run_jobs(
            extract_frames, jobs, **where, description="extracting frames", name=lambda job: job.video
        ):
            if isinstance(result, str):
                unreadable[job.video] = result
                continue
            counts[job.name] = result.num_frames
            if result.fps:
                rates[job.name] = round(result.fps, 3)
    write_frame_rates(frames / FILE_NAME, rates)
    write_csv(options.out / "unreadable.csv", ("video", "reason"), sorted(unreadable.items()))
    print(f"{frames}: {sum(counts.values()):,} frames of {len(counts):,} videos")
    if unreadable:
        path, why = min(unreadable.items())
        print(
            f"{len(unreadable):,} videos cannot be read and are in no list of frames: "
            f"{options.out / 'unreadable.csv'}; first {path}: {why}"
        )
    return counts


def write_frame_lists(
    folder: Path, labels: Mapping[str, Mapping[str, int | None]], counts: Mapping[str, int]
) -> None:
    """Write for each split a list of frames in PySlowFast's format, and one of `folder frames label`."""
    for split, videos in labels.items():
        there = [(video, counts[video], label or 0) for video, label in videos.items() if video in counts]
        if there:
            write_new(folder / f"{split}.csv", frame_rows([(video, count) for video, count, _ in there]))
            write_new(
                folder / f"{split}.txt", [f"{video} {count} {label}\n" for video, count, label in there]
            )
            print(f"{split}: frames of {len(there):,} videos -> {folder / split}.csv, .txt")


def check_settings(path: Path, settings: Mapping[str, float]) -> None:
    """Write the settings; raises InputError if frames were extracted with others."""
    text = json.dumps(settings) + "\n"
    if path.exists() and path.read_text() != text:
        raise InputError(
            f"{path} says that frames were extracted with {path.read_text().strip()}; take the same --fps "
            "and --short-side, or another --out"
        )
    write_new(path, [text])


def prepare(options: argparse.Namespace) -> None:
    names, files, labels = read_annotations(options.annotations)
    if options.archives:
        for parts in group_parts(options.archives):
            written, kept = unpack(parts, options.videos, max_expansion=options.max_expansion)
            print(f"{parts[0].name}: {len(parts)} parts, {written:,} files unpacked, {kept:,} were there")
    found = find_videos(options.videos, options.workers, options.ray)
    print_found(options.videos, found)
    stems = by_stem(found.videos)
    with held_folder(options.out):
        write(options, names, files, labels, stems)


def write(
    options: argparse.Namespace,
    names: list[str],
    files: Mapping[str, Path],
    labels: Mapping[str, Mapping[str, int | None]],
    stems: Mapping[str, list[str]],
) -> None:
    """Write the lists, the class names, the reports and, if requested, the frames."""
    all_ids = {video for videos in labels.values() for video in videos}
    report_doubles([(paths[0], paths) for stem, paths in stems.items() if len(paths) > 1 and stem in all_ids])
    write_class_names(options.out / "classes.txt", names)
    for split, videos in labels.items():
        if len(names) == NUM_CLASSES and len(videos) != OFFICIAL_VIDEOS[split]:
            print(f"{files[split]}: {len(videos):,} videos; the official file has {OFFICIAL_VIDEOS[split]:,}")
        paths = {
            video: listed_path(options.videos, stems[video][0], options.out)
            for video in videos
            if video in stems
        }
        wanted = [
            Wanted((video, "" if label is None else names[label]), label, paths.get(video))
            for video, label in videos.items()
        ]
        write_split(
            options.out, split, wanted, columns=("id", "label"), names=names, inputs=list(files.values())
        )
    if options.frames:
        counts = extract(
            {video: options.videos / stems[video][0] for video in sorted(all_ids) if video in stems}, options
        )
        write_frame_lists(options.out / "frame_lists", labels, counts)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--videos", type=Path, required=True, help="folder that holds the webm files, at any depth"
    )
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the official json files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--archives",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="archives, or the parts of one, to unpack into --videos first",
    )
    parser.add_argument(
        "--max-expansion",
        type=float,
        default=MAX_EXPANSION,
        metavar="TIMES",
        help="how many times their own size archives may unpack to (default: %(default)s)",
    )
    parser.add_argument("--frames", action="store_true", help="extract frames")
    parser.add_argument("--fps", type=float, default=0.0, help="frames a second; 0: all frames as they are")
    parser.add_argument(
        "--short-side",
        type=int,
        default=0,
        metavar="PIXELS",
        help="make larger frames this small; 0: their own size",
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="processes that extract frames, threads that look for videos"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="look for videos and extract frames on this Ray cluster"
    )
    options = parser.parse_args(arguments)
    if options.fps < 0 or options.short_side < 0 or options.workers < 0:
        parser.error("--fps, --short-side and --workers cannot be negative")
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
