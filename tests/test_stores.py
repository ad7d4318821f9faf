"""Files of stores: the same samples and results as from files, faults that are survived or told, a cache that
holds its bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import RunNet, write_video
from object_store import Store, running

from video_iresnet.data.decode import DecodeError, open_video
from video_iresnet.data.records import Record, missing_videos
from video_iresnet.runtime import stores
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.ranges import open_range, version_of
from video_iresnet.runtime.storage import path_manager, read_lines
from video_iresnet.runtime.stores import BLOCK

pytest.importorskip("s3fs")
pytest.importorskip("moto")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running(tmp_path_factory.mktemp("store")) as store:
        yield store


@pytest.fixture
def store(server: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The server without faults, an empty cache, and little patience."""
    for key, value in {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "VIDEO_IRESNET_CACHE": str(tmp_path / "cache"),
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(key, value)
    for name, number in {"FIRST_WAIT": 0.01, "TRIES": 4, "QUIET": 0}.items():
        monkeypatch.setattr(stores, name, number)
    forget()
    server.fail()
    return server


def forget() -> None:
    """Do as a new process: nothing is in memory."""
    stores.cache.cache_clear()
    stores._looked.clear()
    stores._recent.blocks.clear()


def fetches(store: Store) -> list[str]:
    """The ranges that were asked for."""
    return [span for method, _, span, _, _ in store.requests() if method == "GET" and span]


DATA = bytes(itertools.islice(itertools.cycle(range(251)), 5 * BLOCK + 17))


def test_bytes_and_texts(store: Store) -> None:
    store.put("a%20b%25.bin", DATA)
    store.put("list.csv", "\ufeffé.mp4 0\r\nb.mp4 1\n".encode())
    store.put("empty", b"")
    for root in ("s3://bucket", f"{store.address}/bucket"):
        assert read_lines(f"{root}/list.csv") == ["é.mp4 0", "b.mp4 1"]
        assert version_of(f"{root}/empty").size == 0
        with path_manager.open(f"{root}/empty", "rb") as file:
            assert file.read() == b""
        assert not path_manager.exists(f"{root}/none")
        with open_range(f"{root}/a b%.bin") as file:
            assert file.version.size == len(DATA)
            assert file.read() == DATA
            for start, size in ((0, 1), (BLOCK - 1, 2), (3, 2 * BLOCK), (5 * BLOCK + 16, 1)):
                assert file.read_at(start, size) == DATA[start : start + size]


def test_reading_ahead(store: Store) -> None:
    """Straight on, one request fetches more and more; a large read fetches what it asks for."""
    store.put("long", bytes(40 * BLOCK))
    with open_range("s3://bucket/long") as file:
        while file.read(100_000):
            pass
    blocks = [0, 4, 12, 28, 40]
    assert fetches(store) == [f"bytes={a * BLOCK}-{b * BLOCK - 1}" for a, b in itertools.pairwise(blocks)]
    forget()
    store.fail()
    with open_range("s3://bucket/long") as file:
        file.read(40 * BLOCK)
    assert not fetches(store)  # they are in the cache


@pytest.mark.parametrize("fault", ["500", "503", "429", "stall", "cut", "short", "close"])
@pytest.mark.parametrize("root", ["s3://bucket", "web"])
def test_a_passing_fault_is_survived_and_a_lasting_one_told(
    store: Store,
    fault: str,
    root: str,
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = root.replace("web", f"{store.address}/bucket")
    store.put("a.bin", DATA)
    assert version_of(f"{root}/a.bin").size == len(DATA)
    if fault == "stall":
        monkeypatch.setattr(stores, "TIMEOUT", 1)
    store.fail(("a.bin", fault, 2 if fault == "stall" else 3))
    with open_range(f"{root}/a.bin") as file:
        assert file.read() == DATA
    assert f"{root}/a.bin: " in logged.text
    assert "; try 1 of 4 failed" in logged.text
    forget()
    store.put("b.bin", DATA)
    with open_range(f"{root}/b.bin") as file:
        store.fail(("b.bin", fault, -1))
        monkeypatch.setattr(stores, "TRIES", 2)
        with pytest.raises(InputError) as caught:
            file.read()
    line = str(caught.value)
    assert line.startswith(f"{root}/b.bin could not be read in 2 tries and ")
    assert line.endswith("; when the store and the network work again, start the same command again")
    assert "\n" not in line
    assert len(store.requests()) == (4 if fault == "close" else 2)  # aiohttp asks again, if at once


def test_what_is_refused_is_told_at_once(store: Store) -> None:
    store.put("a.bin", DATA)
    for fault, line in {
        "403": r"s3://bucket/a\.bin may not be read \(.*Forbidden\); check the credentials and the name",
        "401": r"s3://bucket/a\.bin may not be read \(.+\); check the credentials and the name",
        "400": r"s3://bucket/a\.bin cannot be read: .+; check the address, the credentials and the region",
    }.items():
        store.fail(("a.bin", fault, -1))
        with pytest.raises(InputError, match=f"^{line}$"):
            open_range("s3://bucket/a.bin")
    store.fail(("a.bin", "200", -1))
    address = f"{store.address}/bucket/a.bin"
    with pytest.raises(
        InputError, match=rf"^{address} cannot be read: its server does not answer requests of"
    ):
        open_range(address.replace("//", "//user:secret@") + "?signature=secret")
    with pytest.raises(InputError, match=r"^s3://b u/a cannot be read: Parameter validation failed; check"):
        open_range("s3://b u/a")


def test_a_replaced_object_is_never_mixed_with_another(store: Store) -> None:
    for root in ("s3://bucket", f"{store.address}/bucket"):
        store.put("a.bin", DATA)
        with open_range(f"{root}/a.bin") as file:
            assert file.read(10) == DATA[:10]
            store.put("a.bin", DATA[::-1])
            with pytest.raises(InputError, match=f"^{root}/a.bin cannot be read: it was replaced by another"):
                file.read()
        with open_range(f"{root}/a.bin") as file:
            assert file.read() == DATA[::-1]
            store.put("a.bin", DATA[:10])
        forget()
        with open_range(f"{root}/a.bin") as file:
            assert file.read() == DATA[:10]


def test_a_missing_video_is_a_bad_one_and_a_store_that_fails_is_not(store: Store, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 40, size=(320, 240))
    store.put("a.mp4", path.read_bytes())
    here, gone = Record("a", "s3://bucket/a.mp4", 0), Record("b", "s3://bucket/b.mp4", 0)
    with open_video(here) as stored, open_video(Record("a", str(path), 0)) as loose:
        assert torch.equal(stored.read([3, 30]), loose.read([3, 30]))
    assert [method for method, *_ in store.requests()] == ["PUT", "HEAD", "GET"]
    assert missing_videos([here, gone]) == [gone]
    with pytest.raises(DecodeError, match=r"^No such file or directory$"):
        open_video(gone)
    forget()
    store.put("a.mp4", path.read_bytes() + b"\0" * 8)
    for fault in ("500", "cut", "short"):
        store.fail(("a.mp4", fault, -1))
        with pytest.raises(InputError, match=r"^s3://bucket/a.mp4 could not be read in 4 tries"):
            open_video(here)


@pytest.fixture(scope="module")
def stored_shapes(server: Store, shapes: Path) -> str:
    """The moving shapes in the store."""
    for path in shapes.rglob("*.*"):
        server.put(f"shapes/{path.relative_to(shapes)}", path.read_bytes())
    return "s3://bucket/shapes"


def test_a_run_on_a_store_is_that_on_files(
    store: Store, stored_shapes: str, small: list[str], run_net: RunNet, tmp_path: Path
) -> None:
    """With two workers, on a network that fails now and then: weights and predictions are equal."""
    more = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA_LOADER.NUM_WORKERS", "2"]
    assert run_net(*small, *more, "OUTPUT_DIR", str(tmp_path / "files")) == 0
    faults = [(".mp4", fault, 2) for fault in ("500", "cut", "close", "short")]
    store.fail(*faults)
    more += ["DATA.PATH_TO_DATA_DIR", stored_shapes, "OUTPUT_DIR", str(tmp_path / "store")]
    assert run_net(*small, *more) == 0
    assert {fault for *_, fault in store.requests()} == {"", "500", "cut", "close", "short"}
    files, stored = (
        (tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("files", "store")
    )
    assert len(files) == len(stored) == 12
    assert files == stored
    weights = [
        torch.load(tmp_path / name / "checkpoints/checkpoint_epoch_00001.pyth", weights_only=True)
        for name in ("files", "store")
    ]
    for key, value in weights[0]["model_state"].items():
        assert torch.equal(value, weights[1]["model_state"][key]), key
