"""Show where a network sees a class in a video, by Grad-CAM, as OUT.mp4 and OUT.png:

    python tools/explain.py --checkpoint output/demo video.mp4 --out heat
    python tools/explain.py --checkpoint output/demo video.mp4 --class "moving left" --sanity --out heat

Explains the clip in the centre of the video, or of the part between --begin and --end. The movie has all
frames from the first to the last one of the clip, and beside them the heat over the frames; the strip has
the clip's own frames. Heat is comparable within a clip and not between clips. A picture is a video of one
frame.

--sanity adds the heat of a network whose weights are drawn anew, and prints the rank correlation of both: an
explanation that does not change with the weights says nothing about what was learned.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

from collections.abc import Sequence

from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.inference import load
from video_iresnet.inference.explanation import (
    explain,
    heat_of_random_weights,
    heated_pictures,
    rank_correlation,
    seen_clip,
    strip,
)
from video_iresnet.inference.movie import write_movie
from video_iresnet.inference.predictor import open_frames
from video_iresnet.models import WeightsError
from video_iresnet.report.contact_sheet import png
from video_iresnet.runtime.errors import InputError, printable
from video_iresnet.runtime.storage import atomic_write


def class_number(text: str, names: Sequence[str]) -> int:
    """Return the number of the class with this name or, if no class has it, this number."""
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise InputError(f"--class {text}: no such class; expected a number below {len(names)}, or one of {some}")


def show(options: argparse.Namespace) -> None:
    movie, picture = (Path(f"{options.out}{suffix}") for suffix in (".mp4", ".png"))
    for path in (movie, picture):
        if path.exists():
            raise InputError(f"{path} exists; name another --out")
    classifier = load(options.checkpoint, options.device, clips=1, crops=1)
    label = None if options.label is None else class_number(options.label, classifier.class_names)
    try:
        with open_frames(options.video) as reader:
            seen = seen_clip(classifier, reader, options.begin, options.end)
            explanation = explain(classifier, seen, label, options.stage)
            write_movie(movie, heated_pictures(classifier, reader, explanation), rate=reader.fps)
    except DecodeError as error:
        raise InputError(f"{options.video} cannot be read: {error}") from error
    network = classifier.trained.network
    other = heat_of_random_weights(network, explanation) if options.sanity else None
    with atomic_write(picture, "wb") as file:
        file.write(png(strip(explanation, other)))
    guess = explanation.guess
    times = "" if len(seen.times) == 1 else f" from {seen.times[0]:.2f} s to {seen.times[-1]:.2f} s"
    print(
        f"{printable(guess.name)}: {guess.probability:.2%}{times}; heat at {explanation.stage} in {movie} "
        f"and {picture}"
    )
    if other is not None:
        same = rank_correlation(explanation.heat, other)
        print(f"rank correlation with the heat of random weights: {same:.2f} (1: the same picture)")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", metavar="VIDEO")
    parser.add_argument("--checkpoint", required=True, metavar="FILE_OR_RUN")
    parser.add_argument("--out", required=True, metavar="OUT", help="writes OUT.mp4 and OUT.png")
    parser.add_argument(
        "--class", dest="label", metavar="NAME_OR_NUMBER", help="(default: the most probable one)"
    )
    parser.add_argument(
        "--stage", help="stem, stage1, ... (default: the last with 7 positions a side, else the stem)"
    )
    parser.add_argument("--begin", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--end", type=float, metavar="SECONDS")
    parser.add_argument("--sanity", action="store_true", help="compare with random weights")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: show(options), WeightsError)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
