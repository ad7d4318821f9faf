"""Random numbers as functions of what they are for, so that no worker, process or restart can change them."""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What a random number is for; streams of one seed are independent of each other."""

    ORDER = 0  # the order of the records of an epoch
    SAMPLE = 1  # everything drawn for one sample: clip, crop, flip
    REPLACEMENT = 2  # the record that takes an unreadable one's place
    STEP = 3  # what the network draws in one step (dropout)
    SHUFFLE = 4  # frames in the temporal checks
    WEIGHTS = 5  # the initial weights
    MIXING = 6  # mixup and cutmix of one step
    BOOTSTRAP = 7  # the videos of resampled tests


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """A generator that depends on (seed, stream, key) alone, e.g. `generator(seed, Stream.SAMPLE, epoch,
    record)`.
    """
    return np.random.default_rng([seed, int(stream), *key])


def integer_seed(seed: int, stream: Stream, *key: int) -> int:
    """The same as a number, for libraries that take one."""
    return int(generator(seed, stream, *key).integers(2**63))
