"""Multigrid training (Wu et al., arXiv 1912.00998), with the numbers of PySlowFast.

A long cycle changes the frames and the crop over the epochs between two steps of the learning rate, from
large batches of small clips to ordinary ones; within it, the batches of a short cycle take turns in their
crop. Batches are as many times larger as their clips are smaller, and the learning rate follows the long
cycle.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from ..data.loader import BatchShape


class Phase(NamedTuple):
    """The epochs from `first_epoch` up to, but without, `end_epoch`, counted from 0: their batches take the
    shapes in turn; `relative_rate` is the factor of the base learning rate.
    """

    first_epoch: int
    end_epoch: int
    shapes: tuple[BatchShape, ...]
    relative_rate: float


class Normalization(NamedTuple):
    """Batch normalization over `splits` parts of the clips of a process, or over those of `devices`
    processes.
    """

    kind: str
    splits: int = 1
    devices: int = 1

    def __str__(self) -> str:
        if self.kind == "sub_batchnorm":
            return f"BN in {self.splits} parts"
        return f"BN over {self.devices} processes" if self.kind == "sync_batchnorm" else "BN"


def short_cycle(base: BatchShape, crop_size: int, factors: Sequence[float]) -> tuple[BatchShape, ...]:
    """Return the shapes that batches take in turn: `base` with crops of `factors` times `crop_size` (that of
    the whole training), each with as many more clips, and then `base` itself.
    """
    shapes = []
    for factor in factors:
        more = max(1, round((base.crop_size / (factor * crop_size)) ** 2))
        shapes.append(base._replace(batch_size=more * base.batch_size, crop_size=round(factor * crop_size)))
    return (*shapes, base)


def long_cycles(
    base: BatchShape,
    sampling_rate: int,
    *,
    steps: Sequence[float],
    max_epoch: int,
    epoch_factor: float,
    gamma: float,
    factors: Sequence[Sequence[float]],
    short_factors: Sequence[float] = (),
) -> list[Phase]:
    """Return the phases of a training.

    `base`: the batches of an ordinary training, which has `max_epoch` epochs and multiplies the rate by
    `gamma` at the epochs `steps`, of which the first is 0. The phases have `epoch_factor` times its epochs.
    `factors`: of frames and crop, for each part of a long cycle, of which there is one between two steps. A
    last phase at the last shape takes the place of the epochs after the last step; the rate falls in its
    middle. Fewer frames have up to as many times the `sampling_rate`.
    """
    sizes = [_relative_batch_sizes(base, part, short_factors) for part in factors]
    shapes = [
        _shapes(base, part, size[-1], sampling_rate, short_factors)
        for part, size in zip(factors, sizes, strict=True)
    ]
    # The epochs of a part are proportional to the mean size of its batches, so all have equally many steps.
    means = [statistics.mean(size) for size in sizes]
    parts: list[tuple[float, tuple[BatchShape, ...], float]] = []
    iterations = 0.0
    for number, (begin, end) in enumerate(itertools.pairwise(steps)):
        for size, mean, of_part in zip(sizes, means, shapes, strict=True):
            epochs = (end - begin) * mean / sum(means)
            iterations += epochs / mean
            parts.append((gamma**number * size[-1], of_part, epochs))
    # The last phase saves as large a fraction of iterations as those before it.
    saving = steps[-1] / iterations
    final = (max_epoch - steps[-1]) / saving * means[-1]
    parts.append((gamma ** (len(steps) - 1) * sizes[-1][-1], shapes[-1], final))
    stretch = max_epoch * epoch_factor / sum(epochs for *_, epochs in parts)
    ends = [round(end) for end in itertools.accumulate(epochs * stretch for *_, epochs in parts)]
    *phases, last = [
        Phase(first, end, of_part, rate)
        for first, end, (rate, of_part, _) in zip([0, *ends], ends, parts, strict=False)
    ]
    middle = (last.first_epoch + last.end_epoch) // 2
    phases.append(last._replace(end_epoch=middle, relative_rate=phases[-1].relative_rate))
    phases.append(last._replace(first_epoch=middle))
    return [phase for phase in phases if phase.first_epoch < phase.end_epoch]


def _relative_batch_sizes(
    base: BatchShape, factors: Sequence[float], short_factors: Sequence[float]
) -> list[int]:
    """Return how many times as many clips the batches of a part have as `base`, in their short cycle."""
    frames = round(base.num_frames * factors[0])
    crops = [base.crop_size * factor for factor in short_factors] + [round(base.crop_size * factors[1])]
    volume = base.num_frames * base.crop_size**2
    return [max(1, round(volume / (frames * crop * crop))) for crop in crops]


def _shapes(
    base: BatchShape,
    factors: Sequence[float],
    more: int,
    sampling_rate: int,
    short_factors: Sequence[float],
) -> tuple[BatchShape, ...]:
    frames = round(base.num_frames * factors[0])
    largest = BatchShape(
        batch_size=more * base.batch_size,
        num_frames=frames,
        crop_size=round(base.crop_size * factors[1]),
        largest_rate=max(base.largest_rate, sampling_rate * (base.num_frames // frames)),
    )
    return short_cycle(largest, base.crop_size, short_factors)


def normalization(clips: int, num_processes: int, base_size: int) -> Normalization:
    """Return the normalization whose statistics are those of about `base_size` clips, for `clips` of one
    process.

    PySlowFast's numbers of parts and processes, rounded down to divide the clips and the processes.
    """
    if clips > base_size:
        splits = _largest_divisor(clips, clips // base_size)
        return Normalization("sub_batchnorm", splits=splits) if splits > 1 else Normalization("batchnorm")
    devices = _largest_divisor(num_processes, base_size // clips)
    return Normalization("sync_batchnorm", devices=devices) if devices > 1 else Normalization("batchnorm")


def _largest_divisor(number: int, most: int) -> int:
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)


def phase_of(phases: Sequence[Phase], epoch: int) -> Phase:
    """Return the phase of an epoch, or the last one after the end."""
    return next((phase for phase in phases if epoch < phase.end_epoch), phases[-1])


def table(phases: Sequence[Phase], norms: Sequence[Normalization], base_lr: float) -> str:
    """Return the phases, with their normalizations, as lines of text."""
    rows = [("epochs", "rate", "clips x frames x crop of the batches in turn", "sampling rate", "")]
    for phase, norm in zip(phases, norms, strict=True):
        first, last = phase.first_epoch + 1, phase.end_epoch
        batches = ", ".join("x".join(map(str, shape[:3])) for shape in phase.shapes)
        rows.append(
            (
                f"{first}-{last}" if first < last else f"{last}",
                f"{phase.relative_rate * base_lr:.4g}",
                batches,
                f"up to {rate}" if (rate := phase.shapes[-1].largest_rate) else "",
                str(norm),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
