"""Transcode videos to be small and fast to decode: H.264 in MP4 with a given short side, a keyframe every 16
frames, and no sound.

    python data_prep/transcode.py --list /data/k400/train.csv --out /data/k400_256 --short-side 256

Every frame is kept, at its time after the first one (variable rates stay variable), upright (rotation is
applied), with its colours' meaning; nothing is enlarged. OUT mirrors the folders of the list's relative
paths, and those of its absolute paths from the root on. At the end OUT holds the list of what succeeded under
the list's own name, LIST_failed.csv (path, label, reason), and packets.sqlite, with which runs open videos
faster. Originals are only read.

It can be interrupted and restarted: finished videos of the same source and settings are skipped; if the
source has changed, it is transcoded again. A video appears under its name only when it is complete.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import numpy as np

from video_iresnet.prep.jobs import add_options
from video_iresnet.prep.quality import Likeness, compare_some, structural_similarity
from video_iresnet.prep.transcode import PRESETS, Job, Outcome, Settings, failed_list, transcode_list
from video_iresnet.runtime.errors import InputError


def print_outcomes(outcomes: dict[Job, Outcome], failed: Path) -> None:
    failures = [(job, outcome.failure) for job, outcome in outcomes.items() if outcome.failure]
    done = [outcome for outcome in outcomes.values() if not outcome.failure]
    skipped = sum(outcome.was_there for outcome in done)
    print(f"{len(done) - skipped} done, {skipped} skipped (done before), {len(failures)} failed")
    for job, failure in failures[:5]:
        print(f"  {job.source}: {failure}")
    if failures:
        print(f"  all of them: {failed}")
    if done:
        before = sum(outcome.bytes_before for outcome in done) / 2**20
        after = sum(outcome.bytes_after for outcome in done) / 2**20
        print(f"size: {before:.1f} MiB before, {after:.1f} MiB after ({after / before:.2f} x)")


def print_likeness(found: Sequence[Likeness]) -> None:
    alike = np.array([[likeness.psnr, likeness.ssim] for likeness in found if not likeness.failure])
    if len(alike):
        (psnr, ssim), (lowest_psnr, lowest_ssim) = alike.mean(0), alike.min(0)
        print(
            f"luma of {len(alike)} videos: PSNR {psnr:.2f} dB, SSIM {ssim:.4f} "
            f"(lowest {lowest_psnr:.2f} and {lowest_ssim:.4f})"
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
        help="then give PSNR and SSIM of N videos, evenly spaced over the list; needs scikit-image",
    )
    parser.add_argument(
        "--many-labels",
        action="store_true",
        help="the list has lines of `path 3,17,42`, as with DATA.MULTI_LABEL",
    )
    add_options(parser)
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    for name, expected, fits in (
        ("short_side", "an even number from 16 on", options.short_side >= 16 and options.short_side % 2 == 0),
        ("gop", "1 or more", options.gop >= 1),
        ("crf", "0 to 51", 0 <= options.crf <= 51),
        ("compare", "0 or more", options.compare >= 0),
    ):
        if not fits:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {getattr(options, name)}; expected {expected}")
    if options.compare:
        structural_similarity()  # raises an error now, not after hours of work
    settings = Settings(options.short_side, options.gop, options.crf, options.preset)
    where = {"workers": options.workers, "ray_address": options.ray}
    outcomes = transcode_list(options.list, options.out, settings, **where, many_labels=options.many_labels)
    print_outcomes(outcomes, failed_list(options.list, options.out))
    done = [job for job, outcome in outcomes.items() if not outcome.failure]
    if options.compare and done:
        print_likeness(compare_some(done, options.compare, **where))
    if not done:
        raise InputError(f"no video of {options.list} could be transcoded")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    return exit_code(lambda: prepare(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
