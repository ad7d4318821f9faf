"""A task is a value: another one trains and is evaluated by the same loops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import Tensor
from torch.nn import functional as F

from video_iresnet.data.dataset import ClipDataset, ViewDataset
from video_iresnet.data.loader import BatchShape, EpochBatches, clip_loader, view_loader
from video_iresnet.data.records import Record
from video_iresnet.data.sampling import DenseSampler
from video_iresnet.data.transforms import Compose, ShortSideJitter
from video_iresnet.engine.checkpoint import Position
from video_iresnet.engine.evaluate import evaluate
from video_iresnet.engine.journal import Journal
from video_iresnet.engine.optim import build_sgd, parameter_groups
from video_iresnet.engine.precision import Precision
from video_iresnet.engine.step import Step
from video_iresnet.engine.train import Agreement, BadSteps, BadVideos, train_epoch
from video_iresnet.engine.views import Arrays
from video_iresnet.models import create_model
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.logging import Stats
from video_iresnet.runtime.signals import StopRequest

SIZE = 32


class Column:
    """Regression of the column of a square, which is a record's label."""

    def normalize(self, clips: Tensor) -> Tensor:
        return clips.float() / 255

    def targets(self, clips: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        return clips, labels[:, None] / SIZE

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets)

    def sums(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        distances = (outputs[:, 0] * SIZE - labels).abs()
        return torch.stack([loss * len(labels), distances.sum(), torch.ones_like(distances).sum()]).double()

    def stats(self, sums: list[float]) -> dict[str, float]:
        return {"loss": sums[0] / sums[2], "pixels": sums[1] / sums[2]}

    def keep(self, outputs: Tensor) -> dict[str, Tensor]:
        return {"column": outputs * SIZE}

    def predict(self, views: Arrays) -> float:
        return float(views["column"].mean())

    def measure(self, predictions: Sequence[float | None], labels: Sequence[int]) -> dict[str, float]:
        near = [p is not None and abs(p - label) < 3 for p, label in zip(predictions, labels, strict=True)]
        return {"within_3_pixels": 100 * float(np.mean(near))}


class Square(AbstractContextManager["Square"]):
    """A video of four frames in memory: a white square whose column is the label."""

    fps = 25.0

    def __init__(self, record: Record) -> None:
        self.row, self.column = int(record.name), record.label

    def __exit__(self, *exception: object) -> None:
        pass

    def __len__(self) -> int:
        return 4

    def read(self, indices: Sequence[int]) -> Tensor:
        frames = torch.zeros(len(indices), SIZE, SIZE, 3, dtype=torch.uint8)
        frames[:, self.row : self.row + 8, self.column : self.column + 8] = 255
        return frames


def test_another_task_trains_and_is_evaluated_by_the_same_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [Record(str(n * 7 % 24), "", n * 5 % 24) for n in range(24)]
    sampler = DenseSampler(1)
    data = ClipDataset(
        records,
        sampler=sampler,
        open_video=Square,
        crop=ShortSideJitter(SIZE, SIZE, SIZE),
        flip=None,
        augment=Compose([]),
        seed=0,
    )
    batches = EpochBatches(len(records), [BatchShape(8, 4, SIZE)], seed=0)
    processes, stop, task = Processes(use_gpu=False), StopRequest(), Column()
    torch.manual_seed(0)
    network = create_model("iresnet", 18, width=8, num_classes=1, temporal_kernels="c2d")
    optimizer = build_sgd(
        parameter_groups(network, weight_decay=0.0, bn_weight_decay=0.0), momentum=0.9, nesterov=True
    )
    step = Step(network, optimizer, CosineParamScheduler(0.05, 0.0), task, seed=0, processes=processes)
    position = Position()
    journal = Journal(Stats(tmp_path), processes.device, batches, 40, 1)
    agreement = Agreement(processes, stop, BadVideos(records, 0.0), BadSteps(lambda *_: [], None))

    views = ViewDataset(
        records,
        sampler=sampler,
        open_video=Square,
        num_frames=4,
        num_clips=2,
        num_crops=1,
        short_side=SIZE,
        crop_size=SIZE,
    )

    def measured() -> float:
        predictions = []
        loading = {"rank": 0, "world_size": 1, "num_workers": 0, "pin_memory": False}
        with view_loader(views, videos_at_once=6, **loading) as loader:
            assert evaluate(
                network,
                loader,
                task,
                lambda videos: predictions.extend(task.predict(video.outputs[""]) for video in videos),
                precision=Precision("cpu"),
                crop_size=SIZE,
                batch_size=8,
                checks={},
                processes=processes,
                stop=stop,
            )
        return task.measure(predictions, [record.label for record in records])["within_3_pixels"]

    before = measured()
    shared: list[int] = []
    monkeypatch.setattr(Step, "share_statistics", lambda _: shared.append(position.epoch))
    with clip_loader(data, batches, num_workers=0, pin_memory=False) as loader:
        clips = iter(loader)
        while position.epoch < 40:
            assert train_epoch(step, clips, position, agreement, journal)
    after = measured()
    assert before < 50 < 75 < after, (before, after)
    assert shared == list(range(40))
    assert "pixels" in (tmp_path / "json_stats.log").read_text()
