"""Frame indices against stored vectors, and their properties over many lengths."""

from __future__ import annotations

import numpy as np
import pytest

from video_iresnet.data.sampling import DenseSampler, SegmentSampler


def test_dense_clips_are_flush_with_both_ends_and_exactly_spaced() -> None:
    clips = DenseSampler(8, 8).uniform_clips(300, 10)
    assert clips[0] == [0, 8, 16, 24, 32, 40, 48, 56]
    assert clips[-1] == [243, 251, 259, 267, 275, 283, 291, 299]
    starts = [clip[0] for clip in clips]
    assert starts == [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]
    assert DenseSampler(8, 8).uniform_clips(300, 1) == [[121 + 8 * i for i in range(8)]]


def test_last_frame_repeats_in_short_videos() -> None:
    assert DenseSampler(8, 8).uniform_clips(40, 1) == [[0, 8, 16, 24, 32, 39, 39, 39]]
    assert DenseSampler(4, 2).random_clip(1, np.random.default_rng(0)) == [0, 0, 0, 0]
    assert DenseSampler(8, 8).uniform_clips(40, 3) == [[0, 8, 16, 24, 32, 39, 39, 39]] * 3


def test_random_clips_reach_both_ends_evenly() -> None:
    sampler = DenseSampler(4, 3)
    rng = np.random.default_rng(0)
    starts = [sampler.random_clip(20, rng)[0] for _ in range(5500)]
    assert np.bincount(starts, minlength=11).min() > 400
    assert max(starts) == 10


# PySlowFast's indices for testing, one clip, by executing its functions.
SEGMENT_GOLDEN = {
    5: [0, 0, 1, 2, 2, 2, 3, 4],
    8: [0, 1, 2, 3, 4, 4, 5, 6],
    16: [1, 3, 5, 7, 8, 10, 12, 14],
    40: [2, 7, 12, 17, 22, 26, 31, 36],
    100: [6, 18, 31, 43, 56, 68, 80, 93],
}


@pytest.mark.parametrize("length", SEGMENT_GOLDEN)
def test_segment_middles(length: int) -> None:
    assert SegmentSampler(8).uniform_clips(length, 1) == [SEGMENT_GOLDEN[length]]


def test_more_segment_clips_differ_and_stay_inside() -> None:
    clips = SegmentSampler(8).uniform_clips(100, 3)
    assert len({tuple(clip) for clip in clips}) == 3
    bounds = [round(99 / 8 * i) for i in range(9)]
    assert all(bounds[i] <= clip[i] <= bounds[i + 1] for clip in clips for i in range(8))


@pytest.mark.parametrize("sampler", [DenseSampler(8, 8), DenseSampler(16, 1), SegmentSampler(8), SegmentSampler(1)])
def test_indices_are_in_range_and_ascending(sampler: DenseSampler | SegmentSampler) -> None:
    for length in [*range(1, 150), 1000]:
        rng = np.random.default_rng(length)
        for clip in [sampler.random_clip(length, rng), *sampler.uniform_clips(length, 1), *sampler.uniform_clips(length, 4)]:
            assert len(clip) == sampler.num_frames
            assert clip == sorted(clip)
            assert clip[0] >= 0
            assert clip[-1] < length
