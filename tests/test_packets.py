"""The index of packets: the same frames with it and without, few bytes read, and no harm in a bad one."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import foreign
import numpy as np
import pytest
import torch
from conftest import copy_video, numbered_frame, shown_numbers, write_video
from test_foreign import built

from video_iresnet.data.decode import PacketIndex, backends, open_video, packet_index, packets
from video_iresnet.data.decode.container import PacketInfo, Packets, VideoFile
from video_iresnet.data.decode.numbering import number_frames
from video_iresnet.data.decode.packet_index import FILE_NAME, Entry, IndexFile
from video_iresnet.data.decode.packets import pack, unpack
from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.decode.reader import DecodeError
from video_iresnet.data.records import Record
from video_iresnet.prep.index import index_packets
from video_iresnet.prep.transcode import Settings, transcode_list
from video_iresnet.prep.verify import output_files, verify
from video_iresnet.runtime import ranges
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.ranges import RangeFile, RangeHandler, Version, version_of
from video_iresnet.runtime.storage import path_manager

# Files in which seeks lead elsewhere, and files whose frames must be decoded to be numbered.
SCANNED_AGAIN = {
    "h264_before_keyframe.mkv", "mpeg2_before_keyframe.mpg", "mpeg2_interlaced.mpg", "mpeg2.mpg",
}  # fmt: skip
COUNTED = {
    "mpeg4_b_frames.avi", "packed_xvid.avi", "h264_b_frames.avi", "h264_b_frames.wmv",
    "mpeg2_from_open_gop.mpg", "joined.ts",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index of this machine, which does not exist yet."""
    monkeypatch.setenv("VIDEO_IRESNET_CACHE", str(tmp_path / "cache"))
    for folder in (tmp_path / "cache", tmp_path / "cache/packets"):
        folder.mkdir(mode=0o700)
    return tmp_path / "cache/packets" / FILE_NAME


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to their end, in order."""
    scanned: list[str] = []
    scan = VideoFile.scan
    monkeypatch.setattr(VideoFile, "scan", lambda video: scanned.append(Path(video.path).name) or scan(video))
    return scanned


def seen(path: Path, index: PacketIndex | None, opener: Callable[..., Any] = PyAVReader) -> list[Any]:
    """All that a reader says of a file, and some frames in two calls."""
    with opener(str(path), index) as reader:
        rng = random.Random(path.name)
        calls = [sorted(rng.sample(range(len(reader)), 3)), [rng.randrange(len(reader)), 0]]
        frames = [reader.read(call) for call in calls]
        return [len(reader), reader.fps, reader.seconds, reader.num_unshown, reader.orientation, *frames]


def same(one: list[Any], other: list[Any]) -> bool:
    return one[:-2] == other[:-2] and all(map(torch.equal, one[-2:], other[-2:]))


@pytest.mark.parametrize("name", [name for name in foreign.KINDS if name != "h264_444_old_x264.mp4"])
def test_any_file_is_the_same_with_an_index(folder: Path, scans: list[str], name: str) -> None:
    path, index = built(folder, name), PacketIndex()
    without = seen(path, None)
    assert same(seen(path, index), without)
    assert len(scans) == 2
    for _ in range(2):
        assert same(seen(path, index), without)
    assert len(scans) == (4 if name in SCANNED_AGAIN | COUNTED else 2)


def test_the_version_of_an_old_x264_is_remembered(folder: Path, own: Path) -> None:
    """Its first frame must be decoded before any other."""
    path = built(folder, "h264_444_old_x264.mp4")
    for _ in range(2):
        with PyAVReader(str(path), PacketIndex()) as reader:
            assert reader._position == np.inf
            assert reader.num_unshown == 0
            assert reader._video.stream.codec_context.name == "h264"
        found = PacketIndex().find(str(path), version_of(str(path)))
        assert found
        assert found.x264 == 148


def test_packets_are_unpacked_as_they_were(folder: Path) -> None:
    for name in ("h264_open_gop.mp4", "joined.ts", "h264.mkv", "dropped_frames.avi", "gif.gif"):
        with VideoFile(str(built(folder, name))) as video:
            found = video.scan()
        assert unpack(pack(found)) == found
    odd = PacketInfo(None, None, 2**62, None, 2**40, False, True, True, False)
    more = PacketInfo(-(2**62), 2**62, 0, 0, 1, True, False, False, True)
    assert unpack(pack(Packets([odd, more, odd], None))) == Packets([odd, more, odd], None)


def test_damaged_packets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoFile(str(write_video(tmp_path / "a.mp4", 30))) as video:
        table = packets.zlib.decompress(pack(video.scan()))
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(table)
        for place in rng.integers(0, len(table), 3):
            damaged[place] = rng.integers(256)
        end = rng.integers(len(table) + 20)
        for data in (packets.zlib.compress(damaged[:end] + bytes(max(0, end - len(table)))), bytes(damaged)):
            try:
                assert isinstance(unpack(data), Packets)
            except ValueError:
                continue
    monkeypatch.setattr(packets, "LARGEST", 100)
    with pytest.raises(ValueError, match="no table of packets"):
        unpack(packets.zlib.compress(table))


def test_another_file_of_the_same_size_is_numbered_anew(tmp_path: Path, scans: list[str]) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    other = copy_video(write_video(tmp_path / "b.mp4", 24), tmp_path / "c.mp4")
    size = max(path.stat().st_size, other.stat().st_size) + 8
    for file in (path, other):
        rest = size - file.stat().st_size
        file.write_bytes(file.read_bytes() + rest.to_bytes(4, "big") + b"free" + bytes(rest - 8))
    index = PacketIndex()
    seen(path, index)
    seen(path, index)
    assert scans == ["a.mp4"]
    times = path.stat().st_mtime_ns, path.stat().st_mtime_ns + 1
    shutil.copyfile(other, path)
    os.utime(path, ns=(times[1], times[1]))
    with PyAVReader(str(path), index) as reader:
        assert (len(reader), shown_numbers(reader.read([23]))) == (24, [23])
    assert scans == ["a.mp4", "a.mp4"]


def test_an_entry_of_other_packets_is_noticed_and_put_right(tmp_path: Path, scans: list[str]) -> None:
    """As if a file were replaced by one of the same size and time."""
    path, other = write_video(tmp_path / "a.mp4", 30), write_video(tmp_path / "b.mp4", 24)
    with VideoFile(str(other)) as video:
        wrong = video.scan()
    scans.clear()
    PacketIndex().add(str(path), version_of(str(path)), wrong)
    with PyAVReader(str(path), PacketIndex()) as reader:
        assert len(reader) == 24
        with pytest.raises(DecodeError, match="the index of its packets was wrong"):
            reader.read([20])
    with PyAVReader(str(path), PacketIndex()) as reader:
        assert (len(reader), shown_numbers(reader.read([29]))) == (30, [29])
    assert scans == ["a.mp4"]


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_every_decoder_looks_packets_up(tmp_path: Path, scans: list[str], backend: str) -> None:
    try:
        backends.load_backend(backend)
    except InputError:
        pytest.skip(f"{backend} is not installed")
    path = write_video(tmp_path / "a.mp4", 40)
    for _ in range(2):
        with open_video(Record("a", str(path), 0), backend, PacketIndex()) as reader:
            assert shown_numbers(reader.read([30, 7])) == [30, 7]
            assert getattr(reader, "left_because", "") == ""
    assert scans == ["a.mp4"]


def test_a_damaged_index_of_this_machine_is_begun_anew(tmp_path: Path, own: Path, scans: list[str]) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    for content in (b"", b"no database" * 400, bytes(8192)):
        own.write_bytes(content)
        scans.clear()
        for _ in range(3):
            with PyAVReader(str(path), PacketIndex()) as reader:
                assert shown_numbers(reader.read([29])) == [29]
        assert scans == ["a.mp4"], content
    data = bytearray(own.read_bytes())
    data[4096:] = bytes(len(data) - 4096)  # the header is left
    own.write_bytes(data)
    scans.clear()
    for _ in range(3):
        with PyAVReader(str(path), PacketIndex()) as reader:
            assert len(reader) == 30
    assert scans == ["a.mp4"]


def test_an_index_beside_videos_that_is_damaged_is_noted_and_left(
    tmp_path: Path, scans: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "data/a.mp4", 30)
    (path.parent / FILE_NAME).write_bytes(b"no database" * 400)
    index = PacketIndex(str(path.parent))
    for _ in range(3):
        with PyAVReader(str(path), index) as reader:
            assert shown_numbers(reader.read([29])) == [29]
    assert (path.parent / FILE_NAME).read_bytes() == b"no database" * 400
    assert len(caplog.messages) == 1
    assert "data/packets.sqlite is left alone: file is not a database" in caplog.messages[0]
    assert scans == ["a.mp4"]
    with pytest.raises(InputError, match=r"cannot write .*not a database"):
        index_packets(path.parent, [str(path)], workers=0)


def test_a_damaged_entry_is_not_used(tmp_path: Path, own: Path, scans: list[str]) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    seen(path, PacketIndex())
    with sqlite3.connect(own) as connection:
        (packed,) = connection.execute("SELECT packed FROM packets").fetchone()
        connection.execute("UPDATE packets SET packed = ?", (packed[:40] + b"X" + packed[41:],))
    connection.close()
    seen(path, PacketIndex())
    seen(path, PacketIndex())
    assert scans == ["a.mp4"] * 2


def test_without_a_place_for_an_index(tmp_path: Path, own: Path, scans: list[str]) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    own.parent.rmdir()
    own.parent.touch()
    index = PacketIndex()
    for _ in range(2):
        with PyAVReader(str(path), index) as reader:
            assert shown_numbers(reader.read([29])) == [29]
    assert scans == ["a.mp4"] * 2


def test_a_locked_index_is_left(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "a.mp4", 30)
    seen(path, PacketIndex())
    monkeypatch.setattr(packet_index, "LONGEST_WAIT", 0.1)
    connection = sqlite3.connect(own, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    index = PacketIndex()
    seen(path, index)
    seen(path, index)
    connection.close()
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "database is locked; videos are read without"
    ] * 2  # for reading, and for writing
    assert own.stat().st_size


def synthetic(seed: int, count: int = 300) -> Packets:
    """Packets of a ten-second video with sound between the frames."""
    rng = np.random.default_rng(seed)
    sizes = 40 + (np.exp(rng.normal(6.5, 0.8, count))).astype(int)
    gaps = rng.integers(200, 460, count)
    found, place = [], 5000
    for number, (size, gap) in enumerate(zip(sizes.tolist(), gaps.tolist(), strict=True)):
        delay = 512 * (2, 4, 1, 0)[number % 4]  # a pyramid of B-frames
        is_key = number % 250 == 0
        found.append(
            PacketInfo(512 * number + delay, 512 * number, 512, place, size, is_key, False, False, is_key)
        )
        place += size + gap
    return Packets(found, 164)


def test_many_processes_may_write(own: Path) -> None:
    def fill(first: int) -> None:
        for number in range(first, first + 25):
            PacketIndex().add(f"/videos/{number}.mp4", Version(number, "1"), synthetic(number, 20))

    with ThreadPoolExecutor(4) as pool:  # each with connections and locks of its own
        list(pool.map(fill, range(0, 100, 25)))
    index = pickle.loads(pickle.dumps(PacketIndex()))
    for number in range(100):
        assert index.find(f"/videos/{number}.mp4", Version(number, "1")) == synthetic(number, 20)
        assert index.find(f"/videos/{number}.mp4", Version(number, "2")) is None


def test_an_index_of_240_000_videos_takes_less_than_300_mb(tmp_path: Path) -> None:
    file = IndexFile(tmp_path / FILE_NAME, str(tmp_path))
    some = [pack(synthetic(number)) for number in range(20)]
    for batch in range(2):
        names = [str(tmp_path / f"train/class {batch}/{number}.mp4") for number in range(1000)]
        file.add(Entry(name, Version(1, "1"), some[number % 20]) for number, name in enumerate(names))
    assert 240_000 * (tmp_path / FILE_NAME).stat().st_size / 2000 < 300e6


def test_the_index_of_a_machine_is_bounded(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packet_index, "LARGEST", 100_000)
    index = PacketIndex()
    for number in range(300):
        index.add(f"/videos/{number}.mp4", Version(1, "1"), synthetic(number))
    assert own.stat().st_size < 130_000
    assert index.find("/videos/299.mp4", Version(1, "1")) == synthetic(299)
    assert index.find("/videos/0.mp4", Version(1, "1")) is None


class Counted(RangeFile):
    """A file of the disk that counts what is read of it."""

    read_bytes = 0

    def read_at(self, start: int, size: int) -> bytes:
        Counted.read_bytes += size
        with open(self.name, "rb") as file:
            file.seek(start)
            return file.read(size)


class Handler(RangeHandler):
    def _get_supported_prefixes(self) -> list[str]:
        return ["counted://"]

    def open_range(self, path: str) -> RangeFile:
        name = path.removeprefix("counted://")
        return Counted(name, version_of(name))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    handlers = dict(path_manager._path_handlers)
    monkeypatch.setattr(ranges, "_handlers", {})
    ranges.register(Handler())
    yield
    path_manager._path_handlers.clear()
    path_manager._path_handlers.update(handlers)


@pytest.mark.parametrize("front", [False, True])
def test_a_sample_reads_a_small_part_of_a_long_video(tmp_path: Path, counted: None, front: bool) -> None:
    noise = np.random.default_rng(0)

    def noisy(number: int, size: tuple[int, int]) -> np.ndarray:
        picture = numbered_frame(number % 256, size)
        picture[: size[0] // 3] = noise.integers(0, 256, (size[0] // 3, size[1], 3), np.uint8)
        return picture

    options = {"preset": "ultrafast"}
    path = write_video(tmp_path / "a.mp4", 600, size=(192, 256), options=options, front=front, picture=noisy)
    record = Record("a", f"counted://{path}", 0)
    total, reads = path.stat().st_size, []
    for frames in ([0], [400, 404], [595, 599], [123]):
        Counted.read_bytes = 0
        with open_video(record, index=PacketIndex()) as reader:
            assert shown_numbers(reader.read(frames)) == [frame % 256 for frame in frames]
        reads.append(Counted.read_bytes)
    assert total > 8e6
    assert reads[0] > total  # the first reads everything
    assert max(reads[1:]) < total / 8


@pytest.mark.parametrize("name", ["h264.mp4", "h264_front.mp4", "hevc.mp4", "mpeg4.3gp"])
def test_a_seek_leads_to_the_keyframe_and_not_to_the_one_before(folder: Path, name: str) -> None:
    with VideoFile(str(built(folder, name))) as video:
        found = video.scan()
        for keyframe in number_frames(video, found).keyframes:
            video.seek(keyframe.seek)
            assert next(video.packets()).pos == found.all[keyframe.packet].pos


def test_an_index_beside_a_data_set_moves_with_it(tmp_path: Path, own: Path, scans: list[str]) -> None:
    data = tmp_path / "data"
    for number in range(3):
        write_video(data / f"videos/{number}.mp4", 20 + number)
    (data / "videos/3.mp4").write_bytes(b"no video")
    (data / "train.csv").write_text("".join(f"videos/{number}.mp4 0\n" for number in range(5)))
    files = output_files(data / "train.csv")
    verify(data / "train.csv", [], files, workers=0)
    assert not own.exists()
    scans.clear()
    verify(data / "train.csv", [], files, workers=0)
    assert scans == []
    moved = Path(shutil.move(data, tmp_path / "moved"))
    for number in range(3):
        path = str(moved / f"videos/{number}.mp4")
        with open_video(Record("", path, 0), index=PacketIndex(str(moved))) as reader:
            assert shown_numbers(reader.read([19 + number])) == [19 + number]
    assert scans == []


def test_transcoded_videos_are_indexed(tmp_path: Path, scans: list[str]) -> None:
    write_video(tmp_path / "in/a.mkv", 20)
    (tmp_path / "in/train.csv").write_text("a.mkv 0\n")
    transcode_list(tmp_path / "in/train.csv", tmp_path / "out", Settings(32, 16, 23, "ultrafast"), workers=0)
    scans.clear()
    with open_video(
        Record("", str(tmp_path / "out/a.mp4"), 0), index=PacketIndex(str(tmp_path / "out"))
    ) as reader:
        assert len(reader.read(range(20))) == 20
    assert scans == []


def test_members_of_shards_have_names_below_the_folder(tmp_path: Path) -> None:
    file = IndexFile(tmp_path / FILE_NAME, str(tmp_path))
    file.add([Entry(f"shards://{tmp_path}/shards.sqlite/a/b.mp4", Version(7, "sha"), b"1")])
    shutil.copytree(tmp_path, tmp_path / "copy")
    copy = IndexFile(tmp_path / "copy" / FILE_NAME, f"{tmp_path}/copy/")
    asked = f"shards://{tmp_path}/copy/shards.sqlite/a/b.mp4"
    assert copy.find([(asked, Version(7, "sha")), (asked, Version(8, "sha"))]) == [b"1", None]
