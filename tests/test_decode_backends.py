"""Every decoder gives the frames that decoding the whole file gives, for every kind of file; none of them
invents frames.
"""

from __future__ import annotations

import itertools
import random
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import foreign
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from conftest import VARIABLE, shown_numbers, trimmed, write_video
from torch import Tensor

from video_iresnet.data.decode import (
    BACKENDS,
    DecodeError,
    Reader,
    container,
    load_backend,
    open_video,
    other,
)
from video_iresnet.data.decode.h264 import is_idr, may_be_interlaced
from video_iresnet.data.decode.picture import Picture, is_plain
from video_iresnet.data.records import Record
from video_iresnet.runtime.errors import InputError

LATE = [5000 + 40 * number for number in range(30)]
X265_LAYERS = "log-level=none:crf=10:keyint=30:pools=1:temporal-layers=3:bframes=4:b-pyramid=1"
KINDS = {
    "h264_long_gop.mp4": {"gop": 250, "options": {"bf": "3", "b-pyramid": "normal"}},
    "h264_short_gop.mov": {"gop": 6},
    "h264_no_b.mp4": {"options": {"bf": "0"}},
    "h264_open_gop.mkv": {"options": {"x264-params": "open-gop=1:bframes=3"}},
    "h264_open_gop.mp4": {"options": {"x264-params": "open-gop=1:bframes=3"}},
    "h264_intra_refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=20"}},
    "h264_interlaced.mp4": {"size": (64, 64), "options": {"x264-params": "tff=1:bframes=2"}},
    "h264_broadcast.ts": {},
    "h264_without_times.avi": {},
    "hevc.mp4": {"codec": "libx265"},
    "hevc_layers.mp4": {"codec": "libx265", "options": {"x265-params": X265_LAYERS}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg4_b.mp4": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "live.mkv": {"live": True},
    "variable.mp4": {"times": VARIABLE, "num_frames": 20},
    "variable.mkv": {"times": VARIABLE, "num_frames": 20},
    "late.mkv": {"times": LATE, "num_frames": 30},
    "even.mp4": {"size": (46, 66)},
    "odd.mkv": {"size": (47, 67), "pix_fmt": "yuv444p"},
    "odd_width.mp4": {"size": (48, 67), "codec": "mpeg4"},
    "odd_mpeg4.mp4": {"size": (47, 67), "codec": "mpeg4"},
    "odd_vp9.webm": {"size": (47, 67), "codec": "libvpx-vp9"},
    "ten_bits.mp4": {"pix_fmt": "yuv420p10le"},
    "ten_bits_hevc.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "422.mp4": {"pix_fmt": "yuv422p"},
    "full_range.mp4": {"pix_fmt": "yuvj420p"},
    "bt709.mp4": {"options": {"colorspace": "bt709"}},
    "one.mp4": {"num_frames": 1},
    "many.mp4": {"num_frames": 2000, "size": (16, 16), "gop": 100},
    "turned_90.mp4": {"rotation": 90},
    "turned_180.mp4": {"rotation": 180},
    "turned_270.mp4": {"rotation": 270},
}
STREAMS = {
    "two_videos": foreign.two_videos,
    "two_videos_second": partial(foreign.two_videos, default=1),
    "still_first": foreign.still_first_mp4,
    "cover_first": foreign.cover_first_mp4,
}
TURNS = {"turned_90.mp4": -1, "turned_180.mp4": 2, "turned_270.mp4": 1}  # quarter turns, counterclockwise
# torchcodec and decord convert colours with another version of FFmpeg than PyAV's: a level of rounding may
# differ (here: none does).
TOLERANCE = {"pyav": 0, "torchcodec": 1, "decord": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def written(folder: Path, name: str) -> tuple[Path, Tensor]:
    """A file of KINDS and all of its frames, upright, from one plain decoding of the whole file."""
    path, everything = folder / name, folder / f"{name}.pt"
    options = {"num_frames": 60, **KINDS[name]}
    codec = options.get("codec", "libx264")
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    if not path.exists():
        write_video(path, options.pop("num_frames"), **options)
        torch.save(torch.rot90(decoded(path), TURNS.get(name, 0), (1, 2)), everything)
    return path, torch.load(everything)


def decoded(path: Path) -> Tensor:
    """All frames as they are stored, not turned."""
    reformatter = VideoReformatter()
    with av.open(str(path)) as container:
        frames = [
            reformatter.reformat(frame, frame.width, frame.height, "rgb24", threads=1).to_ndarray()
            if is_plain(frame)
            else Picture(frame.width, frame.height)(frame)
            for frame in container.decode(video=0)
        ]
    return torch.from_numpy(np.stack(frames))


def opened(path: Path, backend: str) -> Reader:
    try:
        load_backend(backend)
    except InputError as error:
        pytest.skip(str(error))
    return open_video(Record(path.name, str(path), 0), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KINDS)
def test_the_frames_are_those_of_the_whole_file(files: Path, name: str, backend: str) -> None:
    path, everything = written(files, name)
    num_frames = KINDS[name].get("num_frames", 60)
    rng = random.Random(0)
    with opened(path, backend) as reader:
        assert len(reader) == num_frames
        frames = reader.read(range(num_frames))
        assert frames.shape == everything.shape
        if name not in TURNS:
            assert shown_numbers(frames) == [number % 256 for number in range(num_frames)]
        clips = [[rng.randrange(num_frames) for _ in range(rng.randint(1, 8))] for _ in range(12)]
        for clip in [list(range(num_frames)), *clips, *map(sorted, clips)]:
            frames = reader.read(clip)
            assert frames.dtype == torch.uint8
            assert frames.is_contiguous()
            assert (frames.int() - everything[clip].int()).abs().max() <= TOLERANCE[backend], clip
    for clip in clips[:4]:
        with opened(path, backend) as reader:
            assert (reader.read(clip).int() - everything[clip].int()).abs().max() <= TOLERANCE[backend], clip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("build", STREAMS)
def test_every_decoder_reads_the_same_stream(tmp_path: Path, build: str, backend: str) -> None:
    path = STREAMS[build](tmp_path / f"{build}.mp4")
    with opened(path, "pyav") as pyav, opened(path, backend) as reader:
        assert len(reader) == len(pyav) == 60
        assert torch.equal(reader.read([40, 3]), pyav.read([40, 3]))


@pytest.mark.parametrize(("unit_type", "expected"), [(5, True), (1, False)])
def test_entries_of_h264(unit_type: int, expected: bool) -> None:
    """A recovery point (SEI, 6) and a slice: clean where the slice is of an IDR picture."""
    units = [bytes([6, 6, 1, 0xC4]), bytes([0x60 | unit_type]) + bytes(300)]
    after_codes = b"".join(b"\0\0\1" + unit for unit in units)
    after_lengths = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    assert is_idr(after_codes, None) == is_idr(after_codes, b"\0\0\0\1g") == expected
    assert is_idr(after_lengths, b"\1dM@\xff") == expected
    assert not is_idr(b"", None)
    assert not is_idr(b"\0\0\0", b"\1dM@\xff")


@pytest.mark.parametrize(
    ("options", "pix_fmt", "expected"),
    [
        ("", "yuv420p", False),
        ("cqm=jvt", "yuv420p", False),
        ("cqm=jvt", "yuv444p", False),
        ("cqm=jvt", "yuv422p", False),
        ("", "yuv420p10le", False),
        ("fake-interlaced=1", "yuv420p", True),
        ("tff=1:cqm=jvt", "yuv422p", True),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_what_h264_says_of_interlacing(
    tmp_path: Path, suffix: str, options: str, pix_fmt: str, expected: bool
) -> None:
    """Also of streams whose first frame is none: broadcasts mix them."""
    path = tmp_path / f"a.{suffix}"
    write_video(path, 3, size=(64, 64), pix_fmt=pix_fmt, options={"x264-params": options} if options else {})
    with av.open(str(path)) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert may_be_interlaced(extradata) == expected
    assert may_be_interlaced(extradata[:9])


@pytest.mark.parametrize("extradata", [None, b"", b"\1", b"\0\0\1", b"\0\0\1\x67", b"\1dM@\xff\xe1\0\4gd\0"])
def test_h264_that_does_not_say_may_be_interlaced(extradata: bytes | None) -> None:
    assert may_be_interlaced(extradata)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frame_rates(files: Path, backend: str) -> None:
    """25 frames a second, but 19 frame intervals in 1.3 seconds."""
    for name, fps in {
        "h264_long_gop.mp4": 25,
        "live.mkv": 25,
        "variable.mkv": 19 / 1.3,
        "one.mp4": 25,
        "h264_without_times.avi": 25,
        "late.mkv": 25,
    }.items():
        with opened(written(files, name)[0], backend) as reader:
            assert reader.fps == pytest.approx(fps), name


def test_a_turned_picture_is_upright(files: Path) -> None:
    """A phone held upright stores a lying picture and the order to turn it clockwise: its left column is on
    top then.
    """
    lying = decoded(written(files, "turned_90.mp4")[0])
    with opened(files / "turned_90.mp4", "pyav") as reader:
        upright = reader.read([5])[0]
    assert upright.shape == (64, 48, 3)
    assert torch.equal(upright[0], lying[5, :, 0].flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flips", ["", "h", "v"])
def test_a_mirrored_picture_is_upright(tmp_path: Path, degrees: int, flips: str, backend: str) -> None:
    """PyAV's degrees are counterclockwise, and it mirrors afterwards."""
    stored = np.full((48, 64, 3), 40, np.uint8)
    stored[:24, :32], stored[:24, 32:], stored[24:, :32] = 100, 160, 220
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees, hflip="h" in flips, vflip="v" in flips)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="rgb24")))
        container.mux(stream.encode())
    shown = np.rot90(stored, degrees // 90)
    shown = shown[:, ::-1] if "h" in flips else shown
    shown = shown[::-1] if "v" in flips else shown
    with opened(path, backend) as reader:
        picture = reader.read([1])[0].numpy()
    assert picture.shape == shown.shape
    assert abs(picture[4::8, 4::8].astype(int) - shown[4::8, 4::8]).max() < 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_edit_list_cuts_off_is_not_there(tmp_path: Path, backend: str) -> None:
    """A trimmed video is no truncated one, and its first frame is the first one shown."""
    with opened(trimmed(write_video(tmp_path / "a.mp4", 60), 15), backend) as reader:
        assert len(reader) == 45
        assert shown_numbers(reader.read([0, 44, 3])) == [15, 59, 18]
        assert shown_numbers(reader.read(range(45))) == list(range(15, 60))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")],
)
def test_truncated_files(tmp_path: Path, name: str, codec: str, backend: str) -> None:
    path = write_video(tmp_path / name, 60, size=(96, 128), codec=codec, front=name == "a.mp4")
    whole = path.read_bytes()
    for fraction in (0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(DecodeError, match="truncated"):
            opened(path, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_damaged_frame_is_neither_skipped_nor_repeated(tmp_path: Path, backend: str) -> None:
    path = write_video(tmp_path / "a.mp4", 60, size=(96, 128), gop=30)
    with av.open(str(path)) as container:
        place = [packet.pos for packet in container.demux(video=0)][30]
    data = bytearray(path.read_bytes())
    data[place : place + 300] = bytes(300)
    path.write_bytes(data)
    with opened(path, backend) as reader, pytest.raises(DecodeError, match="Invalid data"):
        reader.read(range(60))


def test_what_another_library_does_not_read_is_logged_once(
    files: Path, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = written(files, "mpeg4_b.mp4")
    monkeypatch.setattr(other, "noted", set())
    for _ in range(2):
        opened(path, "decord").read([3])
    assert logged.messages == [
        f"decord does not read {path} exactly (mpeg4 in mov); pyav reads it, and others like it"
    ]


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_other_libraries_do_read(files: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV stands in for them only where it must."""
    path, _ = written(files, "h264_long_gop.mp4")
    with opened(path, backend) as reader:
        monkeypatch.setattr(reader, "_picture", lambda frame: pytest.fail("PyAV has read the frame"))
        assert shown_numbers(reader.read([7, 50])) == [7, 50]


def test_an_old_torchcodec_does_not_turn_pictures(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metadata do not speak of rotation then; PyAV reads such files, and such files alone."""
    opened(written(files, "turned_90.mp4")[0], "torchcodec")
    monkeypatch.setattr("video_iresnet.data.decode.torchcodec.VideoDecoder", OldDecoder)
    with opened(files / "turned_90.mp4", "torchcodec") as reader:
        assert torch.equal(reader.read([5, 7]), written(files, "turned_90.mp4")[1][[5, 7]])
    with (
        opened(written(files, "h264_long_gop.mp4")[0], "torchcodec") as reader,
        pytest.raises(pytest.fail.Exception),
    ):
        reader.read([5])


class OldDecoder:
    metadata = None

    def __init__(self, path: str, **options: object) -> None: ...

    def __len__(self) -> int:
        return 60

    def get_frames_at(self, indices: list[int]) -> None:
        pytest.fail("torchcodec was asked")


@pytest.mark.parametrize("backend", ["torchcodec", "decord"])
def test_an_absent_library_is_one_clear_line(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    monkeypatch.delitem(sys.modules, f"video_iresnet.data.decode.{backend}", raising=False)
    with pytest.raises(InputError, match=rf"pip install .*{backend}") as caught:
        open_video(Record("a.mp4", "a.mp4", 0), backend)
    assert "\n" not in str(caught.value)


def test_torchcodec_without_ffmpeg_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pytest.importorskip("torchcodec", reason="torchcodec is not installed"), "ffmpeg_major_version", None
    )
    monkeypatch.delitem(sys.modules, "video_iresnet.data.decode.torchcodec", raising=False)
    with pytest.raises(
        InputError,
        match=r"no shared libraries of FFmpeg\); pip install .*, and install FFmpeg's shared libraries",
    ):
        load_backend("torchcodec")


def test_an_unknown_decoder() -> None:
    with pytest.raises(InputError, match="no decoder 'opencv'; expected one of pyav, torchcodec, decord"):
        load_backend("opencv")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recording_that_ends_within_a_frame(tmp_path: Path, backend: str) -> None:
    """What a decoder shows of the last frame depends on where it began."""
    path = foreign.KINDS["two_videos.ts"].build(tmp_path / "a.ts")
    path.write_bytes(path.read_bytes()[:17892])
    with opened(path, backend) as reader:
        everything = reader.read(range(len(reader)))
        assert torch.equal(reader.read([len(reader) - 1])[0], everything[-1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pyav_reads_the_packets_of_a_file_once(
    tmp_path: Path, backend: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To number the frames; torchcodec gets their times from it where the container has them in a table."""
    write_video(tmp_path / name, 60, gop=12)
    opened(tmp_path / name, backend).__exit__()
    files, packets, mappings = [], [], []
    to_open, of = container._open, container.PacketInfo.of
    monkeypatch.setattr(container, "_open", lambda path: files.append(path) or to_open(path))
    monkeypatch.setattr(
        container.PacketInfo, "of", lambda packet, **values: packets.append(packet) or of(packet, **values)
    )
    if backend == "torchcodec":
        decoder = sys.modules["video_iresnet.data.decode.torchcodec"]
        create = decoder.VideoDecoder
        monkeypatch.setattr(
            decoder,
            "VideoDecoder",
            lambda *path, custom_frame_mappings, **options: (
                mappings.append(custom_frame_mappings is None)
                or create(*path, custom_frame_mappings=custom_frame_mappings, **options)
            ),
        )
    with opened(tmp_path / name, backend) as reader:
        assert shown_numbers(reader.read([3, 40])) == [3, 40]
    assert (len(files), len(packets)) == (1, 61)
    assert mappings == ([name == "a.mkv"] if backend == "torchcodec" else [])


@pytest.mark.parametrize(("name", "damaged", "expected"), [("a.ts", False, True), ("a.ts", True, False)])
def test_a_recording_with_a_damaged_end_is_left_to_pyav(
    tmp_path: Path, name: str, damaged: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / name, 30, codec="libx265")
    opened(path, "torchcodec").__exit__()
    frame = other.OtherReader._frame
    monkeypatch.setattr(
        other.OtherReader,
        "_frame",
        lambda reader, index: SimpleNamespace(is_corrupt=damaged) if index else frame(reader, index),
    )
    with opened(path, "torchcodec") as reader:
        assert (reader._read_other is not None) == expected


def golomb(value: int) -> str:
    """An unsigned exponential Golomb code."""
    return f"{value + 1:0{2 * (value + 1).bit_length() - 1}b}"


@pytest.mark.parametrize("profile", [66, 100, 110, 122, 244])
@pytest.mark.parametrize("flags", range(8))
def test_a_sequence_parameter_set_is_read_bit_by_bit(profile: int, flags: int) -> None:
    """ITU-T H.264, section 7.3.2.1.1; every field has a value that a shift by one bit would change."""
    bypass, is_plane, frames_alone = (flags >> n & 1 for n in range(3))
    for chroma, order in itertools.product((0, 1, 3), (0, 1, 2)):
        high = golomb(chroma) + (f"{is_plane}" if chroma == 3 else "") + golomb(2) + golomb(5) + f"{bypass}0"
        orders = {0: golomb(4), 1: f"{bypass}{golomb(6)}{golomb(3)}{golomb(2)}{golomb(7)}{golomb(8)}", 2: ""}
        bits = f"{profile:08b}{0:08b}{31:08b}" + golomb(1) + (high if profile != 66 else "") + golomb(9)
        bits += golomb(order) + orders[order] + golomb(3) + f"{is_plane}" + golomb(12) + golomb(20)
        bits += f"{frames_alone}" + f"{1 - frames_alone}" * 16
        unit = b"\x67" + int(bits.ljust(8 * -(-len(bits) // 8), "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        assert b"\0\0\3" not in unit
        assert may_be_interlaced(b"\0\0\1" + unit) != bool(frames_alone)
        box = bytes([1, *unit[1:4], 255, 225]) + len(unit).to_bytes(2, "big") + unit
        assert may_be_interlaced(box) != bool(frames_alone)
