"""Compare transcoded videos with their sources."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from ..runtime.errors import missing_extra
from .jobs import run_jobs
from .pictures import Pictures, timed_frames
from .transcode import Job


class Likeness(NamedTuple):
    """The similarity of a transcoded video to its source at the same size, in luma: PSNR in dB of the mean
    squared error, mean SSIM.
    """

    failure: str = ""
    psnr: float = 0.0
    ssim: float = 0.0


def compare(job: Job) -> Likeness:
    """Decode and compare both videos frame by frame."""
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
        "", float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-10))), float(np.mean(similarities))
    )


def luma(picture: VideoFrame) -> NDArray[np.float32]:
    """Return the luma of a picture, (H, W) in [0, 255]."""
    return picture.to_ndarray()[: picture.height].astype(np.float32)


def ssim(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Return the mean structural similarity of two (H, W) pictures in [0, 255], as in Wang et al. 2004: an 11
    x 11 Gaussian window of sigma 1.5. Raises ValueError for smaller pictures.
    """
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity()(x, y, data_range=255, **window))


def structural_similarity() -> Any:
    """Import scikit-image's function. Raises InputError if it is not installed."""
    # FFmpeg's ssim filter needs no package, but PyAV exposes its numbers only since 18.1.
    try:
        return importlib.import_module("skimage.metrics").structural_similarity
    except ImportError as error:
        raise missing_extra("--compare", "prep", error, ", or leave it out") from error


def compare_some(
    jobs: Sequence[Job], number: int, *, workers: int, ray_address: str | None = None
) -> list[Likeness]:
    """Compare `number` videos, evenly spaced, with their sources; see run_jobs."""
    indices = np.linspace(0, len(jobs) - 1, min(number, len(jobs))).round().astype(int)
    work = run_jobs(
        compare, [jobs[i] for i in indices], workers=workers, ray_address=ray_address, description="comparing"
    )
    with closing(work):
        return [likeness for _, likeness in work]
