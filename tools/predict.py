"""Classify videos with a checkpoint: python tools/predict.py --checkpoint output/demo VIDEO_OR_FOLDER [...].

The checkpoint, or the folder of a run, whose latest one is taken, holds all that is needed: network, class
names, clips, crops and normalization. Each video is classified as a whole, with the views of the run's test,
or in windows with --window:

    python tools/predict.py --checkpoint output/demo clip.mp4 folder_of_videos --csv guesses.csv
    python tools/predict.py --checkpoint output/demo long.mp4 --window 2 --step 1 --annotate shown.mp4

A picture is a video of one frame, so an image network takes JPEG, PNG and WebP files, and looks for them in
folders too.

A network that was trained with many labels a video (DATA.MULTI_LABEL) gives each class a probability of its
own; --threshold leaves out the less probable ones:

    python tools/predict.py --checkpoint output/many_labels clip.mp4 --threshold 0.5

Videos that cannot be read are listed at the end with reasons, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from tqdm import tqdm

from video_iresnet.data.decode.image import is_image
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.inference import Classifier, Prediction, load
from video_iresnet.inference.annotate import annotated
from video_iresnet.inference.movie import write_movie
from video_iresnet.inference.predictor import frame_times
from video_iresnet.models import WeightsError
from video_iresnet.prep.lists import named_videos, write_csv
from video_iresnet.report.results import write_results
from video_iresnet.runtime.cores import usable_cores
from video_iresnet.runtime.errors import InputError, printable


class Video(NamedTuple):
    """A video with its predictions, or the reason why it has none."""

    path: str
    predictions: list[Prediction]
    error: str


def classified(
    classifier: Classifier, path: str, window: float | None, step: float | None
) -> Iterator[Prediction]:
    if window is None:
        yield classifier(path)
    else:
        yield from classifier.windows(path, window, step)


def show(prediction: Prediction, top: int, least: float, has_time: bool) -> None:
    time = f"{clock(prediction.begin)} - {clock(prediction.end)}" if has_time else ""
    guesses = prediction.top(top, least)
    if not guesses:
        print(f"  {time}  no class of {least:.2%} or more", flush=True)
    for guess in guesses:
        print(f"  {time}  {guess.probability:7.2%}  {printable(guess.name)}", flush=True)
        time = " " * len(time)


def clock(seconds: float) -> str:
    """Return a time as minutes and seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 600}:{tenths % 600 / 10:04.1f}"


def write_files(options: argparse.Namespace, classifier: Classifier, videos: Sequence[Video]) -> None:
    """Write what was found so far to --csv and --json."""
    top = min(options.top, len(classifier.class_names))
    if options.csv:
        ranks = range(1, top + 1)
        columns = [
            "video",
            "begin",
            "end",
            *(f"top{i}" for i in ranks),
            *(f"prob{i}" for i in ranks),
            "error",
        ]
        rows: list[list[str]] = []
        for video in videos:
            for prediction in video.predictions:
                guesses = prediction.top(top, options.threshold)
                times = [f"{prediction.begin:.3f}", f"{prediction.end:.3f}"]
                names, numbers = [g.name for g in guesses], [f"{g.probability:.6f}" for g in guesses]
                empty = [""] * (top - len(guesses))
                rows.append([video.path, *times, *names, *empty, *numbers, *empty, ""])
            if video.error:
                rows.append([video.path, *[""] * (len(columns) - 2), video.error])
        write_csv(options.csv, columns, rows)
    if options.json:
        trained = classifier.trained
        write_results(options.json, {
            "checkpoint": trained.path,
            "network": str(trained),
            "protocol": (classifier.whole if options.window is None else classifier.part).protocol,
            "class_names": classifier.class_names,
            "videos": [
                {
                    "video": video.path,
                    "error": video.error,
                    "predictions": [
                        {
                            "begin": round(prediction.begin, 6),
                            "end": round(prediction.end, 6),
                            "top": [guess._asdict() for guess in prediction.top(top, options.threshold)],
                        }
                        for prediction in video.predictions
                    ],
                }
                for video in videos
            ],
        })  # fmt: skip


def annotate(path: Path, video: Video, top: int) -> None:
    """Write a video with its classes drawn in."""
    with PyAVReader(video.path) as reader:
        times = frame_times(reader)
        pictures = tqdm(annotated(reader, times, video.predictions, top), str(path), len(reader), leave=False,
                        disable=None)  # fmt: skip
        write_movie(path, pictures, rate=reader.fps, sound_of=reader)


def check(options: argparse.Namespace) -> None:
    """Raise InputError for options that do not fit, before anything is read."""
    for name, suffix in (("csv", ".csv"), ("json", ".json"), ("annotate", ".mp4")):
        path = getattr(options, name)
        if path and path.suffix.lower() != suffix:
            raise InputError(f"--{name} {path} does not end with {suffix}; name such a file")
    if options.annotate and options.annotate.exists():
        raise InputError(f"--annotate {options.annotate} exists; name a file that does not")
    if options.step and options.window is None:
        raise InputError(f"--step {options.step} needs --window; give the length of the windows in seconds")


def predict(options: argparse.Namespace) -> int:
    check(options)
    classifier = load(options.checkpoint, options.device, clips=options.clips, crops=options.crops)
    of_images = classifier.trained.cfg.MODEL.DIMS == 2
    paths = named_videos(options.videos, usable_cores(), of_images=of_images)
    if options.annotate and len(paths) > 1:
        raise InputError(f"--annotate takes one video, not {len(paths)}; name one")
    if options.annotate and is_image(paths[0]):
        raise InputError(f"--annotate takes a video, and {paths[0]} is a picture; name a video")
    print(f"{printable(classifier.trained.path)}: {classifier.trained}", file=sys.stderr)
    videos: list[Video] = []
    try:
        for path in tqdm(paths, "classifying", unit="video", leave=False, disable=None):
            videos.append(Video(path, [], ""))
            try:
                for prediction in classified(classifier, path, options.window, options.step):
                    with tqdm.external_write_mode():
                        if not videos[-1].predictions:
                            print(printable(path))
                        show(prediction, options.top, options.threshold, has_time=not is_image(path))
                    videos[-1].predictions.append(prediction)
            except DecodeError as failure:
                videos[-1] = videos[-1]._replace(error=str(failure))
    except KeyboardInterrupt as stop:
        raise type(stop)("stopped; --csv and --json, if given, hold what was classified so far") from None
    finally:
        write_files(options, classifier, videos)
    failed = [video for video in videos if video.error]
    if options.annotate and not failed:
        annotate(options.annotate, videos[0], min(options.top, 3))
    if failed:
        print(f"{len(failed)} of {len(videos)} videos could not be read:", file=sys.stderr)
        for video in failed:
            print(f"  {printable(video.path)}: {printable(video.error)}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO_OR_FOLDER",
        help="folders are searched for videos, by an image network for pictures too",
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE_OR_RUN")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument(
        "--threshold", type=float, default=0.0, metavar="P", help="name only classes of this probability"
    )
    parser.add_argument("--window", type=float, metavar="SECONDS", help="classify windows of this length")
    parser.add_argument(
        "--step", type=float, metavar="SECONDS", help="from window to window (default: its length)"
    )
    parser.add_argument(
        "--clips", type=int, help="per video (default: as in the test) or window (default: 1)"
    )
    parser.add_argument("--crops", type=int, choices=[1, 3, 10], help="per clip (default: as in the test)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write the predictions")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write the predictions as a table")
    parser.add_argument(
        "--annotate",
        type=Path,
        metavar="FILE.mp4",
        help="write the video with its classes drawn in, and its sound",
    )
    options = parser.parse_args(arguments)
    return exit_code(lambda: predict(options), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
