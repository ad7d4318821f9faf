"""Random numbers as functions of their purpose, independent of workers, processes and restarts."""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """The purpose of random numbers; streams of one seed are independent."""

    ORDER = 0  # the order of the records of an epoch
    SAMPLE = 1  # everything drawn for a sample: clip, crop, flip
    REPLACEMENT = 2  # the record that replaces an unreadable one
    STEP = 3  # dropout in one step
    SHUFFLE = 4  # frames in the temporal checks
    WEIGHTS = 5  # the initial weights
    MIXING = 6  # mixup and cutmix of one step
    BOOTSTRAP = 7  # the videos of resampled tests


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """Return a generator that depends only on (seed, stream, key), e.g. `generator(seed, Stream.SAMPLE,
    epoch, record)`.
    """
    return np.random.default_rng([seed, int(stream), *key])


def integer_seed(seed: int, stream: Stream, *key: int) -> int:
    """Return a seed that depends only on the same, for libraries that take an int."""
    return int(generator(seed, stream, *key).integers(2**63))
