"""Videos that were extracted to a file a frame, and paths that are not of this disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import numbered_frame, shown_numbers, write_video
from iopath.common.file_io import PathHandler
from PIL import Image

from video_iresnet.data.decode import DecodeError, load_backend, open_video
from video_iresnet.data.decode.frames import FrameReader
from video_iresnet.data.records import Record
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.storage import path_manager


def write_frames(folder: Path, numbers: list[int], first: int = 1, size: tuple[int, int] = (48, 64)) -> str:
    """Frames that show `numbers` in files numbered from `first`; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, shown in enumerate(numbers, first):
        Image.fromarray(numbered_frame(shown, size)).save(
            folder / f"{folder.name}_{number:06d}.jpg", quality=95
        )
    return str(folder / f"{folder.name}_%06d.jpg")


@pytest.mark.parametrize("first", [0, 1, 37])
def test_numbers_start_at_0_whatever_the_files_say(tmp_path: Path, first: int) -> None:
    pattern = write_frames(tmp_path / "74225", list(range(20)), first)
    with open_video(Record("74225", pattern, 3, first_frame=first, num_frames=20, fps=12)) as reader:
        assert len(reader) == 20
        assert reader.fps == 12
        frames = reader.read([19, 0, 7, 7])
    assert shown_numbers(frames) == [19, 0, 7, 7]
    assert frames.shape == (4, 48, 64, 3)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
    with Image.open(pattern % (first + 7)) as image:
        assert np.array_equal(frames[2].numpy(), np.asarray(image))


def test_only_wanted_files_are_opened(tmp_path: Path) -> None:
    pattern = write_frames(tmp_path / "a", list(range(10)))
    for path in tmp_path.glob("a/*"):
        if path.name not in ("a_000003.jpg", "a_000009.jpg"):
            path.unlink()
    reader = FrameReader(pattern, 1, 10)
    assert reader.fps == 0
    assert shown_numbers(reader.read([2, 8])) == [2, 8]


def test_repeated_frames_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FrameReader(write_frames(tmp_path / "a", list(range(10))), 1, 10)
    paths, path_of = [], reader._path
    monkeypatch.setattr(reader, "_path", lambda index: paths.append(index) or path_of(index))
    assert shown_numbers(reader.read([7, 7, 2, 7])) == [7, 7, 2, 7]
    assert paths == [7, 2]


def test_a_grey_frame_has_three_channels(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(5, (48, 64))).convert("L").save(tmp_path / "1.jpg")
    assert shown_numbers(FrameReader(str(tmp_path / "%d.jpg"), 1, 1).read([0])) == [5]


def test_frames_that_cannot_be_read(tmp_path: Path) -> None:
    pattern = write_frames(tmp_path / "a", [0, 1, 2, 3])
    write_frames(tmp_path / "a", [4], 5, size=(50, 70))
    whole = Path(pattern % 3).read_bytes()
    Path(pattern % 2).write_text("not a picture")
    Path(pattern % 3).write_bytes(whole[: len(whole) // 2])
    reader = FrameReader(pattern, 1, 6)
    for index, reason in {
        1: "a_000002.jpg: .*JPEG",
        2: "a_000003.jpg: .*",
        5: "a_000006.jpg: .*No such file",
    }.items():
        with pytest.raises(DecodeError, match=reason) as caught:
            reader.read([index])
        assert "\n" not in str(caught.value)
    with pytest.raises(
        DecodeError, match=r"several sizes: .*a_000001.jpg and .*a_000005.jpg, which is 70x50"
    ):
        reader.read([0, 4])
    with pytest.raises(DecodeError, match="expected one number"):
        FrameReader("a/b.jpg", 1, 6).read([0])


def test_a_frame_rate_that_is_not_known_is_not_made_up() -> None:
    assert open_video(Record("a", "a/%d.jpg", 0, 1, 9)).fps == 0


def test_png_frames_are_called_so(tmp_path: Path) -> None:
    for name in ("1.png", "1.jpg"):  # whatever the name says
        Image.fromarray(numbered_frame(5, (48, 64))).save(tmp_path / name, format="PNG")
        with pytest.raises(DecodeError, match=rf"{name} is a PNG picture; expected JPEG, convert the frames"):
            FrameReader(f"{tmp_path}/%d{name[1:]}", 1, 1).read([0])


class Elsewhere(PathHandler):  # type: ignore[misc]
    """elsewhere://x is fetched from a folder, as files from a network store are."""

    folder = Path()

    def _get_supported_prefixes(self) -> list[str]:
        return ["elsewhere://"]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: object) -> str:
        return str(self.folder / path.removeprefix("elsewhere://"))


@pytest.fixture(scope="module")
def _elsewhere() -> None:
    path_manager.register_handler(Elsewhere())


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
def test_remote_paths(tmp_path: Path, backend: str) -> None:
    try:
        load_backend(backend)
    except InputError as error:
        pytest.skip(str(error))
    Elsewhere.folder = tmp_path
    write_video(tmp_path / "a.mp4", 20)
    write_frames(tmp_path / "b", [0, 1, 2])
    with open_video(Record("a", "elsewhere://a.mp4", 0), backend) as reader:
        assert shown_numbers(reader.read([3, 19])) == [3, 19]
    with open_video(Record("b", "elsewhere://b/b_%06d.jpg", 0, 1, 3), backend) as reader:
        assert shown_numbers(reader.read([1])) == [1]
