"""Measure how far the heat of a network trained on moving shapes lies on the shape:

    python tests/localize.py --checkpoint output/demo --data data/moving_shapes [--random 4]

For the centre clip of each test video and the class that the network predicts: how often the greatest heat
lies on the shape or within a stride of the stage from it, and what part of all heat lies on the shape, beside
the part of the clip that the shape covers, which is what a uniform heat would have. `--random`: the mean of
so many networks with weights drawn anew, and the rank correlation of their heat with the trained one's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from conftest import load_script
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from video_iresnet.data.decode.pyav import PyAVReader
from video_iresnet.data.functional import cut, resize, short_side_size
from video_iresnet.inference import Classifier, load
from video_iresnet.inference.explanation import (
    Seen,
    explain,
    heat_of_random_weights,
    rank_correlation,
    seen_clip,
)


class Measured(NamedTuple):
    """Of a clip's heat: whether its peak lies on the shape and near it, and the part of it on the shape."""

    peak: float
    near: float
    mass: float
    area: float


def measure(heat: Tensor, mask: Tensor, stride: int) -> Measured:
    """(T, S, S) heat and the boolean mask of the shape -> what is measured."""
    around = 2 * stride + 1
    near = F.max_pool2d(mask.float()[:, None], around, 1, stride)[:, 0] > 0
    peak = int(heat.argmax())
    mass = float(heat[mask].sum() / heat.sum().clamp_min(1e-12))
    on, close = bool(mask.view(-1)[peak]), bool(near.view(-1)[peak])
    return Measured(float(on), float(close), mass, float(mask.float().mean()))


def mask_of(classifier: Classifier, seen: Seen, number: int) -> Tensor:
    """Return where the shape is in the clip of test video `number`, as a boolean (T, S, S)."""
    shapes, data = load_script("data_prep/moving_shapes.py"), classifier.part
    ((scene, motion),) = shapes.drawn(shapes.Job(Path(), "test", number, 0))
    frames = [shapes.outline(scene, motion, index)[0] for index in seen.numbers]
    covers = torch.from_numpy(np.rint(255 * np.stack(frames)).astype(np.uint8))[..., None].repeat(1, 1, 1, 3)
    covers = resize(covers, *short_side_size(covers.shape[1], covers.shape[2], data.short_side))
    return cut(covers, seen.place, data.crop_size)[..., 0] > 127


def clips(classifier: Classifier, folder: Path) -> Iterator[tuple[Seen, Tensor]]:
    names = [line.rpartition(" ")[0] for line in (folder / "test.csv").read_text().splitlines()]
    for number, name in enumerate(names):
        with PyAVReader(str(folder / name)) as reader:
            seen = seen_clip(classifier, reader)
        yield seen, mask_of(classifier, seen, number)


def table(classifier: Classifier, folder: Path, num_random: int) -> str:
    network = classifier.trained.network
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for seen, mask in clips(classifier, folder):
        for stage, (_, stride, _) in zip(network.stage_names, network.plan.strides, strict=True):
            explanation = explain(classifier, seen, stage=stage)
            found.setdefault(("trained", stage), []).append((*measure(explanation.heat, mask, stride), 1.0))
            for seed in range(num_random):
                heat = heat_of_random_weights(network, explanation, seed)
                same = rank_correlation(explanation.heat, heat)
                found.setdefault(("random", stage), []).append((*measure(heat, mask, stride), same))
    rows = [
        (weights, stage, len(values), *np.nanmean(values, axis=0))
        for (weights, stage), values in found.items()
    ]
    head = (
        "weights",
        "stage",
        "heats",
        "peak on shape",
        "within a stride",
        "heat on shape",
        "area of shape",
        "rank",
    )
    return tabulate(sorted(rows, key=lambda row: row[0], reverse=True), head, floatfmt=".3f")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--random", type=int, default=4)
    options = parser.parse_args()
    print(table(load(options.checkpoint, "cpu", clips=1, crops=1), options.data, options.random))


if __name__ == "__main__":
    main()
