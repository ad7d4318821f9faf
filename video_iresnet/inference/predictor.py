"""Classify videos with nothing but a checkpoint."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Protocol, TypeAlias, overload

import torch
from torch import Tensor

from .. import build
from ..config import validate
from ..data.dataset import ViewDataset
from ..data.decode.image import ImageReader, is_image
from ..data.decode.pyav import PyAVReader
from ..data.decode.reader import DecodeError, Reader
from ..engine.aggregate import Numbers, pool
from ..engine.evaluate import forward, outputs_of_views
from ..engine.precision import Precision
from ..runtime.errors import InputError
from .trained import Trained, read_trained

Source: TypeAlias = "str | os.PathLike[str] | Tensor"
ROUNDING = 1e-6  # seconds


class Guess(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The probabilities (K,) of all classes between two times of a video, in seconds. They sum to 1, unless
    the network was trained with DATA.MULTI_LABEL.
    """

    begin: float
    end: float
    probabilities: Numbers
    class_names: Sequence[str]

    def top(self, number: int = 5, least: float = 0.0) -> list[Guess]:
        """Return the most probable classes, of at least a probability; of equal ones, the first."""
        labels = (-self.probabilities).argsort(kind="stable")[:number].tolist()
        guesses = [Guess(i, self.class_names[i], float(self.probabilities[i])) for i in labels]
        return [guess for guess in guesses if guess.probability >= least]


class TimedReader(Reader, Protocol):
    """A reader that knows the time of each frame in seconds, ascending."""

    def __enter__(self) -> TimedReader: ...

    @property
    def seconds(self) -> Sequence[Fraction]: ...


class FrameTensor:
    """(N, H, W, 3) uint8 RGB frames as a TimedReader."""

    def __init__(self, frames: Tensor, fps: float) -> None:
        if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames) or frames.dtype != torch.uint8:
            raise InputError(
                f"frames are {tuple(frames.shape)} of type {frames.dtype}; expected (N, H, W, 3) of "
                "torch.uint8"
            )
        if not fps > 0:
            raise InputError(f"the frame rate is {fps}; expected a number above 0")
        self.frames, self.fps = frames, fps

    def __enter__(self) -> FrameTensor:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def seconds(self) -> list[Fraction]:
        return [i / Fraction(self.fps) for i in range(len(self))]

    def read(self, indices: Sequence[int]) -> Tensor:
        return self.frames[list(indices)]


class Classifier:
    """Classifies videos as the test of its training does: with its clips, crops and normalization, in
    float32.

    `clips`, `crops`: views of a video, by default those of the training's config; of a window, one clip.
    Decodes with PyAV, whatever decoder the training had.
    """

    def __init__(self, trained: Trained, *, clips: int | None = None, crops: int | None = None) -> None:
        cfg = trained.cfg.clone()
        cfg.DATA.DECODING_BACKEND = "pyav"
        cfg.TEST.NUM_SPATIAL_CROPS = crops or cfg.TEST.NUM_SPATIAL_CROPS
        cfg.TEST.NUM_ENSEMBLE_VIEWS = clips or cfg.TEST.NUM_ENSEMBLE_VIEWS
        validate(cfg)
        self.trained = trained
        self.whole = build.build_test_data(cfg, [])
        cfg.TEST.NUM_ENSEMBLE_VIEWS = clips or 1
        self.part = build.build_test_data(cfg, [])
        self._batch_size = cfg.TEST.BATCH_SIZE
        self._task = build.build_task(cfg, trained.device)

    @property
    def class_names(self) -> list[str]:
        return self.trained.class_names

    @overload
    def __call__(self, video: Source, *, fps: float = ...) -> Prediction: ...
    @overload
    def __call__(self, video: list[Source], *, fps: float = ...) -> list[Prediction]: ...
    def __call__(self, video: Source | list[Source], *, fps: float = 30.0) -> Prediction | list[Prediction]:
        """Classify a video file or a picture, or (N, H, W, 3) uint8 RGB frames at `fps` frames per second; or
        each one of a list. Raises DecodeError if a file cannot be read.
        """
        if isinstance(video, list):
            return [self(one, fps=fps) for one in video]
        with open_frames(video, fps) as reader:
            return self.classify(reader, frame_times(reader), 0, len(reader), self.whole)

    def windows(
        self, video: Source, seconds: float, step: float | None = None, *, fps: float = 30.0
    ) -> Iterator[Prediction]:
        """Classify windows of a video, `step` seconds apart (None: without overlap), one at a time, so that
        memory does not grow with its length. The last one ends with the video. Raises as above.
        """
        with open_frames(video, fps) as reader:
            times = frame_times(reader)
            for first, end in frame_windows(times, seconds, step or seconds):
                yield self.classify(reader, times, first, end, self.part)

    @torch.inference_mode()
    def classify(
        self, reader: Reader, times: Sequence[float], first: int, end: int, data: ViewDataset
    ) -> Prediction:
        """Classify frames [first, end) of a video by the views of `data`; `times`: see frame_times."""
        (video,) = outputs_of_views(
            self.trained.network,
            [data.views_of(reader, 0, first, end)],
            self._task,
            precision=Precision(self.trained.device.type, None),
            crop_size=data.crop_size,
            batch_size=self._batch_size,
            orders={"": forward},
            device=self.trained.device,
        )
        if video.error:
            raise DecodeError(video.error)
        return Prediction(times[first], times[end], pool(video.outputs[""]), self.class_names)


def open_frames(video: Source, fps: float = 30.0) -> TimedReader:
    """Open a video file, or take a picture or frames at `fps`. Raises DecodeError or InputError."""
    if isinstance(video, Tensor):
        return FrameTensor(video, fps)
    path = os.fspath(video)
    if is_image(path):
        with ImageReader(path) as picture:
            return FrameTensor(picture.read([0]), fps)
    return PyAVReader(path)


def frame_times(reader: TimedReader) -> list[float]:
    """Return the time of each of N frames from 0, and as number N + 1 the end of the last one, in seconds."""
    seconds = reader.seconds
    times = [float(time - seconds[0]) for time in seconds]
    return [*times, times[-1] + 1 / reader.fps]


def frame_windows(times: Sequence[float], seconds: float, step: float) -> Iterator[tuple[int, int]]:
    """Yield the frames [first, end) of windows of this length and step; the last one ends with the video. A
    video that is shorter than a window is one.
    """
    if not (seconds > 0 and step > 0):
        raise InputError(f"windows of {seconds} s every {step} s; expected numbers above 0")
    last = max(times[-1] - seconds, 0.0)
    for number in range(math.ceil(last / step - ROUNDING) + 1):
        begin = min(number * step, last)
        first = bisect.bisect_left(times, begin - ROUNDING)
        end = bisect.bisect_left(times, begin + seconds - ROUNDING)
        first = min(first, len(times) - 2)
        yield first, min(max(end, first + 1), len(times) - 1)


def load(
    path: str | os.PathLike[str],
    device: str | torch.device | None = None,
    *,
    clips: int | None = None,
    crops: int | None = None,
) -> Classifier:
    """Return a classifier from a checkpoint or the folder of a run; see read_trained and Classifier."""
    return Classifier(read_trained(path, device), clips=clips, crops=crops)
