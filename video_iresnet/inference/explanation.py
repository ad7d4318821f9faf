"""Explain how a video was classified: the clip that the network saw, and where it saw the class."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import build
from ..data.dataset import FRAMES_AT_ONCE
from ..data.functional import Place, cut, resize, short_side_size
from ..data.sampling import Timeline
from ..engine.aggregate import Numbers
from ..models import ResNet
from ..report.contact_sheet import Row, sheet
from ..report.heat import enlarged, heated, with_scale
from ..runtime.errors import InputError, printable
from .annotate import draw_panel, panel
from .gradcam import default_stage, grad_cam
from .movie import Picture
from .predictor import Classifier, Guess, TimedReader, frame_times

# Pixels of a side of the movie's and the strip's frames; smaller ones are enlarged.
SMALLEST, SMALLEST_IN_STRIP = 288, 96


class Seen(NamedTuple):
    """The centre clip and crop of a part of a video: (T, S, S, 3) uint8 frames, their numbers and times in
    seconds, (1, 3, T, S, S) network input, and the (top, left) of the crop in a resized frame.
    """

    frames: Tensor
    numbers: list[int]
    times: list[float]
    inputs: Tensor
    place: Place


class Explanation(NamedTuple):
    """A class with its probability in a clip, and its (T, S, S) heat in [0, 1] at a stage."""

    seen: Seen
    guess: Guess
    stage: str
    heat: Tensor


def seen_clip(
    classifier: Classifier, reader: TimedReader, begin: float = 0.0, end: float | None = None
) -> Seen:
    """Return the centre view of the part of a video between two times. `classifier`: with one clip and one
    crop. Raises DecodeError if it cannot be read, and InputError if nothing lies between the times.
    """
    times, data = frame_times(reader), classifier.part
    first = bisect.bisect_left(times, begin)
    last = len(reader) if end is None else bisect.bisect_left(times, end, 0, len(reader))
    if not first < last:
        to = "the end" if end is None else f"{end:g} s"
        raise InputError(
            f"the video has no frames from {begin:g} s to {to}; it lasts {times[-1]:.2f} s, name a part of it"
        )
    timeline = Timeline(last - first, reader.fps)
    (clip,) = data.sampler.uniform_clips(timeline, data.num_frames, data.num_clips)
    views = data.views_of(reader, 0, first, last)
    (positions,), (place,) = views.clips, views.crops
    frames = cut(views.frames, place, data.crop_size)[positions]
    normalize = build.build_normalize(classifier.trained.cfg, classifier.trained.device)
    inputs = normalize(frames.permute(3, 0, 1, 2)[None].to(classifier.trained.device))
    numbers = [first + index for index in clip]
    return Seen(frames, numbers, [times[number] for number in numbers], inputs, place)


def explain(
    classifier: Classifier, seen: Seen, label: int | None = None, stage: str | None = None
) -> Explanation:
    """Explain a class, by default the most probable one. Raises InputError for an unknown stage."""
    network = classifier.trained.network
    stage = stage or default_stage(network, seen.inputs.shape[-1])
    if stage not in network.stage_names:
        raise InputError(f"unknown stage {stage!r}; expected one of {', '.join(network.stage_names)}")
    with torch.inference_mode():
        probabilities = build.build_probabilities(classifier.trained.cfg)(network(seen.inputs)[0])
    label = int(probabilities.argmax()) if label is None else label
    guess = Guess(label, classifier.class_names[label], float(probabilities[label]))
    return Explanation(seen, guess, stage, _heat(network, seen, label, stage))


def heat_of_random_weights(network: ResNet, explanation: Explanation, seed: int = 0) -> Tensor:
    """Return the heat (T, S, S) of the same class and clip with all weights drawn anew.

    This is the model parameter randomization test of Adebayo et al., arXiv 1810.03292: an explanation that
    does not change says nothing of what was learned. Batch normalization takes the clip's own statistics, as
    without any a deep network would overflow.
    """
    inputs = explanation.seen.inputs
    devices = [inputs.device] if inputs.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        other = ResNet(network.plan).to(inputs.device)
    for module in other.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        other.train()(inputs.repeat(2, 1, 1, 1, 1))  # of one clip, a position may be too few
    return _heat(other.eval(), explanation.seen, explanation.guess.label, explanation.stage)


def _heat(network: ResNet, seen: Seen, label: int, stage: str) -> Tensor:
    return grad_cam(network, seen.inputs, torch.tensor([label]), stage)[0].cpu()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two tensors of one shape, with mean ranks for equal numbers; NaN
    where one is the same everywhere.
    """
    x, y = (_ranks(each.numpy().ravel()) for each in (a, b))
    x, y = x - x.mean(), y - y.mean()
    norm = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / norm) if norm > 0 else float("nan")


def _ranks(values: Numbers) -> Numbers:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[inverse], np.float64)


def heated_pictures(
    classifier: Classifier, reader: TimedReader, explanation: Explanation
) -> Iterator[tuple[float, Picture]]:
    """Yield (seconds, picture) of all frames of the video from the first to the last one of the clip: on the
    left the frame and the class, on the right the heat, which is interpolated in time, over the frame.
    """
    data, seen, times = classifier.part, explanation.seen, frame_times(reader)
    numbers, order = np.unique(seen.numbers, return_index=True)
    heat, known = explanation.heat[order], [times[number] for number in numbers]
    drawn = None
    for first in range(numbers[0], numbers[-1] + 1, FRAMES_AT_ONCE):
        chosen = range(first, min(first + FRAMES_AT_ONCE, numbers[-1] + 1))
        frames = reader.read(list(chosen))
        frames = resize(frames, *short_side_size(frames.shape[1], frames.shape[2], data.short_side))
        frames = cut(frames, seen.place, data.crop_size)
        for frame, number in zip(frames, chosen, strict=True):
            over = heated(frame, _at(heat, known, times[number]))
            left, right = (enlarged(each, SMALLEST).numpy() for each in (frame, over))
            if drawn is None:
                drawn = panel([explanation.guess], *left.shape[:2])
            yield times[number] - known[0], np.hstack([draw_panel(left, drawn), right])


def _at(heat: Tensor, times: Sequence[float], time: float) -> Tensor:
    """(N, S, S) heat at N ascending times -> heat (S, S) at a time between them."""
    place = float(np.interp(time, times, np.arange(len(times))))
    before = int(place)
    return torch.lerp(heat[before], heat[min(before + 1, len(heat) - 1)], place - before)


def strip(explanation: Explanation, random_heat: Tensor | None = None) -> Image.Image:
    """Draw the frames of the clip with their times, and below them the heat; with that of random weights, if
    given, and the rank correlation.
    """
    seen, guess = explanation.seen, explanation.guess
    times = [f"{time:.2f} s" for time in seen.times]
    title = f"{guess.probability:.1%}  {printable(guess.name)}"
    rows = [(title, seen.frames), (f"Grad-CAM at {explanation.stage}", heated(seen.frames, explanation.heat))]
    if random_heat is not None:
        same = rank_correlation(explanation.heat, random_heat)
        rows.append((f"random weights: rank correlation {same:.2f}", heated(seen.frames, random_heat)))
    picture = sheet([Row(enlarged(frames, SMALLEST_IN_STRIP), name, times) for name, frames in rows])
    return with_scale(picture, "none to the greatest heat of the clip")
