"""The store of views: whole groups, each view once, and one clear line for what is damaged."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from video_iresnet.data.records import Record
from video_iresnet.engine.views import (
    FORMAT,
    StoredVideo,
    VideoOutputs,
    ViewStore,
    fingerprint,
    weights_hash,
)
from video_iresnet.runtime.errors import InputError

NUM_VIDEOS = 7
RECORDS = [Record(f"a b/é {i}.mp4", f"/data/{i}.mp4", i % 3) for i in range(NUM_VIDEOS)]
ABOUT = {"format": FORMAT, "num_videos": NUM_VIDEOS, "dtype": "float32", "weights": "a"}


def outputs(record: int) -> VideoOutputs:
    """Of 2 clips x 3 crops, 5 classes and two orders of frames; every fourth video failed."""
    if record % 4 == 3:
        return VideoOutputs(record, {}, "it is cut")
    rng = np.random.default_rng(record)
    probabilities = rng.dirichlet(np.ones(5), (2, 2, 3)).astype(np.float32)
    normalizer = rng.normal(size=(2, 2, 3)).astype(np.float32)
    kept = {
        order: {"probabilities": probabilities[i], "normalizer": normalizer[i]}
        for i, order in enumerate(("", "reversed"))
    }
    return VideoOutputs(record, kept, "")


def whole(folder: Path, about: dict[str, object] = ABOUT) -> ViewStore:
    """A store of all videos in the files of two processes."""
    store = ViewStore(folder, about)
    for rank, records in [(1, (2, 3)), (0, (0, 1)), (1, (6,)), (0, (4, 5))]:
        store.append(rank, [outputs(record) for record in records], RECORDS)
    return store


def assert_same(video: StoredVideo, expected: VideoOutputs) -> None:
    assert video[:3] == (expected.record, RECORDS[expected.record].name, RECORDS[expected.record].label)
    assert video.error == expected.error
    assert set(video.outputs) == set(expected.outputs)
    for order, arrays in expected.outputs.items():
        assert set(video.outputs[order]) == set(arrays)
        for name, array in arrays.items():
            assert video.outputs[order][name].dtype == array.dtype
            assert np.array_equal(video.outputs[order][name], array)


def test_views_come_back_in_the_order_of_records(tmp_path: Path) -> None:
    store = whole(tmp_path)
    assert store.folder == tmp_path / fingerprint(ABOUT)
    assert sorted(path.name for path in store.folder.iterdir()) == ["process_0.sqlite", "process_1.sqlite"]
    store.check_complete()
    for stored in (store, ViewStore.open(store.folder)):
        assert stored.about == ABOUT
        videos = list(stored)
        assert len(videos) == NUM_VIDEOS
        for number, video in enumerate(videos):
            assert_same(video, outputs(number))


def test_half_precision_keeps_half_the_bytes(tmp_path: Path) -> None:
    store = whole(tmp_path, ABOUT | {"dtype": "float16"})
    for number, video in enumerate(store):
        for order, arrays in outputs(number).outputs.items():
            stored = video.outputs[order]
            assert (stored["probabilities"].dtype, stored["normalizer"].dtype) == (np.float16, np.float32)
            assert np.array_equal(stored["probabilities"], arrays["probabilities"].astype(np.float16))


def test_a_store_is_named_by_all_that_its_numbers_depend_on(tmp_path: Path) -> None:
    names = {ViewStore(tmp_path, ABOUT | change).folder.name for change in ({}, {"weights": "b"}, {"x": [1]})}
    assert len(names) == 3
    assert all(re.fullmatch("[0-9a-f]{12}", name) for name in names)
    weights = {"w": torch.arange(4.0), "b": torch.tensor(1)}
    others = [weights | {"w": torch.tensor([0.0, 1, 2, 4])}, weights | {"w": torch.arange(4.0).view(2, 2)}]
    others.append({"v": weights["w"], "b": weights["b"]})
    assert len({weights_hash(tensors) for tensors in [weights, *others]}) == 4
    assert weights_hash(dict(reversed(weights.items()))) == weights_hash(weights)


def test_groups_are_stored_about_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = ViewStore(tmp_path, ABOUT)
    writer = store.writer(0, RECORDS)
    for record, seconds in enumerate((0.5, 0.4, 0.2, 0.9)):
        now[0] += seconds
        writer.add([outputs(record)])
        assert store.records() == ([0, 1, 2] if record >= 2 else [])
    writer.flush()
    assert store.records() == [0, 1, 2, 3]


def _append_forever(store: ViewStore) -> None:
    for number in range(1000):
        pair = (2 * number, 2 * number + 1)
        store.append(0, [outputs(0)._replace(record=record) for record in pair], RECORDS * 1000)


def test_a_killed_process_leaves_whole_groups(tmp_path: Path) -> None:
    """The journal of what was half written is rolled back when the file is next opened."""
    rng = np.random.default_rng(0)
    for kill in range(5):
        store = ViewStore(tmp_path, ABOUT | {"num_videos": 2000, "kill": kill})
        process = multiprocessing.get_context("fork").Process(target=_append_forever, args=(store,))
        process.start()
        while not list(store.folder.glob("*.sqlite")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        done = store.records()
        assert done == list(range(len(done)))
        assert len(done) % 2 == 0
        assert [video.record for video in store] == done
        store.append(0, [outputs(0)._replace(record=len(done))], RECORDS * 1000)
        assert len(store.records()) == len(done) + 1
        assert [path.name for path in store.folder.iterdir()] == ["process_0.sqlite"]


def test_a_failed_write_stores_nothing(tmp_path: Path) -> None:
    store = ViewStore(tmp_path, ABOUT)
    store.append(0, [outputs(0)], RECORDS)
    with pytest.raises(InputError, match=r"^cannot write \S*process_0.sqlite: .*UNIQUE.*; what was stored"):
        store.append(0, [outputs(1), outputs(0)], RECORDS)
    assert store.records() == [0]
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write \S*: (File exists|Not a directory); "):
        ViewStore(tmp_path / "file", ABOUT).append(0, [outputs(0)], RECORDS)


def test_each_video_is_there_exactly_once(tmp_path: Path) -> None:
    store = ViewStore(tmp_path, ABOUT)
    with pytest.raises(InputError, match=r"^7 of 7 videos are not in \S*; run the test again, it continues"):
        store.check_complete()
    store.append(0, [outputs(record) for record in (0, 1, 2, 3, 5)], RECORDS)
    with pytest.raises(InputError, match=r"^2 of 7 videos are not in "):
        store.check_complete()
    store.append(2, [outputs(record) for record in (3, 4, 6)], RECORDS)
    with pytest.raises(InputError, match=r"holds 1 videos twice, or that are not in .*, number 3 first"):
        store.check_complete()


def test_groups_with_a_failed_video_are_forgotten(tmp_path: Path) -> None:
    store = whole(tmp_path)  # the fourth video failed
    store.forget_failed(2)
    assert store.records() == [0, 1, 4, 5, 6]
    assert [video.record for video in store] == [0, 1, 4, 5, 6]
    store.append(0, [outputs(2), outputs(3)], RECORDS)
    assert len(list(store)) == NUM_VIDEOS
    ViewStore(tmp_path / "none", ABOUT).forget_failed(2)


def change_text(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(sql)


def flip(path: Path, find: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(find) + len(find) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path, 9000), "is damaged (database disk image is malformed)"),
    "header": (lambda path: path.write_bytes(b"x" * 5000), "is damaged (file is not a database)"),
    "bit": (
        lambda path: flip(path, outputs(5).outputs[""]["probabilities"].tobytes()),
        "is damaged (the views of a b/é 5.mp4 have another checksum)",
    ),
    "label": (
        lambda path: change_text(path, "UPDATE videos SET label = 2 WHERE record = 4"),
        "is damaged (the views of a b/é 4.mp4 have another checksum)",
    ),
    "array": (
        lambda path: change_text(path, "DELETE FROM arrays WHERE record = 1 AND frames = 'reversed'"),
        "is damaged (the views of a b/é 1.mp4 have another checksum)",
    ),
    "about": (
        lambda path: change_text(path, "UPDATE about SET json = replace(json, '7', '8')"),
        "holds views of another test, or is damaged",
    ),
    "no JSON": (lambda path: change_text(path, "UPDATE about SET json = '{'"), "is damaged (Expecting"),
    "table": (lambda path: change_text(path, "DROP TABLE arrays"), "is damaged (no such table: arrays)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_one_clear_line(damage: str, tmp_path: Path) -> None:
    store = whole(tmp_path)
    path = store.folder / "process_0.sqlite"
    change, message = DAMAGE[damage]
    change(path)

    def read() -> None:
        store.check_complete()
        list(store)

    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {message}')}[^\n]*; remove it and run the"):
        read()


def test_an_empty_file_holds_no_video(tmp_path: Path) -> None:
    store = whole(tmp_path)
    os.truncate(store.folder / "process_1.sqlite", 0)
    assert store.records() == [0, 1, 4, 5]
    assert [video.record for video in store] == [0, 1, 4, 5]
    assert ViewStore.open(store.folder).about == ABOUT


def test_a_folder_that_is_renamed_is_not_read(tmp_path: Path) -> None:
    store = whole(tmp_path)
    store.folder.rename(tmp_path / "0123456789ab")
    with pytest.raises(InputError, match="holds views of another test"):
        ViewStore.open(tmp_path / "0123456789ab")
    with pytest.raises(InputError, match="holds no views"):
        ViewStore.open(tmp_path / "gone")


def test_names_of_folders_are_no_options_of_sqlite(tmp_path: Path) -> None:
    store = whole(tmp_path / "50%?mode=memory#x")
    assert len(store.records()) == len(list(store)) == NUM_VIDEOS


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    store = whole(tmp_path)
    for path in [*store.folder.iterdir(), store.folder]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert len(list(store)) == NUM_VIDEOS
    finally:
        store.folder.chmod(0o755)


def test_removed_views_leave_no_folder(tmp_path: Path) -> None:
    first, second = whole(tmp_path / "views"), whole(tmp_path / "views", ABOUT | {"weights": "b"})
    first.remove()
    assert list((tmp_path / "views").iterdir()) == [second.folder]
    second.remove()
    assert not list(tmp_path.iterdir())


def test_files_are_plain_tables(tmp_path: Path) -> None:
    """Any program that reads SQLite finds its way."""
    store = whole(tmp_path)
    with closing(sqlite3.connect(shutil.copy(store.folder / "process_0.sqlite", tmp_path))) as database:
        assert json.loads(*database.execute("SELECT json FROM about").fetchone()) == ABOUT
        row = database.execute(
            "SELECT videos.name, label, dtype, shape, numbers FROM videos JOIN arrays USING (record) "
            "WHERE record = 4 AND frames = 'reversed' AND arrays.name = 'probabilities'"
        ).fetchone()
    assert row[:4] == ("a b/é 4.mp4", 1, "<f4", "[2, 3, 5]")
    assert row[4] == outputs(4).outputs["reversed"]["probabilities"].tobytes()
