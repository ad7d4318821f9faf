"""Transforms, data sets and loaders: one draw per clip, the same samples for any workers and processes, bad videos dealt with openly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import numbered_frame, shown_numbers, write_video

from video_iresnet.data.dataset import ClipDataset, ViewDataset
from video_iresnet.data.decode import open_video
from video_iresnet.data.functional import flip, resize, short_side_size, spread_crops, to_network
from video_iresnet.data.loader import EpochBatches, clip_loader, view_loader
from video_iresnet.data.records import Record, read_records
from video_iresnet.data.sampling import DenseSampler
from video_iresnet.data.transforms import InTurn, RandomFlip, ShortSideJitter

TRANSFORM = InTurn([ShortSideJitter(32, 36, 44), RandomFlip()])


# Executed in PySlowFast: (height, width, size) -> (top, left) of the three crops.
@pytest.mark.parametrize(
    ("size", "crops"),
    [
        ((256, 340, 256), [(0, 0), (0, 42), (0, 84)]),
        ((256, 341, 224), [(16, 0), (16, 59), (16, 117)]),
        ((455, 256, 256), [(0, 0), (100, 0), (199, 0)]),
        ((256, 256, 224), [(16, 0), (16, 16), (16, 32)]),
    ],
)
def test_three_crops(size: tuple[int, int, int], crops: list[tuple[int, int]]) -> None:
    assert spread_crops(*size, 3) == crops
    assert spread_crops(*size, 1) == [crops[1]]


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 427), (256, 455)), ((360, 640), (256, 455)), ((480, 270), (455, 256)), ((240, 320), (256, 341))]
)
def test_short_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert short_side_size(*size, 256) == expected


def test_resize_is_antialiased_and_keeps_uint8() -> None:
    stripes = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    small = resize(stripes, 8, 8)
    assert small.dtype == torch.uint8
    assert (small[:, :, 2:-2].float() - 127.5).abs().max() < 8
    assert resize(stripes, 32, 32) is stripes


def test_normalisation() -> None:
    clips = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    mean, std = torch.full((3, 1, 1, 1), 0.45), torch.full((3, 1, 1, 1), 0.225)
    torch.testing.assert_close(to_network(clips, mean, std).flatten(), torch.tensor([-2.0, (128 / 255 - 0.45) / 0.225, 0.55 / 0.225]))


def test_identical_frames_stay_identical_and_draws_differ() -> None:
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (1, 48, 70, 3), dtype=np.uint8))
    outputs = [TRANSFORM(frame.expand(4, -1, -1, -1), np.random.default_rng(seed)) for seed in range(12)]
    for clip in outputs:
        assert clip.shape == (4, 32, 32, 3)
        assert all(torch.equal(clip[0], clip[t]) for t in range(1, 4))
    assert len({bytes(clip.contiguous().numpy()) for clip in outputs}) == 12


def test_random_crops_reach_every_edge() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(1, 48, 64, 3)
    lefts = [ShortSideJitter(48, 48, 48)(ramp, np.random.default_rng(seed))[0, 0, 0, 0].item() for seed in range(400)]
    assert (min(lefts), max(lefts)) == (0, 16)
    assert torch.equal(flip(ramp)[0, 0, :, 0], torch.arange(63, -1, -1, dtype=torch.uint8))
    flipped = sum(RandomFlip()(ramp, np.random.default_rng(seed))[0, 0, 0, 0].item() == 63 for seed in range(400))
    assert 150 < flipped < 250


def records_of(folder: Path, name: str = "train.csv") -> list[Record]:
    return read_records(str(folder / name), root=str(folder), num_classes=8)


def clip_dataset(records: list[Record], seed: int = 0) -> ClipDataset:
    return ClipDataset(records, sampler=DenseSampler(4, 2), open_video=open_video, transform=TRANSFORM, seed=seed)


def some_batches(shapes: Path, *, workers: int = 0, world_size: int = 1, start: tuple[int, int] = (0, 0), count: int = 5) -> list[torch.Tensor]:
    """The first global batches, each (B, 3, T, S, S), put together from all processes."""
    shares = []
    for rank in range(world_size):
        batches = EpochBatches(24, 8, seed=3, rank=rank, world_size=world_size, start=start)
        loader = clip_loader(clip_dataset(records_of(shapes)), batches, num_workers=workers, pin_memory=False)
        iterator = iter(loader)
        shares.append([next(iterator).clips for _ in range(count)])
    return [torch.cat(parts) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 3}, {"world_size": 2}, {"world_size": 4}])
def test_samples_do_not_depend_on_workers_or_processes(shapes: Path, options: dict[str, int]) -> None:
    expected = some_batches(shapes)
    assert expected[0].shape == (8, 3, 4, 32, 32)
    assert expected[0].is_contiguous(memory_format=torch.channels_last_3d)
    for a, b in zip(expected, some_batches(shapes, **options), strict=True):
        assert torch.equal(a, b)


def test_a_restart_sees_what_it_would_have_seen(shapes: Path) -> None:
    expected = some_batches(shapes, count=5)
    for a, b in zip(expected[4:], some_batches(shapes, start=(1, 1), count=1), strict=True):
        assert torch.equal(a, b)


def test_epochs_cover_the_records_in_new_orders() -> None:
    batches = EpochBatches(10, 3, seed=0)
    iterator = iter(batches)
    epochs = [[next(iterator) for _ in range(batches.steps_per_epoch)] for _ in range(3)]
    for number, epoch in enumerate(epochs):
        records = [record for batch in epoch for _, record in batch]
        assert {e for batch in epoch for e, _ in batch} == {number}
        assert len(set(records)) == 9
    assert epochs[0] != epochs[1]
    assert next(iter(EpochBatches(10, 3, seed=1))) != epochs[0][0]


def test_another_clip_of_the_epoch_takes_a_bad_videos_place(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    records = records_of(shapes)
    broken = [*records[:5], Record("bad.mp4", str(tmp_path / "bad.mp4"), 5), *records[6:]]
    sample = clip_dataset(broken)[2, 5]
    assert [failure.record for failure in sample.failures] == [5]
    assert "Invalid data" in sample.failures[0].reason
    again = clip_dataset(broken)[2, 5]
    assert torch.equal(sample.clip, again.clip)
    same = [i for i in range(24) if i != 5 and torch.equal(clip_dataset(broken)[2, i].clip, sample.clip)]
    assert len(same) == 1
    assert sample.label == broken[same[0]].label
    loader = clip_loader(clip_dataset(broken), EpochBatches(24, 24, seed=0), num_workers=0, pin_memory=False)
    batch = next(iter(loader))
    assert [failure.record for failure in batch.failures] == [5]
    assert len(batch.clips) == 24


def test_a_list_of_bad_videos_gives_an_empty_batch(tmp_path: Path) -> None:
    records = [Record("gone.mp4", str(tmp_path / "gone.mp4"), 0)] * 2
    loader = clip_loader(clip_dataset(records), EpochBatches(2, 2, seed=0), num_workers=0, pin_memory=False)
    assert next(iter(loader)).clips.numel() == 0


def test_views_come_from_one_decoding_and_one_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 60, size=(64, 96))
    opened = []
    dataset = ViewDataset(
        [Record("a.mp4", str(path), 0)],
        sampler=DenseSampler(4, 5),
        open_video=lambda record: opened.append(record) or open_video(record),
        num_clips=3,
        num_crops=3,
        short_side=64,
        crop_size=64,
    )
    views = dataset[0]
    assert len(opened) == 1
    assert dataset.protocol == "3x3 @64"
    assert [shown_numbers(views.frames[torch.tensor(clip)]) for clip in views.clips] == [[0, 5, 10, 15], [22, 27, 32, 37], [44, 49, 54, 59]]
    assert views.crops == [(0, 0), (0, 16), (0, 32)]
    assert views.frames.shape == (12, 64, 96, 3)
    expected = torch.from_numpy(np.stack([numbered_frame(i, (64, 96)) for i in (0, 5, 10)]))
    assert (views.frames[:3].float() - expected.float()).abs().mean() < 12


def test_an_unreadable_test_video_is_never_replaced(tmp_path: Path) -> None:
    dataset = ViewDataset(
        [Record("x", str(tmp_path / "x"), 0)],
        sampler=DenseSampler(2, 1),
        open_video=open_video,
        num_clips=1,
        num_crops=1,
        short_side=32,
        crop_size=32,
    )
    assert dataset[0].clips == []
    assert "No such file" in dataset[0].error


def test_groups_of_videos_do_not_depend_on_processes(shapes: Path) -> None:
    dataset = ViewDataset(
        records_of(shapes, "test.csv"), sampler=DenseSampler(2, 1), open_video=open_video, num_clips=1, num_crops=1, short_side=32, crop_size=32
    )

    def groups(world_size: int) -> list[list[int]]:
        loaders = [view_loader(dataset, videos_at_once=2, rank=r, world_size=world_size, num_workers=0, pin_memory=False) for r in range(world_size)]
        return sorted([video.record for video in group] for loader in loaders for group in loader)

    assert groups(1) == groups(2) == groups(3) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
