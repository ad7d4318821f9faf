"""How much a transcoded video resembles its source."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError
from .jobs import run_jobs
from .pictures import Pictures, timed_frames
from .transcode import Job


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
        "", float(10 * np.log10(255**2 / max(float(np.mean(errors)), 1e-10))), float(np.mean(similarities))
    )


def luma(picture: VideoFrame) -> NDArray[np.float32]:
    """A picture -> its luma, (H, W) in [0, 255]."""
    return picture.to_ndarray()[: picture.height].astype(np.float32)


def ssim(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Mean structural similarity of two (H, W) pictures in [0, 255]: Wang et al. 2004, 11 x 11 Gaussian
    window of sigma 1.5.
    """
    offsets = np.arange(min(11, *x.shape)) - min(10, x.shape[0] - 1, x.shape[1] - 1) / 2
    window = np.exp(-(offsets**2) / 4.5).astype(np.float32)
    window /= window.sum()

    def blur(picture: Any) -> Any:
        rows, columns = (size - len(window) + 1 for size in picture.shape)
        picture = sum(weight * picture[i : i + rows] for i, weight in enumerate(window))
        return sum(weight * picture[:, i : i + columns] for i, weight in enumerate(window))

    mx, my = blur(x), blur(y)
    vx, vy, covariance = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        ((2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()
    )


def compare_some(
    jobs: Sequence[Job], number: int, *, workers: int, ray_address: str | None = None
) -> list[Likeness]:
    """Compare `number` of the jobs' videos with their sources, evenly spaced; see run_jobs."""
    indices = np.linspace(0, len(jobs) - 1, min(number, len(jobs))).round().astype(int)
    work = run_jobs(
        compare,
        [jobs[i] for i in indices],
        workers=workers,
        ray_address=ray_address,
        description="comparing",
    )
    with closing(work):
        return [likeness for _, likeness in work]
