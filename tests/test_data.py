"""Transforms, data sets and loaders: one draw per clip, the same samples for any workers and processes, bad
videos dealt with openly.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, numbered_frame, shown_numbers, write_video

from video_iresnet.build import build_normalize
from video_iresnet.config import load_config
from video_iresnet.data import loader as loader_module
from video_iresnet.data.dataset import ClipDataset, SampleKey, TrainSample, ViewDataset
from video_iresnet.data.decode import Reader, open_video
from video_iresnet.data.functional import Place, resize, short_side_size, spread_crops
from video_iresnet.data.loader import (
    BatchShape,
    ClipBatch,
    EpochBatches,
    WatchedLoader,
    clip_loader,
    collate_clips,
    view_loader,
)
from video_iresnet.data.packed import PackedRecords
from video_iresnet.data.records import Record, read_records
from video_iresnet.data.sampling import DenseSampler
from video_iresnet.data.transforms import Compose, RandomFlip, ShortSideJitter
from video_iresnet.runtime.errors import InputError


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
    assert spread_crops(*size, 3) == [Place(*corner) for corner in crops]
    assert spread_crops(*size, 1) == [Place(*crops[1])]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((240, 427), (256, 455)), ((360, 640), (256, 455)), ((480, 270), (455, 256)), ((240, 320), (256, 341))],
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


def test_normalization() -> None:
    """By the config's numbers, each channel by its own."""
    cfg = load_config(DEMO, ["DATA.MEAN", "[0.1,0.2,0.3]", "DATA.STD", "[0.4,0.5,0.6]"])
    clips = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1)
    expected = torch.tensor([-0.1 / 0.4, (128 / 255 - 0.2) / 0.5, 0.7 / 0.6])
    torch.testing.assert_close(build_normalize(cfg, torch.device("cpu"))(clips).flatten(), expected)


def records_of(folder: Path, name: str = "train.csv") -> list[Record]:
    return read_records(str(folder / name), root=str(folder), num_classes=8)


def clip_dataset(
    records: Sequence[Record], num_samples: int = 1, flip: RandomFlip | None = None
) -> ClipDataset:
    return ClipDataset(
        records,
        sampler=DenseSampler(2),
        open_video=open_video,
        crop=ShortSideJitter(32, 36, 44),
        flip=flip,
        augment=Compose([]),
        seed=0,
        num_samples=num_samples,
    )


SHAPE = BatchShape(8, 4, 32)


def some_batches(
    shapes: Path, *, workers: int = 0, world_size: int = 1, start: tuple[int, int] = (0, 0), count: int = 5
) -> list[torch.Tensor]:
    """The first global batches, each (B, 3, T, S, S), put together from all processes."""
    parts = []
    for rank in range(world_size):
        batches = EpochBatches(24, [SHAPE], seed=3, rank=rank, world_size=world_size, start=start)
        loader = clip_loader(clip_dataset(records_of(shapes)), batches, num_workers=workers, pin_memory=False)
        iterator = iter(loader)
        parts.append([next(iterator).clips for _ in range(count)])
    return [torch.cat(batch) for batch in zip(*parts, strict=True)]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are started in the system's way")
def test_workers_are_forked_where_python_would_use_a_server(shapes: Path) -> None:
    """As Python does by default from 3.14 on."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        batches = EpochBatches(24, [SHAPE], seed=3)
        options: dict[str, Any] = {"num_workers": 2, "pin_memory": False, "timeout": 30}
        with clip_loader(clip_dataset(records_of(shapes)), batches, **options) as loader:
            assert torch.equal(next(iter(loader)).clips, some_batches(shapes, count=1)[0])
    finally:
        multiprocessing.set_start_method(before, force=True)


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
    batches = EpochBatches(10, [BatchShape(3, 4, 32)], seed=0)
    iterator = iter(batches)
    epochs = [[next(iterator) for _ in range(batches.steps(0))] for _ in range(3)]
    for number, epoch in enumerate(epochs):
        records = [key.record for batch in epoch for key in batch]
        assert {key[:1] + key[2:] for batch in epoch for key in batch} == {(number, 4, 32, 0)}
        assert len(set(records)) == 9
    assert epochs[0] != epochs[1]
    assert next(iter(EpochBatches(10, [BatchShape(3, 4, 32)], seed=1))) != epochs[0][0]


def test_shapes_may_depend_on_the_epoch() -> None:
    """Steps, and the records of each, are those of the epoch's shapes; a restart goes on there."""
    small, large = BatchShape(6, 2, 16, 8), BatchShape(2, 4, 32)
    of_epoch = [[small], [small, large], [large]]
    batches = EpochBatches(14, lambda epoch: of_epoch[epoch], seed=5)
    assert [batches.steps(epoch) for epoch in range(3)] == [2, 3, 7]
    assert [batches.steps_before(epoch) for epoch in range(4)] == [0, 2, 5, 12]
    expected = [[small] * 2, [small, large, small], [large] * 7]
    iterator = iter(batches)
    for epoch, shapes in enumerate(expected):
        seen = []
        for step, shape in enumerate(shapes):
            keys = next(iterator)
            assert {key[2:] for key in keys} == {shape[1:]}
            assert {key.epoch for key in keys} == {epoch}
            assert [key.record for key in keys] == batches.records_of(epoch, step)
            seen += batches.records_of(epoch, step)
            restarted = [
                next(iter(EpochBatches(14, lambda epoch: of_epoch[epoch], seed=5, rank=rank, world_size=2,
                                       start=(epoch, step))))
                for rank in (0, 1)
            ]  # fmt: skip
            assert restarted[0] + restarted[1] == keys
        assert len(set(seen)) == len(seen) == sum(shape.batch_size for shape in shapes)
    ordinary = EpochBatches(14, [large], seed=5)
    assert [ordinary.steps(epoch) for epoch in (0, 9)] == [7, 7]
    assert ordinary.records_of(2, 3) == batches.records_of(2, 3), "the order depends on the epoch alone"
    two_clips = EpochBatches(14, [small], seed=5, num_samples=2)
    assert two_clips.steps(0) == 4
    assert two_clips.records_of(0, 0) == (ordinary.records_of(0, 0) + ordinary.records_of(0, 1))[:3]


def test_the_key_decides_the_largest_sampling_rate(shapes: Path) -> None:
    """The frames of a sample are those that its sampler draws with the rate of its key."""
    records = records_of(shapes)
    read: list[list[int]] = []
    dataset = clip_dataset(records)

    def noting(record: Record) -> Any:
        reader = open_video(record)
        original = reader.read
        reader.read = lambda indices: read.append(list(indices)) or original(indices)
        return reader

    dataset.open_video = noting
    distances = set()
    for record in range(24):
        dataset[SampleKey(0, record, 2, 32, 4)]
        dataset[SampleKey(0, record, 2, 32)]
        distances.add(read[-2][1] - read[-2][0])
        assert read[-1][1] - read[-1][0] == 2
    assert distances == {2, 3, 4}


def test_another_clip_of_the_epoch_takes_a_bad_videos_place(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"")
    records = records_of(shapes)
    broken = [*records[:5], Record("bad.mp4", str(tmp_path / "bad.mp4"), 5), *records[6:]]
    sample = clip_dataset(broken)[SampleKey(2, 5, 4, 32)]
    assert [failure.record for failure in sample.failures] == [5]
    assert "Invalid data" in sample.failures[0].reason
    again = clip_dataset(broken)[SampleKey(2, 5, 4, 32)]
    assert torch.equal(sample.clips[0], again.clips[0])
    same = [
        i
        for i in range(24)
        if i != 5 and torch.equal(clip_dataset(broken)[SampleKey(2, i, 4, 32)].clips[0], sample.clips[0])
    ]
    assert len(same) == 1
    assert sample.labels == [broken[same[0]].label]
    loader = clip_loader(
        clip_dataset(broken),
        EpochBatches(24, [BatchShape(24, 4, 32)], seed=0),
        num_workers=0,
        pin_memory=False,
    )
    batch = next(iter(loader))
    assert [failure.record for failure in batch.failures] == [5]
    assert len(batch.clips) == 24


def test_a_list_of_bad_videos_gives_an_empty_batch(tmp_path: Path) -> None:
    records = [Record("gone.mp4", str(tmp_path / "gone.mp4"), 0)] * 2
    loader = clip_loader(
        clip_dataset(records),
        EpochBatches(2, [BatchShape(2, 4, 32)], seed=0),
        num_workers=0,
        pin_memory=False,
    )
    assert next(iter(loader)).clips.numel() == 0


def test_views_come_from_one_decoding_and_one_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", 60, size=(64, 96))
    opened = []
    dataset = ViewDataset(
        [Record("a.mp4", str(path), 0)],
        sampler=DenseSampler(5),
        open_video=lambda record: opened.append(record) or open_video(record),
        num_frames=4,
        num_clips=3,
        num_crops=3,
        short_side=64,
        crop_size=64,
    )
    views = dataset[0]
    assert len(opened) == 1
    assert dataset.protocol == "3x3 @64"
    assert [shown_numbers(views.frames[torch.tensor(clip)]) for clip in views.clips] == [
        [0, 5, 10, 15],
        [22, 27, 32, 37],
        [44, 49, 54, 59],
    ]
    assert views.crops == [Place(0, 0), Place(0, 16), Place(0, 32)]
    assert views.frames.shape == (12, 64, 96, 3)
    expected = torch.from_numpy(np.stack([numbered_frame(i, (64, 96)) for i in (0, 5, 10)]))
    assert (views.frames[:3].float() - expected.float()).abs().mean() < 12


def test_an_unreadable_test_video_is_never_replaced(tmp_path: Path) -> None:
    dataset = ViewDataset(
        [Record("x", str(tmp_path / "x"), 0)],
        sampler=DenseSampler(1),
        open_video=open_video,
        num_frames=2,
        num_clips=1,
        num_crops=1,
        short_side=32,
        crop_size=32,
    )
    assert dataset[0].clips == []
    assert "No such file" in dataset[0].error


def test_groups_of_videos_do_not_depend_on_processes(shapes: Path) -> None:
    dataset = ViewDataset(
        records_of(shapes, "test.csv"),
        sampler=DenseSampler(1),
        open_video=open_video,
        num_frames=2,
        num_clips=1,
        num_crops=1,
        short_side=32,
        crop_size=32,
    )

    def groups(world_size: int) -> list[list[int]]:
        loaders = [
            view_loader(
                dataset, videos_at_once=2, rank=r, world_size=world_size, num_workers=0, pin_memory=False
            )
            for r in range(world_size)
        ]
        return sorted([video.record for video in group] for loader in loaders for group in loader)

    assert groups(1) == groups(2) == groups(3) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]


def test_the_batch_sampler_decides_size_frames_and_crop(shapes: Path) -> None:
    """Batches of an epoch take the shapes in turn; the samples come in those sizes, and every record at most
    once.
    """
    cycle = [BatchShape(8, 2, 32), BatchShape(4, 4, 48)]
    batches = EpochBatches(24, cycle, seed=0)
    assert batches.steps(0) == 4
    loader = iter(clip_loader(clip_dataset(records_of(shapes)), batches, num_workers=0, pin_memory=False))
    assert [tuple(next(loader).clips.shape) for _ in range(5)] == [
        (8, 3, 2, 32, 32),
        (4, 3, 4, 48, 48),
    ] * 2 + [(8, 3, 2, 32, 32)]
    keys = iter(batches)
    records = [key.record for _ in range(4) for key in next(keys)]
    assert len(records) == len(set(records)) == 24
    halves = [
        next(iter(EpochBatches(24, cycle, seed=0, rank=rank, world_size=2, start=(0, 1)))) for rank in (0, 1)
    ]
    again = iter(batches)
    next(again)
    assert halves[0] + halves[1] == next(again)


def test_one_decoding_gives_several_clips(shapes: Path) -> None:
    """Two clips of each record: the same frames, another crop; a batch counts clips."""
    records = records_of(shapes)
    opened = []
    dataset = clip_dataset(records, num_samples=2)
    dataset.open_video = lambda record: opened.append(record) or open_video(record)
    sample = dataset[SampleKey(0, 3, 4, 32)]
    assert (len(opened), len(sample.clips), sample.labels) == (1, 2, [records[3].label] * 2)
    assert not torch.equal(*sample.clips)
    assert torch.equal(sample.clips[0], clip_dataset(records)[SampleKey(0, 3, 4, 32)].clips[0])
    batches = EpochBatches(24, [SHAPE], seed=0, num_samples=2)
    assert batches.steps(0) == 6
    batch = next(iter(clip_loader(dataset, batches, num_workers=0, pin_memory=False)))
    assert (len(batch.clips), len(batch.labels)) == (8, 8)
    assert torch.equal(batch.labels[::2], batch.labels[1::2])


def test_flips_change_the_labels_of_a_dataset(shapes: Path) -> None:
    records = records_of(shapes)
    plain, flipped = (
        clip_dataset(records),
        clip_dataset(records, flip=RandomFlip({0: 1, 1: 0}, frozenset({2}))),
    )
    changed = 0
    for i, record in enumerate(records):
        key = SampleKey(0, i, 4, 32)
        a, b = plain[key], flipped[key]
        mirrored = not torch.equal(a.clips[0], b.clips[0])
        assert torch.equal(a.clips[0].flip(3) if mirrored else a.clips[0], b.clips[0])
        assert b.labels == [{0: 1, 1: 0}.get(record.label, record.label) if mirrored else record.label]
        assert not (mirrored and record.label == 2)
        changed += mirrored
    assert 4 < changed < 20


def test_packed_records_are_the_records() -> None:
    records = [
        Record("a b.mp4", "/v/a b.mp4", 3),
        Record("\u00e9\udcff.mp4", "/v/\u00e9\udcff.mp4", 0),
        Record("x", "/v/x/%05d.jpg", 7, 1, 40),
    ]
    packed = PackedRecords(records)
    assert list(packed) == records
    assert packed[-1] == records[2]
    assert packed[:2] == records[:2]
    assert len(packed) == 3
    for index in (3, -4):
        with pytest.raises(IndexError, match=f"record {index} of 3"):
            packed[index]


class Stuck:
    """Opens videos like open_video, but for one file, at which the process hangs or dies."""

    def __init__(self, name: str, dies: bool) -> None:
        self.name = name
        self.dies = dies

    def __call__(self, record: Record) -> Reader:
        if record.name.endswith(self.name):
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return open_video(record)


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("testing", [True, False])
def test_a_worker_that_hangs_or_dies_names_its_file(shapes: Path, dies: bool, testing: bool) -> None:
    records = PackedRecords(records_of(shapes))
    opener = Stuck("train_0007.mp4", dies)
    if testing:
        views = ViewDataset(
            records,
            sampler=DenseSampler(1),
            open_video=opener,
            num_frames=2,
            num_clips=1,
            num_crops=1,
            short_side=32,
            crop_size=32,
        )
        loader = view_loader(
            views, videos_at_once=2, rank=0, world_size=1, num_workers=2, pin_memory=False, timeout=3
        )
    else:
        clips = clip_dataset(records)
        clips.open_video = opener
        loader = clip_loader(
            clips, EpochBatches(24, [SHAPE], seed=0), num_workers=2, pin_memory=False, timeout=3
        )
    what = (
        r"worker \(pid \d+\) was killed"
        if dies
        else r"no batch came for 3 s .* a decoding worker \(pid \d+\) has been reading"
    )

    def read() -> None:
        with loader:
            for _ in zip(range(12), loader, strict=False):
                time.sleep(0.1)

    with pytest.raises(InputError, match=f"{what}[^\n]* /[^\n]*train_0007.mp4[^\n]*$"):
        read()


def watched(shapes: Path, **options: Any) -> WatchedLoader[ClipBatch]:
    """Batches of four clips from one worker."""
    keys = [[SampleKey(0, 4 * batch + i, 4, 32) for i in range(4)] for batch in range(6)]
    return WatchedLoader(clip_dataset(records_of(shapes)), num_workers=1, batch_sampler=keys, **options)


def test_a_worker_that_is_killed_while_idle_read_no_video(shapes: Path) -> None:
    """The death is reported where the next batch is asked for, and not before."""
    with watched(shapes, timeout=30, collate_fn=collate_clips) as loader:
        others = set(multiprocessing.active_children())
        batches = iter(loader)
        (worker,) = set(multiprocessing.active_children()) - others
        next(batches)
        time.sleep(1)  # until it has read ahead
        os.kill(int(worker.pid or 0), signal.SIGKILL)
        time.sleep(0.5)
        with pytest.raises(
            InputError,
            match=rf"worker \(pid {worker.pid}\) was killed, perhaps for want of memory, while it read no "
            "video; lower DATA_LOADER.NUM_WORKERS$",
        ):
            next(batches)


def never(samples: object) -> object:
    time.sleep(60)
    return samples


def test_a_batch_that_hangs_after_reading_points_to_shared_memory(shapes: Path) -> None:
    with (
        pytest.raises(
            InputError, match=r"no batch came for 2 s .*no decoding worker is reading a video; .*/dev/shm"
        ),
        watched(shapes, timeout=2, collate_fn=never) as loader,
    ):
        next(iter(loader))


def collate_without_memory(samples: Sequence[TrainSample]) -> ClipBatch:
    """A limit on the size of files is one on shared memory too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return collate_clips(samples)


def test_a_lack_of_shared_memory_is_named_at_once(shapes: Path) -> None:
    with (
        pytest.raises(InputError, match=r"ran out of shared memory \(unable to .*\); .*--shm-size.*$"),
        watched(shapes, timeout=30, collate_fn=collate_without_memory) as loader,
    ):
        next(iter(loader))


def refuse(samples: object) -> object:
    raise InputError("this is refused")


def test_an_input_error_of_a_worker_stays_one_line(shapes: Path) -> None:
    with (
        pytest.raises(InputError, match=r"^this is refused$"),
        watched(shapes, timeout=30, collate_fn=refuse) as loader,
    ):
        next(iter(loader))


def test_memory_stays_flat_over_many_records() -> None:
    """100,000 records through two workers: the memory that a worker has for itself grows by less than the
    records would take as objects.
    """

    def grown(records: Sequence[Record]) -> int:
        dataset = clip_dataset(records)
        dataset.open_video = Constant()
        memory = Path("/proc/self/smaps_rollup")
        if not memory.exists():
            pytest.skip("reads /proc")
        batches = EpochBatches(len(records), [BatchShape(500, 1, 32)], seed=0)
        others = set(multiprocessing.active_children())
        loader = iter(clip_loader(dataset, batches, num_workers=1, pin_memory=False))
        (worker,) = set(multiprocessing.active_children()) - others
        next(loader)
        pid = worker.pid

        def own() -> int:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            return sum(int(size) for size in re.findall(r"^Private_\w+:\s+(\d+)", text, re.MULTILINE))

        before = own()
        for _ in range(20):
            next(loader)
        return own() - before

    records = [Record(f"{i:06d}" * 8, f"{i:06d}" * 9, 0) for i in range(100_000)]
    gc.collect()
    gc.disable()  # in both processes it would write to all their objects, whose pages they share until then
    try:
        assert grown(PackedRecords(records)) < 6_000
    finally:
        gc.enable()


class Constant:
    """A video of one grey picture, whatever the record."""

    fps = 25.0

    def __call__(self, record: Record) -> Constant:
        return self

    def __len__(self) -> int:
        return 4

    def __enter__(self) -> Constant:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(indices), 40, 40, 3, dtype=torch.uint8)


def test_the_first_record_is_noted_too(shapes: Path) -> None:
    clips = clip_dataset(records_of(shapes))
    loader = clip_loader(clips, EpochBatches(24, [SHAPE], seed=0), num_workers=3, pin_memory=False)
    loader.watched.notes[:2] = torch.tensor([[11, 0, 5], [12, -1, 6]])
    assert loader._reading() == [[11, 0, 5]]


def test_no_worker_is_dead_where_none_is_missing() -> None:
    assert loader_module._dead(set()) == 0
