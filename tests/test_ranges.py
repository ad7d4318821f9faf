"""Files that are read in ranges: the same frames as from files of a disk, and failures that are told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import write_video

from video_iresnet.data.decode import DecodeError, open_video
from video_iresnet.data.decode.backends import BACKENDS
from video_iresnet.data.decode.container import missing_bytes
from video_iresnet.data.records import Record, file_sizes, missing_videos
from video_iresnet.runtime import ranges
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.ranges import RangeFile, RangeHandler, Version, join, version_of
from video_iresnet.runtime.storage import open_text, path_manager, read_lines


class Part(RangeFile):
    """A file of the disk, which fails from byte `limit` on."""

    limit = 2**40

    def __init__(self, path: str) -> None:
        status = os.stat(path)
        super().__init__(path, Version(status.st_size, str(status.st_mtime_ns)))

    def read_at(self, start: int, size: int) -> bytes:
        if start + size > self.limit:
            raise InputError(f"the store failed at byte {start}")
        with open(self.name, "rb") as file:
            file.seek(start)
            return file.read(size)


class Handler(RangeHandler):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _get_supported_prefixes(self) -> list[str]:
        return ["part://"]

    def open_range(self, path: str) -> RangeFile:
        return Part(str(self.folder / path.removeprefix("part://")))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    handlers = dict(path_manager._path_handlers)
    monkeypatch.setattr(ranges, "_handlers", {})
    monkeypatch.setattr(Part, "limit", 2**40)
    ranges.register(Handler(tmp_path))
    yield tmp_path
    path_manager._path_handlers.clear()
    path_manager._path_handlers.update(handlers)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_frames_are_the_same_as_from_a_file(folder: Path, backend: str, name: str) -> None:
    pytest.importorskip({"pyav": "av"}.get(backend, backend))
    path = str(write_video(folder / name, 40, codec="mpeg4" if name == "a.avi" else "libx264"))
    with (
        open_video(Record(name, path, 0), backend) as loose,
        open_video(Record(name, f"part://{name}", 0), backend) as ranged,
    ):
        assert len(ranged) == len(loose) == 40
        assert ranged.fps == loose.fps
        for indices in ([39, 0, 17, 17], [3, 4]):
            assert torch.equal(ranged.read(indices), loose.read(indices))
        if backend != "pyav":
            assert ranged.left_because == loose.left_because  # type: ignore[attr-defined]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_that_fails_is_no_shorter_video(
    folder: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in opening a video nor later, nor is it a bad video."""
    pytest.importorskip({"pyav": "av"}.get(backend, backend))
    path = write_video(folder / "a.mp4", 60, size=(320, 240))
    record = Record("a.mp4", "part://a.mp4", 0)
    for part in (10, 2):
        monkeypatch.setattr(Part, "limit", path.stat().st_size // part)
        with pytest.raises(InputError, match=r"^the store failed at byte \d+$"):
            open_video(record, backend)
    if backend == "decord":  # it reads the whole file first
        return
    monkeypatch.setattr(Part, "limit", 2**40)
    with open_video(record, backend) as reader:
        monkeypatch.setattr(Part, "limit", 1)
        with pytest.raises(InputError, match=r"^the store failed at byte \d+$"):
            reader.read([50])


def test_a_missing_file_is_a_bad_video(folder: Path) -> None:
    with pytest.raises(DecodeError, match="No such file"):
        open_video(Record("a", "part://none.mp4", 0))


def test_truncated_files_are_found(folder: Path) -> None:
    path = write_video(folder / "a.mkv", 30)
    path.write_bytes(path.read_bytes()[:-100])
    assert missing_bytes("part://a.mkv") == missing_bytes(str(path)) == 100
    with pytest.raises(DecodeError, match="the last 100 bytes are missing"):
        open_video(Record("a", "part://a.mkv", 0))


def test_texts_sizes_and_presence(folder: Path) -> None:
    (folder / "list.csv").write_bytes("\ufeffé.mp4 0\r\nb.mp4 1\n".encode())
    assert read_lines("part://list.csv") == ["é.mp4 0", "b.mp4 1"]
    with (
        pytest.raises(InputError, match=r"^cannot read part://none.csv: No such file"),
        open_text("part://none.csv"),
    ):
        pass
    here, gone = Record("a", "part://list.csv", 0), Record("b", "part://none", 0)
    assert file_sizes([here, gone]) == [21, -1]
    assert missing_videos([here, gone]) == [gone]
    assert version_of("part://list.csv") == version_of(str(folder / "list.csv"))
    with pytest.raises(OSError, match="it can only be read"):
        path_manager.open("part://list.csv", "w")
    assert join("/data", "part://a") == "part://a"
    assert join("part://data", "a") == "part://data/a"


def test_reading_and_seeking(folder: Path) -> None:
    (folder / "a").write_bytes(bytes(range(100)))
    with path_manager.open("part://a", "rb") as file:
        assert file.read(3) == b"\0\1\2"
        assert file.seek(-2, os.SEEK_END) == 98
        assert file.read() == bytes([98, 99])
        assert file.read(1) == b""
        assert file.seek(200) == 200
        assert file.read(1) == b""
        with pytest.raises(ValueError, match="cannot seek"):
            file.seek(-1)
