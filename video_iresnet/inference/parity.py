"""Compare an exported network with the original: on random clips, and on videos with labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor, nn

from .. import build
from ..data.dataset import ViewDataset
from ..engine.aggregate import TOP, pool
from ..engine.evaluate import forward, outputs_of_views
from ..engine.precision import Precision
from ..engine.views import Arrays
from ..runtime.errors import InputError
from .export import ExportedNetwork, OnClips, clip_size
from .trained import Trained

NAMES = {"top1": "top-1", "top5": f"top-{TOP}", "map": "mAP"}
LIMIT = 1e-4  # of logits in float32, relative to the largest one where that is above 1


class Difference(NamedTuple):
    """The greatest differences between two networks: of logits, and of probabilities. `largest`: the
    greatest magnitude of the original's logits.
    """

    logits: float
    largest: float
    probabilities: float

    def __str__(self) -> str:
        return (
            f"logits differ by up to {self.logits:.1e} (the largest is {self.largest:.3g}), probabilities by "
            f"up to {self.probabilities:.1e}"
        )


class Measured(NamedTuple):
    """Accuracies of the original and of the exported network on the same videos. `agreeing`: for how many of
    the `readable` videos both have the same most probable class. `change`: the greatest change of a
    probability.
    """

    protocol: str
    num_videos: int
    readable: int
    original: Mapping[str, float]
    exported: Mapping[str, float]
    agreeing: int
    change: float

    def __str__(self) -> str:
        rows = [("original", *self.original.values()), ("exported", *self.exported.values())]
        names = [NAMES[name] for name in self.original]
        table = tabulate(rows, headers=["accuracy in percent", *names], floatfmt=".2f")
        return (
            f"{self.num_videos} videos, {self.num_videos - self.readable} failed, {self.protocol}\n{table}\n"
            f"the same most probable class for {self.agreeing} of {self.readable} videos; probabilities "
            f"differ by up to {self.change:.1e}"
        )


class _OnPixels(nn.Module):
    """(B, 3, T, S, S) uint8 clips -> (B, K) logits of an exported network, whatever its input is."""

    def __init__(self, trained: Trained, exported: ExportedNetwork) -> None:
        super().__init__()
        self.exported = exported
        self.normalize = build.build_normalize(trained.cfg, torch.device("cpu"))

    def forward(self, clips: Tensor) -> Tensor:
        is_inside = self.exported.about["input_type"] == "uint8"
        return self.exported.logits(clips if is_inside else self.normalize(clips))


@torch.inference_mode()
def compare_on_clips(
    trained: Trained, exported: ExportedNetwork, batch_sizes: Sequence[int] = (1, 3)
) -> Difference:
    """Compare on clips of random pixels. Raises InputError if logits are not finite, or if those of an
    export in float32 differ by more than LIMIT.
    """
    original, other = OnClips(trained, trained.network), _OnPixels(trained, exported)
    probabilities = build.build_probabilities(trained.cfg)
    generator = torch.Generator().manual_seed(0)
    differences = []
    for number in batch_sizes:
        size = number, 3, *clip_size(trained)
        clips = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
        ours, theirs = original(clips), other(clips)
        change = (probabilities(ours) - probabilities(theirs)).abs().max()
        differences.append(torch.stack([(ours - theirs).abs().max(), ours.abs().max(), change]))
    found = Difference(*torch.stack(differences).amax(0).tolist())
    precision = exported.about["precision"]
    if not torch.tensor(found).isfinite().all():
        raise InputError(
            f"the exported network's logits are not finite in {precision}; take another precision"
        )
    if precision == "float32" and found.logits > LIMIT * max(1.0, found.largest):
        raise InputError(
            f"the exported network is another one: on random clips {found}; expected differences of logits "
            f"up to {LIMIT:.0e}, relative to the largest where that is above 1; nothing was written"
        )
    return found


def read_videos(trained: Trained, path: str) -> ViewDataset:
    """Return the data of the training's test on another list of videos with labels, of the same kind. Paths
    start at the folder of the list, where class names lie too. Raises InputError.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path} does not exist; name a list of videos with labels")
    cfg = trained.cfg.clone()
    cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.TEST_LIST = os.path.split(path)
    cfg.DATA.DECODING_BACKEND = "pyav"
    return build.build_test_data(cfg, build.build_records(cfg, "DATA.TEST_LIST"))


@torch.inference_mode()
def compare_on_videos(trained: Trained, exported: ExportedNetwork, data: ViewDataset) -> Measured:
    """Compare on all views of videos with labels."""
    task = build.build_task(trained.cfg, torch.device("cpu"))
    task = dataclasses.replace(task, normalize=lambda clips: clips)
    networks = OnClips(trained, trained.network), _OnPixels(trained, exported)
    found: list[list[Arrays | None]] = [[], []]
    for number in range(len(data)):
        views = data[number]
        for network, scores in zip(networks, found, strict=True):
            (video,) = outputs_of_views(
                network,
                [views],
                task,
                precision=Precision("cpu"),
                crop_size=data.crop_size,
                batch_size=trained.cfg.TEST.BATCH_SIZE,
                orders={"": forward},
                device=torch.device("cpu"),
            )
            scores.append(None if video.error else video.outputs[""])
    labels = [record.label for record in data.records]
    original, other = (
        task.measure([None if views is None else task.predict(views) for views in scores], labels)
        for scores in found
    )
    pairs = [(pool(a), pool(b)) for a, b in zip(*found, strict=True) if a is not None and b is not None]
    return Measured(
        f"{data.protocol}, clips of {build.clip_text(trained.cfg)}",
        len(data),
        len(pairs),
        original,
        other,
        sum(int(a.argmax() == b.argmax()) for a, b in pairs),
        max((float(abs(a - b).max()) for a, b in pairs), default=0.0),
    )
