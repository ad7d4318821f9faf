"""Files of stores: the same samples and results as from files, faults that are survived or told, a cache that
holds its bound.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
import torch
from conftest import ROOT, RunNet, write_video
from fsspec.config import conf
from object_store import Store, running
from torch.utils.data import DataLoader

from video_iresnet.data.decode import DecodeError, open_video
from video_iresnet.data.records import Record, file_sizes, missing_videos
from video_iresnet.models import create_model, load_weights
from video_iresnet.runtime import store_requests, stores
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.ranges import open_range, version_of
from video_iresnet.runtime.storage import make_output_dir, path_manager, read_lines
from video_iresnet.runtime.stores import BLOCK

for name in ("s3fs", "gcsfs", "moto"):
    pytest.importorskip(name)


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
    monkeypatch.setitem(conf, "gs", {"token": "anon", "endpoint_url": server.address})
    for name, number in {"FIRST_WAIT": 0.01, "TRIES": 4, "QUIET": 0}.items():
        monkeypatch.setattr(stores, name, number)
    forget()
    server.fail()
    return server


def forget() -> None:
    """Do as a new process: nothing is in memory."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    stores.cache.cache_clear()
    stores._looked.clear()
    stores._listed.clear()
    stores._recent.blocks.clear()


def fetches(store: Store) -> list[str]:
    """The ranges that were asked for."""
    return [span for method, _, span, _, _ in store.requests() if method == "GET" and span]


DATA = bytes(itertools.islice(itertools.cycle(range(251)), 5 * BLOCK + 17))


def test_bytes_and_texts(store: Store) -> None:
    store.put("a%20b%25.bin", DATA)
    store.put("list.csv", "\ufeffé.mp4 0\r\nb.mp4 1\n".encode())
    store.put("empty", b"")
    for root in ("s3://bucket", "gs://bucket", f"{store.address}/bucket"):
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
@pytest.mark.parametrize("root", ["s3://bucket", "gs://bucket", "web"])
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
    patient = stores.TIMEOUT
    little = 2 if fault == "stall" else patient
    monkeypatch.setattr(stores, "TIMEOUT", little)
    store.fail(("a.bin", fault, 2 if fault == "stall" else 3))
    with open_range(f"{root}/a.bin") as file:
        assert file.read() == DATA
    assert f"{root}/a.bin: " in logged.text
    assert "; try 1 of 4 failed" in logged.text
    forget()
    store.put("b.bin", DATA)
    monkeypatch.setattr(stores, "TIMEOUT", patient)
    with open_range(f"{root}/b.bin") as file:
        store.fail(("b.bin", fault, -1))
        monkeypatch.setattr(stores, "TIMEOUT", little)
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
    for (scheme, fault), line in {
        (
            "s3",
            "403",
        ): r"s3://bucket/a\.bin may not be read \(.*Forbidden\); check the credentials and the name",
        ("s3", "401"): r"s3://bucket/a\.bin may not be read \(.+\); check the credentials and the name",
        (
            "s3",
            "400",
        ): r"s3://bucket/a\.bin cannot be read: .+; check the address, the credentials and the region",
        (
            "gs",
            "403",
        ): r"gs://bucket/a\.bin may not be read \(.*Forbidden.*\); check the credentials and the name",
        ("gs", "401"): r"gs://bucket/a\.bin may not be read \(.+\); check the credentials and the name",
    }.items():
        store.fail(("a.bin", fault, -1))
        with pytest.raises(InputError, match=f"^{line}$"):
            open_range(f"{scheme}://bucket/a.bin")
    store.fail(("a.bin", "200", -1))
    address = f"{store.address}/bucket/a.bin"
    with pytest.raises(
        InputError, match=rf"^{address} cannot be read: its server does not answer requests of"
    ):
        open_range(address.replace("//", "//user:secret@") + "?signature=secret")
    with pytest.raises(InputError, match=r"^s3://b u/a cannot be read: Parameter validation failed; check"):
        open_range("s3://b u/a")


def test_settings_of_fsspec_apply(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the addresses of a MinIO under a name, and headers of a web server."""
    style = {"s3": {"addressing_style": "path"}}
    monkeypatch.setitem(conf, "s3", {"config_kwargs": style, "anon": True})
    files = store_requests.STORES["s3://"].file_system()
    assert files.config_kwargs == style | {"retries": {"total_max_attempts": 1}}
    assert files.anon
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"headers": {"A": "b"}}})
    files = store_requests.STORES["http://"].file_system()
    assert files.client_kwargs == {"headers": {"A": "b"}, "trust_env": True}


def test_a_replaced_object_is_never_mixed_with_another(store: Store) -> None:
    for root in ("s3://bucket", "gs://bucket", f"{store.address}/bucket"):
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


def test_many_files_are_looked_at_by_listing_their_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_requests, "PAGE", 20)
    names = [f"many/{number} é.mp4" for number in range(23)]
    for name in names:
        store.put(quote(name), name.encode())
    records = [Record(name, f"s3://bucket/{name}", 0) for name in names]
    gone = [Record("", f"s3://bucket/{name}.mp4", 0) for name in ("many/gone", "none/a")]
    store.fail(("list-type", "500", 2))
    assert missing_videos([*records, *gone]) == gone
    counts = Counter((method, fault) for method, _, _, _, fault in store.requests())
    assert counts == {("GET", "500"): 2, ("GET", ""): 2, ("HEAD", ""): 2}
    assert file_sizes([*records, *gone]) == [len(name.encode()) for name in names] + [-1, -1]
    with open_range(records[-1].path) as file:
        assert file.read() == names[-1].encode()
    forget()
    store.fail(("list-type", "403", -1))  # where nobody may list, each is looked at
    assert missing_videos([*records[:20], *gone]) == gone


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


def test_a_store_that_goes_on_failing_ends_a_run_in_one_line(
    store: Store,
    stored_shapes: str,
    small: list[str],
    run_net: RunNet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is no bad video, in training or testing. The run goes on when the store works again."""
    more = ["SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "DATA_LOADER.NUM_WORKERS", "1"]
    more += ["DATA.PATH_TO_DATA_DIR", stored_shapes, "OUTPUT_DIR", str(tmp_path / "out")]
    line = r"error: s3://bucket/shapes/\S+ could not be read in 4 tries and \d+ s \(the last: .+\); when .+\n"
    for split, *keys in (["train"], ["test"]):
        videos = read_lines(f"{stored_shapes}/{split}.csv")
        forget()
        store.fail((videos[-1].split()[0].split(",")[0], "503", -1))
        assert run_net(*small, *more, *keys) == 1
        assert re.fullmatch(line, capsys.readouterr().err.splitlines(keepends=True)[-1])
        assert (tmp_path / "out/checkpoints/checkpoint_epoch_00001.pyth").exists() == (split == "test")
        assert not (tmp_path / "out/results.json").exists()
        store.fail()
        if split == "train":
            assert run_net(*small, *more, "TEST.ENABLE", "False") == 0


def test_weights_are_copied_into_the_cache_once(store: Store, tmp_path: Path) -> None:
    network = create_model("iresnet", 18, width=4, num_classes=3)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    store.put("w.pth", (tmp_path / "w.pth").read_bytes())
    store.fail(("w.pth", "cut", 2), ("w.pth", "short", 1))
    path = path_manager.get_local_path("s3://bucket/w.pth")
    assert load_weights(create_model("iresnet", 18, width=4, num_classes=3), path).complete
    assert re.fullmatch(str(tmp_path / r"cache/[0-9a-f]{64}-whole-w\.pth"), path)
    store.fail()
    forget()
    assert path_manager.get_local_path("s3://bucket/w.pth") == path
    assert [method for method, *_ in store.requests()] == ["HEAD"]
    Path(path).write_bytes(b"damaged")
    assert Path(path_manager.get_local_path("s3://bucket/w.pth")).stat().st_size > 7
    store.put("w.pth", b"other weights")
    forget()
    assert Path(path_manager.get_local_path("s3://bucket/w.pth")).read_bytes() == b"other weights"
    with pytest.raises(FileNotFoundError):
        path_manager.get_local_path("s3://bucket/none.pth")
    with pytest.raises(
        InputError, match=r"^OUTPUT_DIR s3://bucket/out is an address; runs write to a folder"
    ):
        make_output_dir("s3://bucket/out")


def cached(tmp_path: Path) -> list[Path]:
    """The files in the cache, from the one that was used last."""
    files = [entry for entry in os.scandir(tmp_path / "cache") if entry.name != "counter"]
    return [Path(entry) for entry in sorted(files, key=lambda entry: -entry.stat().st_mtime_ns)]


def test_damaged_blocks_are_fetched_again(
    store: Store, tmp_path: Path, logged: pytest.LogCaptureFixture
) -> None:
    store.put("a.bin", DATA)
    with open_range("s3://bucket/a.bin") as file:
        file.read()
    blocks = cached(tmp_path)
    assert len(blocks) == 6
    for number, block in enumerate(blocks[:3]):
        content = bytearray(block.read_bytes())
        content[8] ^= number  # the first stays as it is
        block.write_bytes(content[: -1 if number == 2 else None])
    store.fail()
    forget()
    with open_range("s3://bucket/a.bin") as file:
        assert file.read() == DATA
    assert logged.text.count("is damaged and was removed from the cache") == 2
    assert 1 <= len(fetches(store)) <= 2
    assert len(cached(tmp_path)) == 6
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def total_size(folder: Path) -> int:
    """The size of all files, while others write and remove some."""
    total = 0
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def test_the_cache_holds_its_bound(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is used stays. So it is with several processes, of which one is killed."""
    limit = 40 * BLOCK
    monkeypatch.setenv("VIDEO_IRESNET_CACHE_GB", str(limit / 1e9))
    cache = stores.cache()
    cache.put("used", b"a")
    for number in range(100):
        cache.put(f"{number:064}", bytes(BLOCK))
        assert total_size(cache.folder) <= limit
        assert cache.get("used") == b"a"
    left = [number for number in range(100) if cache.get(f"{number:064}")]
    assert left == list(range(left[0], 100))
    assert 34 <= len(left) < 40
    cache.put("large", bytes(limit))
    assert cache.get("large") is None

    def write(first: int) -> None:
        for number in itertools.count(first, 2):
            cache.put(f"{number:064}", bytes(BLOCK))

    fork = get_context("fork")
    writers = [fork.Process(target=write, args=(first,), daemon=True) for first in (0, 1)]
    for writer in writers:
        writer.start()
    sizes = []
    for number in range(40):
        if number == 20:
            writers[0].kill()
        time.sleep(0.02)
        sizes.append(total_size(cache.folder))
    for writer in writers:
        writer.kill()
        writer.join()
    assert max(sizes) <= limit
    assert sizes[-1] > limit // 2


def test_what_the_cache_says(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    store.put("a.bin", DATA)
    for folder, line in {
        tmp_path: "^the cache folder .+ can be entered by others than you; name another",
        tmp_path / "file/cache": "^the cache folder .+ cannot be made: Not a directory; name another",
    }.items():
        tmp_path.chmod(0o755)
        (tmp_path / "file").touch()
        monkeypatch.setenv("VIDEO_IRESNET_CACHE", str(folder))
        forget()
        with open_range("s3://bucket/a.bin") as file, pytest.raises(InputError, match=line):
            file.read()
    monkeypatch.setenv("VIDEO_IRESNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VIDEO_IRESNET_CACHE_GB", "much")
    with pytest.raises(
        InputError, match=r"^VIDEO_IRESNET_CACHE_GB is 'much'; expected a number of gigabytes"
    ):
        stores.cache()
    monkeypatch.setenv("VIDEO_IRESNET_CACHE_GB", "0")
    with open_range("s3://bucket/a.bin") as file:
        assert file.read() == DATA
    assert not cached(tmp_path)
    monkeypatch.setenv("VIDEO_IRESNET_CACHE_GB", "1")
    forget()
    shutil.rmtree(stores.cache().folder)
    with open_range("s3://bucket/a.bin") as file:
        assert file.read() == DATA
    assert logged.text.count("cannot be written: No such file or directory; going on without it") == 1


class Listed(torch.utils.data.Dataset[bytes]):
    def __getitem__(self, number: int) -> bytes:
        with open_range("s3://bucket/a.bin") as file:
            return file.read_at(number, 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_whether_forked_or_not(store: Store, method: str) -> None:
    """Even from a process that read before. (Runs fork theirs on Linux.)"""
    store.put("a.bin", DATA)
    with open_range("s3://bucket/a.bin") as file:
        file.read_at(0, 1)
    loader = DataLoader(
        Listed(), sampler=[0, 7, 250], batch_size=None, num_workers=1, multiprocessing_context=method
    )
    assert list(loader) == [b"\0", b"\7", b"\xfa"]


def test_https_and_its_certificates(store: Store) -> None:
    """In another process, as aiohttp reads the list of certificates once."""
    store.put("list.csv", b"a 0\n")
    code = f"""
from video_iresnet.runtime import stores
from video_iresnet.runtime.storage import read_lines
stores.TRIES = 2
try:
    print(read_lines("{store.secure}/bucket/list.csv"))
except ValueError as error:
    print(error)
"""
    for trusted, said in ((True, "['a 0']\n"), (False, "bucket/list.csv cannot be read: ")):
        variables = {"SSL_CERT_FILE": str(store.folder / "certificate.pem")} if trusted else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | variables, cwd=ROOT, capture_output=True, text=True
        )
        assert said in done.stdout, done.stderr
