"""What tests share: videos that say which frame is which, a small data set, and the entry point as a
function.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import av
import numpy as np
import pytest
import torch
from markupsafe import Markup
from starts import Forked
from torch import Tensor, nn

from video_iresnet.report import plots

ROOT = Path(__file__).resolve().parents[1]


def load_script(path: str) -> ModuleType:
    """A script of tools/ or data_prep/ as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# What makes each encoder keep the squares clear and put a keyframe at every `gop`-th frame.
ENCODERS = {
    "libx264": lambda gop: {"crf": "10", "g": gop},
    "libx265": lambda gop: {"x265-params": f"log-level=none:crf=10:keyint={gop}:pools=1"},
    "libvpx-vp9": lambda gop: {"crf": "10", "b": "0", "g": gop, "deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": lambda gop: {"preset": "12", "crf": "20", "g": gop, "svtav1-params": "lp=1"},
}


def numbered_frame(number: int, size: tuple[int, int]) -> np.ndarray:
    """Squares of full or no green, in changing red and blue: (H, W, 3), colourful, so that chroma counts."""
    y, x = np.mgrid[: size[0], : size[1]]
    red, blue = 128 + 90 * np.sin(x / 9 + number / 14), 128 + 90 * np.sin(y / 7 - number / 14)
    green = 255 * (number >> np.minimum(x // (size[1] // 8), 7) & 1)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def write_video(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    gop: int = 12,
    times: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: int = 0,
    live: bool = False,
    front: bool = False,
    picture: Callable[[int, tuple[int, int]], np.ndarray] = numbered_frame,
) -> Path:
    """Write a video of (height, width) `size` whose frame i shows the number i as a row of eight squares
    with or without green.

    `times`: presentation times in milliseconds, for a variable frame rate; else 25 frames a second.
    `options`: more for the encoder. `rotation`: an MP4 that asks its player to turn the picture clockwise by
    90, 180 or 270 degrees, as phones do. `live`: a header without duration, frame count or index, as of a
    stream. `front`: an MP4 whose tables come before its frames. `picture`: how frame i looks at `size`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    container_options = {
        "fflags": "+bitexact",  # the same bytes at every call
        **({"live": "1"} if live else {}),
        **({"movflags": "faststart"} if front else {}),
    }
    with av.open(str(path), "w", container_options=container_options) as container:
        encoder = ENCODERS.get(codec, lambda gop: {"g": gop, "qscale": "3"})(str(gop))
        stream = container.add_stream(codec, rate=25, options={**encoder, **(options or {})})
        stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # For root, SVT-AV1 raises the process that calls it to real-time priority, which starves all others.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    if rotation:
        data = bytearray(path.read_bytes())
        matrix = data.index(b"tkhd") + 44  # of the track's header: a b u, c d v, x y w
        sin, cos = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[rotation]
        struct.pack_into(
            ">9i", data, matrix, cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30
        )
        path.write_bytes(data)
    return path


# Times of 20 frames of a variable rate, in milliseconds.
VARIABLE = [0, 40, 50, 130, 140, 300, 310, 320, 480, 500]
VARIABLE += [501, 600, 777, 800, 900, 1000, 1010, 1200, 1210, 1300]


def copy_video(source: Path, path: Path) -> Path:
    """The same video in a file of other bytes: an MP4 ends in a box that holds the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.encode()
    path.write_bytes(source.read_bytes() + struct.pack(">I", 8 + len(name)) + b"free" + name)
    return path


def trimmed(path: Path, first: int) -> Path:
    """Let the edit list of an MP4 of 25 frames a second start at frame `first`."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 16  # after version, count and duration: the time in the media
    (start,) = struct.unpack_from(">i", data, place)
    struct.pack_into(">i", data, place, start + first * 512)
    path.write_bytes(data)
    return path


def shown_numbers(frames: Tensor) -> list[int]:
    """(T, H, W, 3) -> the number that each frame shows."""
    width = frames.shape[2] // 8
    middle = frames[:, frames.shape[1] // 2, :, 1].float()
    bits = torch.stack(
        [
            middle[:, bit * width + width // 4 : (bit + 1) * width - width // 4].mean(1) > 128
            for bit in range(8)
        ],
        1,
    )
    return [int(number) for number in (bits * 2 ** torch.arange(8)).sum(1)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold most of the slow tests, so that no process has one of them left when the
    others are done.
    """
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small layers are computed faster by one thread, above all where another process has the other cores.
    Runs set their own number.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what is measured on this machine out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VIDEO_IRESNET_CACHE", str(tmp_path_factory.mktemp("machine")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_numbers_for_meta_tensors() -> Iterator[None]:
    """Skip drawing weights on the meta device, which takes most of the time of building a network there."""

    def skipping(initialize: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda tensor, *more, **named: tensor if tensor.is_meta else initialize(tensor, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "kaiming_normal_", "uniform_"):
            patch.setattr(nn.init, name, skipping(getattr(nn.init, name)))
        yield


DRAW = plots._svg


@pytest.fixture(scope="session", autouse=True)
def no_plots() -> Iterator[None]:
    """Leave the plots out of the pages of runs: drawing them takes longer than a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", lambda *_: Markup("<svg></svg>"))
        yield


@pytest.fixture(scope="module")
def drawn_plots() -> Iterator[None]:
    """Draw them, in tests of pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", DRAW)
        yield


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the project logs, once, whatever handlers runs of earlier tests have left."""
    logger = logging.getLogger("video_iresnet")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def moving_shapes() -> ModuleType:
    return load_script("data_prep/moving_shapes.py")


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory, moving_shapes: ModuleType) -> Path:
    """A small moving shapes data set: 24 training, 8 validation and 11 test videos."""
    folder = tmp_path_factory.mktemp("shapes")
    moving_shapes.write_data_set(folder, {"train": 24, "val": 8, "test": 11}, seed=0)
    return folder


def small_overrides(shapes: Path) -> list[str]:
    """Overrides that make the demo config a run of seconds on a small moving shapes data set."""
    text = f"""NUM_GPUS 0 DATA.PATH_TO_DATA_DIR {shapes} DATA_LOADER.NUM_WORKERS 0 RESNET.WIDTH_PER_GROUP 4
    TRAIN.BATCH_SIZE 8 SOLVER.MAX_EPOCH 2 LOG_PERIOD 1 DATA.TRAIN_JITTER_SCALES [32,36]
    DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 DATA.NUM_FRAMES 4 TEST.NUM_ENSEMBLE_VIEWS 2
    TRAIN.CHECKPOINT_PERIOD 1 TEST.BATCH_SIZE 7 TEST.TEMPORAL_CHECKS False"""
    return text.split()


# With them a test takes three times as many views.
WITH_CHECKS = ("TEST.TEMPORAL_CHECKS", "True")


@pytest.fixture(scope="session")
def small(shapes: Path) -> list[str]:
    return small_overrides(shapes)


RunNet = Callable[..., int]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
DEMO = str(ROOT / "configs/demo/iR3D18.yaml")


@pytest.fixture(scope="session")
def run_net() -> RunNet:
    """tools/run_net.py's main, in this process: the exit code of `--cfg CONFIG` with overrides."""
    module = load_script("tools/run_net.py")

    def run(*overrides: str, cfg: str = DEMO) -> int:
        return int(module.main(["--cfg", cfg, *overrides]))

    return run


def start(
    *arguments: str,
    launcher: tuple[str, ...] = (),
    cwd: Path = ROOT,
    new_session: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Forked:
    """Start Python on arguments in a process of its own, as a user's shell would. `environment`: variables
    beside those of this process.
    """
    return Forked([*launcher, *arguments], cwd, os.environ | dict(environment or {}), new_session)


def start_together(size: int, *arguments: str, local_size: int | None = None) -> list[Forked]:
    """Start processes that find each other by the variables that torchrun sets, without torchrun.
    `local_size`: how many of them a machine is said to have, else all.
    """
    local_size = local_size or size
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(local_size)}
    return [
        start(*arguments, environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % local_size)})
        for rank in range(size)
    ]


def run_together(size: int, *arguments: str, local_size: int | None = None) -> str:
    """Run such processes to their end; return what they print, one after another."""
    processes = start_together(size, *arguments, local_size=local_size)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, outputs
    return "".join(outputs)
