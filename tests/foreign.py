"""Videos as other programs and devices make them, and files that are no videos: small, in colour, the same
bytes at every call.

Each builder writes the file at the path that it is given and returns that path. `KINDS` and `HOSTILE` hold
them under the name that their file should have. Frame i of a builder's source shows the number i (see
`conftest.shown_numbers`); `Kind.numbers` says which numbers a reader should show, in order.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Disposition
from conftest import numbered_frame, write_video
from PIL import Image

Builder = Callable[[Path], Path]
Size = tuple[int, int]
# x264's fastest code for some processors does not give the same bytes at every call.
SAME = "cpu-independent=1"

# ---- pictures and the writing of plain videos


def coloured_frame(number: int, size: Size) -> np.ndarray:
    """The number in the middle third; above and below, hues that change over the width and move on with every
    frame, darker downwards.
    """
    height, width = size
    third = 2 * np.pi / 3
    angle = 2 * np.pi * (np.arange(width) / width + number / 40)
    hues = 0.5 + 0.5 * np.cos(angle[:, None] - third * np.arange(3))
    light = np.linspace(255, 120, height)[:, None, None]
    frame = (hues * light).astype(np.uint8)
    band = slice(height // 3, 2 * height // 3)
    frame[band] = numbered_frame(number, size)[band]
    return frame


def write(
    path: Path,
    num_frames: int = 60,
    *,
    codec: str = "libx264",
    gop: int = 12,
    options: dict[str, str] | None = None,
    first: int = 0,
    picture: Callable[[int, Size], np.ndarray] = coloured_frame,
    **more: object,
) -> Path:
    """`conftest.write_video` in colour, by one thread; the frames show the numbers from `first` on."""
    extra = {**({"crf": "10"} if codec == "libsvtav1" else {}), **(options or {})}
    if codec == "libx264":
        extra["x264-params"] = ":".join(filter(None, [SAME, extra.get("x264-params")]))
    if codec == "libx265":
        given = extra.pop("x265-params", "")
        extra["x265-params"] = ":".join(
            filter(None, [f"log-level=none:crf=10:keyint={gop}:pools=none:frame-threads=1", given])
        )
    return write_video(
        path,
        num_frames,
        codec=codec,
        gop=gop,
        options={"threads": "1", **extra},
        picture=lambda number, size: picture(first + number, size),
        **more,  # type: ignore[arg-type]
    )


def beside(path: Path, suffix: str) -> Path:
    """A path for what a builder makes on its way."""
    return path.with_name(f"{path.name}.source{suffix}")


def remux(
    source: Path, path: Path, change: Callable[[list[Packet]], Iterable[Packet]], *, tag: str = ""
) -> Path:
    """Copy the packets of the first video stream that `change` returns, without encoding again."""
    with av.open(str(source)) as original, _output(path) as container:
        template = original.streams.video[0]
        stream = container.add_stream_from_template(template)
        if tag:
            stream.codec_context.codec_tag = tag
        packets = [packet for packet in original.demux(template) if packet.size]
        for packet in change(packets):
            packet.stream = stream
            container.mux_one(packet)
    source.unlink()
    return path


def _output(path: Path) -> OutputContainer:
    return av.open(str(path), "w", container_options={"fflags": "+bitexact"})


def new_packet(like: Packet, data: bytes) -> Packet:
    """A packet of other bytes with the same times."""
    packet = Packet(data)
    packet.pts, packet.dts, packet.time_base = like.pts, like.dts, like.time_base
    packet.duration, packet.is_keyframe = like.duration, like.is_keyframe
    return packet


def patched(path: Path, old: bytes, new: bytes, *, last: bool = False) -> Path:
    """Overwrite one place of a file with bytes of the same length."""
    assert len(old) == len(new)
    data = path.read_bytes()
    place = data.rindex(old) if last else data.index(old)
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    return path


# ---- AVI and ASF: decoding times alone


def mpeg4_b_frames_avi(path: Path) -> Path:
    """MPEG-4 with two B-frames between others, each in its own chunk."""
    return write(path, codec="mpeg4", options={"bf": "2"})


def packed_xvid_avi(path: Path) -> Path:
    """A B-frame in the chunk of the frame that it needs, and a frame of no content in the B-frame's place, as
    DivX 5 and XviD write them: `I | P+B | B | stub`.
    """
    closed = {"flags": "+cgop", "sc_threshold": "1000000000"}  # the encoder asks for both
    source = write(beside(path, ".avi"), codec="mpeg4", options={"bf": "2", **closed})

    def pack(packets: list[Packet]) -> Iterable[Packet]:
        packets[0] = new_packet(packets[0], as_divx(bytes(packets[0])))
        place, chunks = 0, []
        while place < len(packets):
            group = [bytes(packets[place])]
            place += 1
            while place < len(packets) and is_mpeg4_b(bytes(packets[place])):
                group.append(bytes(packets[place]))
                place += 1
            if len(group) > 1:
                group = [group[0] + group[1], *group[2:], group[0][:6]]
            chunks += group
        for like, chunk in zip(packets, chunks, strict=True):
            packet = new_packet(like, chunk)
            packet.is_keyframe = like is packets[0] or vop_type(chunk) == 0
            packet.pts = packet.dts
            yield packet

    return remux(source, path, pack, tag="XVID")


def as_divx(data: bytes) -> bytes:
    """The first packet with DivX's user data in the place of the encoder's own."""
    start = data.find(b"\0\0\1\xb2")
    end = data.find(b"\0\0\1", start + 4) if start >= 0 else -1
    if start < 0:
        start = end = min(place for code in (b"\xb3", b"\xb6") if (place := data.find(b"\0\0\1" + code)) >= 0)
    return data[:start] + b"\0\0\1\xb2DivX503b1393p" + data[end:]


def vop_type(data: bytes) -> int:
    """Of the first picture of an MPEG-4 packet: 0 for I, 1 for P, 2 for B."""
    return data[data.index(b"\0\0\1\xb6") + 4] >> 6


def is_mpeg4_b(data: bytes) -> bool:
    return vop_type(data) == 2


def h264_b_frames_avi(path: Path) -> Path:
    return write(path, options={"bf": "3"})


def h264_b_frames_wmv(path: Path) -> Path:
    return write(path, options={"bf": "3"})


def wmv2(path: Path) -> Path:
    return write(path, codec="wmv2")


def dropped_frames_avi(path: Path) -> Path:
    """Empty chunks where the camera dropped frames: 96 frames at the times 0, 3, 4, 5, ... 97."""
    source = write(beside(path, ".avi"), 96, codec="mpeg4")

    def delay(packets: list[Packet]) -> Iterable[Packet]:
        for packet in packets:
            if packet is not packets[0]:
                packet.pts = packet.dts = packet.dts + 2
            yield packet

    return remux(source, path, delay)


# ---- no clean entry after a seek


def h264_intra_refresh_mp4(path: Path) -> Path:
    """No keyframes after the first: a column of intra blocks wanders over the picture, and its recovery
    points are marked as keyframes.
    """
    return write(
        path, 150, front=True, options={"x264-params": "intra-refresh=1:keyint=20:bframes=0:scenecut=0"}
    )


def mpeg1_mpg(path: Path) -> Path:
    """Seeks land behind keyframes here and there."""
    return write(path, 150, size=(96, 128), codec="mpeg1video", gop=15, options={"bf": "2"})


def h264_444_old_x264(path: Path) -> Path:
    """4:4:4 that says to be of x264 before build 151, which decoders read by another rule; the first packet
    alone says so. Encoded by today's x264, so that the pictures decode to noise, always the same.
    """
    write(path, pix_fmt="yuv444p", options={"x264-params": "8x8dct=1:cabac=1:keyint=12:min-keyint=12"})
    data = path.read_bytes()
    place = data.index(b"x264 - core ") + len(b"x264 - core ")
    path.write_bytes(data[:place] + b"148" + data[place + 3 :])
    return path


def h264_open_gop(path: Path) -> Path:
    """Keyframes that frames shown before them refer to as well, which are no IDR pictures."""
    x264 = "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=12:scenecut=0"
    return write(path, front=path.suffix == ".mp4", options={"x264-params": x264})


# ---- what cuts and recordings leave


def cut(source: Path, path: Path, start: Callable[[list[Packet]], int]) -> Path:
    """Copy the packets from the one on whose number `start` returns."""
    return remux(source, path, lambda packets: packets[start(packets) :])


def second_keyframe(packets: Sequence[Packet]) -> int:
    return [number for number, packet in enumerate(packets) if packet.is_keyframe][1]


def hevc_from_cra(path: Path) -> Path:
    """Begins at a CRA picture in the middle of a video, followed by pictures that are shown before it and
    that nobody can decode (RASL).
    """
    source = write(
        beside(path, ".mkv"),
        codec="libx265",
        options={"x265-params": "open-gop=1:bframes=3:b-adapt=0:min-keyint=12:scenecut=0"},
    )
    return cut(source, path, second_keyframe)


def mpeg2_from_open_gop(path: Path) -> Path:
    """Begins at the I picture of an open GOP, followed by B pictures that lack their other reference."""
    source = write(beside(path, ".mkv"), codec="mpeg2video", options={"bf": "2"})
    return cut(source, path, second_keyframe)


def h264_before_keyframe(path: Path) -> Path:
    """A recording that begins five packets before a keyframe."""
    source = write(beside(path, ".mkv"), options={"bf": "2"})
    return cut(source, path, lambda packets: second_keyframe(packets) - 5)


def mpeg2_before_keyframe(path: Path) -> Path:
    source = write(beside(path, ".mkv"), codec="mpeg2video", options={"bf": "2"})
    return cut(source, path, lambda packets: second_keyframe(packets) - 5)


def joined_ts(path: Path) -> Path:
    """Two recordings one after the other: the clock of the second is ten seconds behind that of the first."""
    source, parts = beside(path, ".ts"), []
    for first, start in ((0, 10_000), (40, 20)):
        times = [start + 40 * number for number in range(40)]
        parts.append(write(source, 40, first=first, times=times).read_bytes())
    source.unlink()
    path.write_bytes(b"".join(parts))
    return path


LOST = sorted({0, 119, *np.random.default_rng(0).permutation(np.arange(1, 119))[:56].tolist()})


def lost_frames_mkv(path: Path) -> Path:
    """58 of 120 frames are there, each a keyframe, at the times they have always had."""
    source = write(beside(path, ".mkv"), 120, codec="mpeg4", gop=1)
    return remux(source, path, lambda packets: [packets[number] for number in LOST])


# ---- several streams


def still_first_mp4(path: Path, *, both: bool = True) -> Path:
    """A track of one JPEG, then the video. `both`: the video is marked to be played too."""
    with _output(path) as container:
        still = container.add_stream("mjpeg", rate=25, options={"threads": "1"})
        still.height, still.width, still.pix_fmt = 96, 128, "yuvj420p"
        video = _add_h264(container, (48, 64))
        still.disposition = Disposition.default
        if both:
            video.disposition = Disposition.default
        container.mux(still.encode(_frame(255, (96, 128))))
        container.mux(still.encode())
        _fill(container, video, range(60), (48, 64))
    return path


def cover_first_mp4(path: Path) -> Path:
    """Cover art whose table comes before those of the tracks, so that it is the first stream."""
    cover = io.BytesIO()
    Image.fromarray(coloured_frame(255, (96, 128))).save(cover, "JPEG")
    picture = _atom(b"covr", _atom(b"data", struct.pack(">II", 13, 0) + cover.getvalue()))
    handler = _atom(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = _atom(b"udta", _atom(b"meta", bytes(4) + handler + _atom(b"ilst", picture)))
    data = write(path).read_bytes()
    moov = data.index(b"moov") - 4  # after the frames, so that their places stay
    (size,) = struct.unpack_from(">I", data, moov)
    header = moov + 8 + struct.unpack_from(">I", data, moov + 8)[0]  # the end of mvhd
    rest = data[header : moov + size]
    path.write_bytes(
        data[:moov] + _atom(b"moov", data[moov + 8 : header] + tags + rest) + data[moov + size :]
    )
    return path


def two_videos(path: Path, *, default: int = 0) -> Path:
    """A small video that shows 0 to 59, and a larger one that shows 100 to 159. `default`: which of them the
    file marks as the one to play.
    """
    with _output(path) as container:
        small, large = _add_h264(container, (48, 64)), _add_h264(container, (96, 128))
        [small, large][default].disposition = Disposition.default
        _fill(container, small, range(60), (48, 64), large, range(100, 160), (96, 128))
    return path


def _add_h264(container: OutputContainer, size: Size) -> av.VideoStream:
    options = {"crf": "10", "g": "12", "threads": "1", "x264-params": SAME}
    stream = container.add_stream("libx264", rate=25, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    return stream


def _frame(number: int, size: Size) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(coloured_frame(number, size), format="rgb24")


def _fill(container: OutputContainer, *streams: object) -> None:
    """Encode and interleave (stream, numbers, size), (stream, numbers, size), ..."""
    triples = list(zip(streams[::3], streams[1::3], streams[2::3], strict=True))
    for index in range(max(len(numbers) for _, numbers, _ in triples)):
        for stream, numbers, size in triples:
            if index < len(numbers):
                container.mux(stream.encode(_frame(numbers[index], size)))
    for stream, _, _ in triples:
        container.mux(stream.encode())


def _atom(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


# ---- metadata, and kinds of pictures


def latin1_title_3gp(path: Path) -> Path:
    """H.263 of a phone whose title is not UTF-8."""
    write(path, codec="h263", size=(96, 128))
    data = path.read_bytes()
    moov = data.index(b"moov") - 4
    (size,) = struct.unpack_from(">I", data, moov)
    text = b"Stra\xdfe"
    title = _atom(b"\xa9nam", struct.pack(">HH", len(text), 0x15C7) + text)
    path.write_bytes(
        data[:moov]
        + _atom(b"moov", data[moov + 8 : moov + size] + _atom(b"udta", title))
        + data[moov + size :]
    )
    return path


def mirrored_mp4(path: Path, *, across: int = 1, down: int = 1) -> Path:
    """Stored mirrored, with a display matrix (across, 0, 0, down) that mirrors it back: players show it like
    any other.
    """
    write(path, picture=lambda number, size: coloured_frame(number, size)[::down, ::across].copy())
    data = bytearray(path.read_bytes())
    struct.pack_into(
        ">9i", data, data.index(b"tkhd") + 44, across << 16, 0, 0, 0, down << 16, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)
    return path


def ten_bits(path: Path, *, codec: str = "libx264") -> Path:
    return write(path, codec=codec, pix_fmt="yuv420p10le")


def interlaced(path: Path, *, codec: str = "libx264") -> Path:
    """Top field first."""
    if codec == "libx264":
        return write(path, size=(64, 64), options={"x264-params": "tff=1:bframes=2"})
    return write(path, size=(64, 64), codec=codec, options={"bf": "2", "flags": "+ildct+ilme"})


def plain(path: Path, **options: object) -> Path:
    """A video as FFmpeg writes it by itself."""
    return write(path, **options)  # type: ignore[arg-type]


# ---- hostile files


def head_of_webm(path: Path) -> Path:
    write(path, 10, codec="libvpx-vp9")
    path.write_bytes(path.read_bytes()[:50])
    return path


def cut_inside_moov(path: Path, *, table: bytes = b"stsd") -> Path:
    """Ends within one of the tables that say where the frames are."""
    data = write(path, 20, front=True).read_bytes()
    path.write_bytes(data[: data.index(table) + 60])
    return path


def random_bytes(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(300))
    return path


def svg(path: Path) -> Path:
    path.write_text(
        '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48">'
        '<rect width="64" height="48" fill="red"/></svg>\n'
    )
    return path


def ffconcat_script(path: Path) -> Path:
    """A text that makes FFmpeg read the video beside it."""
    write(path.with_name(f"{path.stem}_secret.mkv"), 10)
    path.write_text(f"ffconcat version 1.0\nfile {path.stem}_secret.mkv\n")
    return path


def hls_playlist(path: Path) -> Path:
    """A text that makes FFmpeg read the video beside it."""
    write(path.with_name(f"{path.stem}_secret.ts"), 10)
    path.write_text(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\n"
        f"{path.stem}_secret.ts\n#EXT-X-ENDLIST\n"
    )
    return path


def image(path: Path, *, kind: str = "PNG") -> Path:
    Image.fromarray(coloured_frame(7, (48, 64))).save(path, kind)
    return path


def fifo(path: Path) -> Path:
    """A pipe that nobody writes to: opening it waits for ever."""
    os.mkfifo(path)
    return path


def link_to_dev_zero(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def unknown_codec(path: Path) -> Path:
    """A video stream of a code that FFmpeg does not know."""
    old, new = {".mp4": (b"avc1", b"zzz1"), ".mkv": (b"V_MPEG4/ISO/AVC", b"V_ZPEG4/ISO/AVC")}[path.suffix]
    return patched(write(path, 20), old, new, last=path.suffix == ".mp4")


def late_stream_ts(path: Path) -> Path:
    """A second stream comes and goes between the first 5 MB and the last 250 kB, in which FFmpeg looks for
    streams.
    """
    noise = np.random.default_rng(0)

    def noisy(number: int, size: Size) -> np.ndarray:
        picture = coloured_frame(number, size)
        picture[: size[0] // 3] = noise.integers(0, 256, (size[0] // 3, size[1], 3), np.uint8)
        return picture

    source = beside(path, ".ts")
    first = write(
        source, 50, size=(384, 512), gop=1, picture=noisy, options={"crf": "1", "preset": "ultrafast"}
    ).read_bytes()
    with _output(source) as container:
        small, large = _add_h264(container, (48, 64)), _add_h264(container, (96, 128))
        _fill(container, small, range(40, 80), (48, 64), large, range(100, 140), (96, 128))
    path.write_bytes(first + source.read_bytes() + first[: 188 * 4000])
    source.unlink()
    return path


# ---- by name


class Kind(NamedTuple):
    """How a file is built, and the numbers that its frames show when upright; None where these cannot be
    read.
    """

    build: Builder
    numbers: Sequence[int] | None = range(60)


KINDS: dict[str, Kind] = {
    "mpeg4_b_frames.avi": Kind(mpeg4_b_frames_avi),
    "packed_xvid.avi": Kind(packed_xvid_avi),
    "h264_b_frames.avi": Kind(h264_b_frames_avi),
    "h264_b_frames.wmv": Kind(h264_b_frames_wmv),
    "wmv2.wmv": Kind(wmv2),
    "wmv2.avi": Kind(wmv2),
    "dropped_frames.avi": Kind(dropped_frames_avi, range(96)),
    "h264_intra_refresh.mp4": Kind(h264_intra_refresh_mp4, range(150)),
    "mpeg1.mpg": Kind(mpeg1_mpg, range(150)),
    "h264_444_old_x264.mp4": Kind(h264_444_old_x264, None),
    "h264_open_gop.mp4": Kind(h264_open_gop),
    "hevc_from_cra.mp4": Kind(hevc_from_cra, range(12, 60)),
    "hevc_from_cra.mkv": Kind(hevc_from_cra, range(12, 60)),
    "hevc_from_cra.ts": Kind(hevc_from_cra, range(12, 60)),
    "mpeg2_from_open_gop.mkv": Kind(mpeg2_from_open_gop, range(12, 60)),
    "mpeg2_from_open_gop.ts": Kind(mpeg2_from_open_gop, range(12, 60)),
    "mpeg2_from_open_gop.mpg": Kind(mpeg2_from_open_gop, range(12, 60)),
    "h264_before_keyframe.mkv": Kind(h264_before_keyframe, range(12, 60)),
    "h264_before_keyframe.ts": Kind(h264_before_keyframe, range(12, 60)),
    "h264_before_keyframe.mp4": Kind(h264_before_keyframe, range(12, 60)),
    "mpeg2_before_keyframe.mpg": Kind(mpeg2_before_keyframe, range(12, 60)),
    "joined.ts": Kind(joined_ts, range(80)),
    "lost_frames.mkv": Kind(lost_frames_mkv, LOST),
    "still_first.mp4": Kind(still_first_mp4),
    "still_first_default.mp4": Kind(partial(still_first_mp4, both=False)),
    "cover_first.mp4": Kind(cover_first_mp4),
    "two_videos.mkv": Kind(two_videos),
    "two_videos.mp4": Kind(two_videos),
    "two_videos.ts": Kind(two_videos),
    "two_videos_second_default.mkv": Kind(partial(two_videos, default=1), range(100, 160)),
    "two_videos_second_default.mp4": Kind(partial(two_videos, default=1), range(100, 160)),
    "latin1_title.3gp": Kind(latin1_title_3gp),
    "mirrored_across.mp4": Kind(partial(mirrored_mp4, across=-1)),
    "mirrored_down.mp4": Kind(partial(mirrored_mp4, down=-1)),
    "h264_ten_bits.mp4": Kind(ten_bits),
    "hevc_ten_bits.mp4": Kind(partial(ten_bits, codec="libx265")),
    "av1_ten_bits.webm": Kind(partial(ten_bits, codec="libsvtav1")),
    "h264_interlaced.mp4": Kind(interlaced),
    "mpeg2_interlaced.mpg": Kind(partial(interlaced, codec="mpeg2video")),
    "mpeg2_interlaced.ts": Kind(partial(interlaced, codec="mpeg2video")),
    "mpeg4_odd.mp4": Kind(partial(plain, codec="mpeg4", size=(47, 67))),
    "vp9_odd.webm": Kind(partial(plain, codec="libvpx-vp9", size=(47, 67))),
    "h264.mp4": Kind(plain),
    "h264_front.mp4": Kind(partial(plain, front=True)),
    "h264.mkv": Kind(plain),
    "h264.ts": Kind(plain),
    "hevc.mp4": Kind(partial(plain, codec="libx265")),
    "hevc_front.mp4": Kind(partial(plain, codec="libx265", front=True)),
    "vp9.webm": Kind(partial(plain, codec="libvpx-vp9")),
    "av1.webm": Kind(partial(plain, codec="libsvtav1")),
    "mpeg4.3gp": Kind(partial(plain, codec="mpeg4")),
    "mpeg2.mkv": Kind(partial(plain, codec="mpeg2video", options={"bf": "2"})),
    "mpeg2.ts": Kind(partial(plain, codec="mpeg2video", options={"bf": "2"})),
    "mpeg2.mpg": Kind(partial(plain, codec="mpeg2video", options={"bf": "2"})),
    "flv.flv": Kind(partial(plain, codec="flv")),
    "gif.gif": Kind(partial(plain, codec="gif", pix_fmt="rgb8")),
}

# No video, or none that can be read in full: reading them ends with a DecodeError, soon, and opens no other
# file. What comes before the second stream in late_stream.ts may be read.
HOSTILE: dict[str, Builder] = {
    "head.webm": head_of_webm,
    "cut_inside_moov.mp4": cut_inside_moov,
    "cut_before_stream.mp4": partial(cut_inside_moov, table=b"tkhd"),
    "random_bytes.mp4": random_bytes,
    "svg.mp4": svg,
    "ffconcat.mp4": ffconcat_script,
    "hls.mp4": hls_playlist,
    "png.mp4": image,
    "jpeg.mp4": partial(image, kind="JPEG"),
    "fifo.mp4": fifo,
    "dev_zero.mp4": link_to_dev_zero,
    "unknown_codec.mp4": unknown_codec,
    "unknown_codec.mkv": unknown_codec,
    "late_stream.ts": late_stream_ts,
}
