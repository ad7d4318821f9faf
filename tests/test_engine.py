"""Schedules, optimizer, metrics, checkpoints, evaluation and the bookkeeping of bad videos, in numbers."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import CosineParamScheduler
from torch import nn

from video_iresnet.data.dataset import Failure, VideoViews
from video_iresnet.data.functional import Place
from video_iresnet.data.mixing import plain_targets
from video_iresnet.data.records import Record
from video_iresnet.engine import schedule
from video_iresnet.engine.checkpoint import (
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    load_model_state,
    prune_checkpoints,
    save_checkpoint,
)
from video_iresnet.engine.evaluate import FrameOrder, evaluate, temporal_checks
from video_iresnet.engine.journal import Meter, hours
from video_iresnet.engine.optim import build_sgd, parameter_groups, set_learning_rate
from video_iresnet.engine.precision import Precision
from video_iresnet.engine.step import Outcome
from video_iresnet.engine.tasks import SingleLabel
from video_iresnet.engine.train import BadVideos
from video_iresnet.engine.views import VideoOutputs
from video_iresnet.models import WeightsError, create_model
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.signals import StopRequest


def test_cosine_with_warm_up_is_pyslowfasts() -> None:
    rate = schedule.warm_up(CosineParamScheduler(0.1, 0.0), 0.01, 34 / 196)
    for epoch, expected in {0: 0.01, 17: 0.051379, 34: 0.092757, 98: 0.05}.items():
        assert rate(epoch / 196) == pytest.approx(expected, abs=1e-6)


def test_steps_with_warm_up_are_pyslowfasts() -> None:
    rate = schedule.warm_up(schedule.steps(0.03, [0, 14 / 22, 18 / 22], [1, 0.1, 0.01]), 1e-4, 0.19 / 22)
    for epoch, expected in {0.1: 0.01583684, 0.19: 0.03, 13.9: 0.03, 14: 0.003, 18: 0.0003}.items():
        assert rate(epoch / 22) == pytest.approx(expected, abs=1e-8)


def test_normalization_has_its_own_weight_decay() -> None:
    model = create_model("iresnet", 18, width=4, num_classes=3)
    groups = parameter_groups(model, weight_decay=0.1, bn_weight_decay=0.0)
    optimizer = build_sgd(groups, momentum=0.9, nesterov=True)
    others, norms = optimizer.param_groups
    assert (others["weight_decay"], norms["weight_decay"], norms["nesterov"]) == (0.1, 0.0, True)
    assert len(others["params"]) + len(norms["params"]) == len(list(model.parameters()))
    assert {id(p) for p in norms["params"]} == {
        id(p) for m in model.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()
    }


def test_metrics_are_exact_for_ragged_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 7), torch.randint(7, (10,))
    task = SingleLabel(torch.Tensor.float, plain_targets)
    meter = Meter(torch.device("cpu"), None)
    for part in (slice(0, 7), slice(7, 10)):
        sums = task.sums(task.loss(logits[part], labels[part]), logits[part], labels[part])
        meter.add(Outcome(sums, torch.tensor(1.0), torch.tensor(False)))
    stats = task.stats(meter.sums())
    assert stats["loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert stats["top1_err"] == pytest.approx(100 * (logits.argmax(1) != labels).float().mean().item())
    in_top5 = (logits.topk(5).indices == labels[:, None]).any(1)
    assert stats["top5_err"] == pytest.approx(100 * (~in_top5).float().mean().item())
    few = task.sums(torch.tensor(1.0), torch.tensor([[0.1, 0.9]]), torch.tensor([0]))
    assert task.stats(few.tolist())["top5_err"] == 0


class Remember(nn.Module):
    """Logits from the mean of the first and of the last frame; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return torch.stack([x[:, :, 0].mean((1, 2, 3)), x[:, :, -1].mean((1, 2, 3))], 1)


def outputs_of(
    model: nn.Module, group: list[VideoViews], checks: dict[str, FrameOrder]
) -> list[VideoOutputs]:
    """What the evaluator keeps of one group, three views at a time."""
    kept: list[VideoOutputs] = []
    finished = evaluate(
        model,
        [group],
        SingleLabel(torch.Tensor.float, plain_targets),
        kept.extend,
        precision=Precision("cpu"),
        crop_size=4,
        batch_size=3,
        checks=checks,
        processes=Processes(use_gpu=False),
        stop=StopRequest(),
    )
    assert finished
    return kept


def test_evaluation_keeps_every_view() -> None:
    """Three videos, one unreadable; 2 clips x 1 crop; against a computation by hand."""
    values = torch.tensor([1.0, 2.0, 4.0])
    frames = values.to(torch.uint8).view(3, 1, 1, 1).expand(3, 4, 4, 3)
    video = VideoViews(0, frames, [[0, 1], [1, 2]], [Place(0, 0)], "")
    group = [video, VideoViews(1, torch.empty(0), [], [], "broken"), video._replace(record=2)]
    model = Remember()
    results = outputs_of(model, group, temporal_checks(0))
    assert [(result.record, result.error) for result in results] == [(0, ""), (1, "broken"), (2, "")]
    assert not results[1].outputs
    assert model.batches == [3, 3, 3, 3, 3, 1]
    logits = {"": [[[1.0, 2.0]], [[2.0, 4.0]]], "reversed": [[[2.0, 1.0]], [[4.0, 2.0]]]}
    logits["frozen"] = [[[2.0, 2.0]], [[4.0, 4.0]]]
    for result in (results[0], results[2]):
        assert set(result.outputs) == {"", "reversed", "shuffled", "frozen"}
        for order, expected in logits.items():
            arrays = result.outputs[order]
            assert arrays["probabilities"].dtype == np.float32
            np.testing.assert_allclose(
                np.log(arrays["probabilities"]) + arrays["normalizer"][..., None], expected, atol=1e-6
            )
            np.testing.assert_allclose(
                arrays["probabilities"], torch.tensor(expected).softmax(-1).numpy(), rtol=1e-6
            )


class Overflow(nn.Module):
    """Logits of a clip's first pixels; 200 stands for a value that is not finite."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = x[:, 0, :, 0, 0]
        return torch.where(pixels == 200, self.value, pixels)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_videos_whose_logits_are_not_finite_fail(value: float) -> None:
    """Of four videos of 2 clips, one overflows in a single view, and one in a temporal check alone."""
    numbers = {0: [1, 2, 3], 1: [200, 2, 3], 2: [1, 2, 3], 3: [1, 2, 200]}
    group = []
    for record, shown in numbers.items():
        frames = torch.tensor(shown, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 4, 4, 3)
        group.append(VideoViews(record, frames, [[0, 1], [1, 1]], [Place(0, 0)], ""))
    results = outputs_of(Overflow(value), group, {"last": lambda clip, record: [2] * len(clip)})
    assert [result.error for result in results] == [
        "", "the network's logits are not finite in 1 of 2 views", "", ""
    ]  # fmt: skip
    assert not results[1].outputs
    for name in ("probabilities", "normalizer"):
        assert np.array_equal(results[3].outputs[""][name], results[0].outputs[""][name])
        assert np.isfinite(results[0].outputs["last"][name]).all()
        assert np.isnan(results[3].outputs["last"][name]).all()


def test_temporal_orders() -> None:
    orders = temporal_checks(5)
    clip = [3, 5, 7, 9, 9]
    assert orders["reversed"](clip, 0) == [9, 9, 7, 5, 3]
    assert orders["frozen"](clip, 0) == [7] * 5
    assert sorted(orders["shuffled"](clip, 0)) == clip
    assert orders["shuffled"](list(range(16)), 1) != orders["shuffled"](list(range(16)), 2)


def test_checkpoints_are_ordered_and_pruned(tmp_path: Path) -> None:
    names = [
        checkpoint_name(9),
        checkpoint_name(9, 12),
        checkpoint_name(9, 101),
        checkpoint_name(10),
        checkpoint_name(100000),
    ]
    for name in [*reversed(names), "checkpoint_best.pyth", "checkpoint_epoch_x.pyth"]:
        save_checkpoint(tmp_path / name, {"model_state": {}})
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == names[-2:]
    assert (tmp_path / "checkpoint_best.pyth").exists()


def test_full_disk_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    save_checkpoint(path, {"model_state": {"w": torch.arange(3)}})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"cannot write .*a\.pyth: .*; what stood there before is untouched$"
        ):
            save_checkpoint(path, {"model_state": {"w": torch.zeros(1_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load(path, weights_only=True)["model_state"]["w"].tolist() == [0, 1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.pyth"]


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)


def test_foreign_checkpoints_are_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": Payload()}, tmp_path / "code.pyth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Payload()))
    (tmp_path / "text.pyth").write_text("hello")
    (tmp_path / "empty.pyth").touch()
    torch.save({"state_dict": {}, "arch": "x"}, tmp_path / "foreign.pyth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pyth")
    save_checkpoint(tmp_path / "whole.pyth", {"model_state": {"w": torch.zeros(9999)}})
    (tmp_path / "cut.pyth").write_bytes((tmp_path / "whole.pyth").read_bytes()[:5000])
    for name, message in {
        "code.pyth": r"damaged or hold more than tensors, numbers and texts \([\w.]+\), and were not loaded",
        "plain.pkl": "damaged or hold more than tensors",
        "text.pyth": "damaged or hold more|cannot be read",
        "empty.pyth": "cannot be read",
        "foreign.pyth": r"lacks position, model_state, .* \(it holds state_dict, arch\); expected one",
        "tensor.pyth": "hold a Tensor; expected a state dict",
        "cut.pyth": "cannot be read",
        "absent.pyth": "cannot be read",
    }.items():
        with pytest.raises(
            WeightsError, match=f"^(checkpoint|weights) [^\n]*{name} [^\n]*({message})[^\n]*$"
        ):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_network_is_refused() -> None:
    model = create_model("iresnet", 18, width=4, num_classes=8)
    for other, message in [
        (create_model("iresnet", 18, width=4, num_classes=5), "5 classes in the file, 8 in the network"),
        (
            create_model("iresnet", 34, width=4, num_classes=8),
            "iresnet-34 for video, width 4.* fit .* expected all; it lacks 16 tensors, layer1.1.bn2.weight "
            "first",
        ),
        (
            create_model("iresnet", 18, width=8, num_classes=8),
            r"conv1.weight is \(8, 3, 5, 7, 7\), expected \(4, 3, 5, 7, 7\)",
        ),
        (
            create_model("resnet", 18, width=4, num_classes=8),
            "resnet-18 for video.* are of another shortcut than iresnet-18 for video, width 4: "
            "layer2.0.downsample.1.weight",
        ),
    ]:
        with pytest.raises(WeightsError, match=f"^weights x.pyth[^\n]*{message}[^\n]*$"):
            load_model_state(model, other.state_dict(), "x.pyth")
    load_model_state(model, create_model("iresnet", 18, width=4, num_classes=8).state_dict(), "x.pyth")


def test_bad_videos_are_logged_once_and_limited(logged: pytest.LogCaptureFixture) -> None:
    records = [Record(f"{i}.mp4", f"/v/{i}.mp4", 0) for i in range(10)]
    bad = BadVideos(records, 0.2)
    bad.add([Failure(3, "empty")])
    bad.add([Failure(3, "empty"), Failure(4, "cut")])
    assert bad.reasons == {3: "empty", 4: "cut"}
    assert [message.split(";")[0] for message in logged.messages] == [
        "cannot read /v/3.mp4: empty",
        "cannot read /v/4.mp4: cut",
    ]
    with pytest.raises(
        InputError, match=r"3 of 10 training videos .* DATA.MAX_BAD_FRACTION 0.2 .* /v/3.mp4 \(empty\)"
    ):
        bad.add([Failure(5, "cut")])


def test_a_batch_can_be_memorized() -> None:
    torch.manual_seed(0)
    model = create_model("iresnet", 18, width=4, num_classes=4)
    groups = parameter_groups(model, weight_decay=0.0, bn_weight_decay=0.0)
    optimizer = build_sgd(groups, momentum=0.9, nesterov=True)
    set_learning_rate(optimizer, 0.05)
    clips, labels = torch.randn(8, 3, 4, 32, 32), torch.arange(8) % 4
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(clips), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_hours() -> None:
    assert [hours(s) for s in (0, 61.9, 12345)] == ["0:00:00", "0:01:01", "3:25:45"]
