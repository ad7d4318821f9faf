"""Frame indices against stored vectors, and their properties over many lengths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_iresnet.data.sampling import DenseSampler, Sampler, SegmentSampler, SlowFastSampler, Timeline

TEN_SECONDS = Timeline(300, 30.0)


def test_dense_clips_are_flush_with_both_ends_and_exactly_spaced() -> None:
    clips = DenseSampler(8).uniform_clips(TEN_SECONDS, 8, 10)
    assert clips[0] == [0, 8, 16, 24, 32, 40, 48, 56]
    assert clips[-1] == [243, 251, 259, 267, 275, 283, 291, 299]
    starts = [clip[0] for clip in clips]
    assert starts == [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]
    assert DenseSampler(8).uniform_clips(TEN_SECONDS, 8, 1) == [[121 + 8 * i for i in range(8)]]


def test_last_frame_repeats_in_short_videos() -> None:
    assert DenseSampler(8).uniform_clips(Timeline(40, 25), 8, 1) == [[0, 8, 16, 24, 32, 39, 39, 39]]
    assert DenseSampler(2).random_clip(Timeline(1, 25), 4, np.random.default_rng(0)) == [0, 0, 0, 0]
    assert DenseSampler(8).uniform_clips(Timeline(40, 25), 8, 3) == [[0, 8, 16, 24, 32, 39, 39, 39]] * 3


def test_random_clips_reach_both_ends_evenly() -> None:
    rng = np.random.default_rng(0)
    starts = [DenseSampler(3).random_clip(Timeline(20, 25), 4, rng)[0] for _ in range(5500)]
    assert np.bincount(starts, minlength=11).min() > 400
    assert max(starts) == 10


def test_target_frame_rate_counts_in_seconds() -> None:
    """At twice the target, twice as many frames lie between; at 25 for 30, the nearest ones."""
    sampler = DenseSampler(4, target_fps=30)
    assert sampler.uniform_clips(Timeline(25, 60), 4, 1) == [[0, 8, 16, 24]]
    assert sampler.uniform_clips(Timeline(11, 25), 4, 1) == [[0, 3, 7, 10]]
    assert sampler.uniform_clips(Timeline(13, 30), 4, 1) == DenseSampler(4).uniform_clips(
        Timeline(13, 30), 4, 1
    )


@pytest.mark.parametrize("sampler", [DenseSampler(2), SlowFastSampler(2, 30)])
def test_sampling_rates_are_drawn(sampler: DenseSampler | SlowFastSampler) -> None:
    rng = np.random.default_rng(0)
    clips = [sampler.random_clip(Timeline(300, 30), 2, rng, largest_rate=5) for _ in range(400)]
    distances = np.bincount([last - first for first, last in clips])
    assert set(np.flatnonzero(distances)) == (
        {2, 3, 4, 5} if isinstance(sampler, DenseSampler) else {3, 5, 7, 9}
    )
    assert distances[distances > 0].min() > 60


# PySlowFast's indices, by executing its functions.
SEGMENT_GOLDEN = {
    5: [0, 0, 1, 2, 2, 2, 3, 4],
    8: [0, 1, 2, 3, 4, 4, 5, 6],
    16: [1, 3, 5, 7, 8, 10, 12, 14],
    40: [2, 7, 12, 17, 22, 26, 31, 36],
    100: [6, 18, 31, 43, 56, 68, 80, 93],
}


@pytest.mark.parametrize("length", SEGMENT_GOLDEN)
def test_segment_middles(length: int) -> None:
    assert SegmentSampler().uniform_clips(Timeline(length, 30), 8, 1) == [SEGMENT_GOLDEN[length]]


# (frames, fps, T, tau, offset sampling, clips, clip) -> indices.
SLOWFAST_GOLDEN = [
    ((300, 30, 8, 8, False, 10, 0), [0, 9, 18, 27, 36, 45, 54, 63]),
    ((300, 30, 8, 8, False, 10, 1), [23, 32, 41, 50, 59, 68, 77, 86]),
    ((300, 30, 8, 8, False, 10, 9), [212, 221, 230, 239, 248, 257, 266, 275]),
    ((300, 30, 8, 8, True, 10, 9), [234, 243, 252, 261, 270, 279, 288, 297]),
    ((300, 30, 8, 8, True, 1, 0), [118, 127, 136, 145, 154, 163, 172, 181]),
    ((300, 30, 8, 8, False, 1, 0), [0, 9, 18, 27, 36, 45, 54, 63]),
    ((250, 25, 8, 8, False, 10, 0), [0, 7, 14, 22, 29, 37, 44, 52]),
    ((250, 25, 8, 8, False, 10, 1), [19, 27, 34, 42, 49, 57, 64, 72]),
    ((250, 25, 8, 8, False, 10, 9), [177, 184, 191, 199, 206, 214, 221, 229]),
    ((300, 29.97, 8, 8, False, 10, 0), [0, 8, 17, 26, 35, 44, 53, 62]),
    ((40, 30, 8, 8, False, 10, 0), [0, 9, 18, 27, 36, 39, 39, 39]),
    (
        (300, 30, 16, 4, False, 10, 5),
        [118, 122, 126, 130, 134, 139, 143, 147, 151, 155, 160, 164, 168, 172, 176, 181],
    ),
]


@pytest.mark.parametrize(("video", "indices"), SLOWFAST_GOLDEN)
def test_slowfast_arithmetic(video: tuple[int, float, int, int, bool, int, int], indices: list[int]) -> None:
    length, fps, num_frames, rate, offset, num_clips, clip = video
    clips = SlowFastSampler(rate, 30, offset).uniform_clips(Timeline(length, fps), num_frames, num_clips)
    assert len(clips) == num_clips
    assert clips[clip] == indices


def test_slowfast_random_clips_start_anywhere() -> None:
    rng = np.random.default_rng(0)
    clips = [SlowFastSampler(8, 30).random_clip(TEN_SECONDS, 8, rng) for _ in range(8000)]
    assert {clip[0] for clip in clips} >= set(range(1, 235))
    assert all(8 <= b - a <= 10 for clip in clips for a, b in itertools.pairwise(clip))
    assert max(clip[-1] for clip in clips) <= 299


def test_more_segment_clips_differ_and_stay_inside() -> None:
    clips = SegmentSampler().uniform_clips(Timeline(100, 30), 8, 3)
    assert len({tuple(clip) for clip in clips}) == 3
    bounds = [round(99 / 8 * i) for i in range(9)]
    assert all(bounds[i] <= clip[i] <= bounds[i + 1] for clip in clips for i in range(8))


rates = st.integers(1, 40)
samplers = st.one_of(
    st.just(SegmentSampler()),
    st.builds(DenseSampler, rates, st.sampled_from([0.0, 15.0, 30.0])),
    st.builds(SlowFastSampler, rates, st.sampled_from([15.0, 30.0]), st.booleans()),
)


@given(
    samplers, st.integers(1, 2000), st.floats(1, 240), st.integers(1, 64), st.integers(1, 12),
    st.integers(0, 2**32), st.one_of(st.just(0), st.integers(40, 80)),
)  # fmt: skip
def test_indices_are_in_range_and_ascending(
    sampler: Sampler, length: int, fps: float, num_frames: int, num_clips: int, seed: int, largest_rate: int
) -> None:
    video = Timeline(length, fps)
    clips = sampler.uniform_clips(video, num_frames, num_clips)
    assert len(clips) == num_clips
    rng = np.random.default_rng(seed)
    for clip in [sampler.random_clip(video, num_frames, rng, largest_rate), *clips]:
        assert len(clip) == num_frames
        assert clip == sorted(clip)
        assert clip[0] >= 0
        assert clip[-1] < length
    assert [clip[0] for clip in clips] == sorted(clip[0] for clip in clips)


@given(st.integers(1, 40), st.integers(1, 32), st.integers(2, 12), st.integers(0, 500))
def test_dense_clips_cover_the_whole_video(rate: int, num_frames: int, num_clips: int, more: int) -> None:
    """Exact spacing, first frame of the video in the first clip, last frame in the last."""
    length = (num_frames - 1) * rate + 1 + more
    clips = DenseSampler(rate).uniform_clips(Timeline(length, 30), num_frames, num_clips)
    assert (clips[0][0], clips[-1][-1]) == (0, length - 1)
    assert all(b - a == rate for clip in clips for a, b in itertools.pairwise(clip))
