"""The training step and what is handed to it: accumulation, averages, limits, frozen stages, precision, bad
steps.
"""

from __future__ import annotations

import copy
import gc
import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO, ROOT, RunNet
from no_sync import no_sync
from test_run_net import assert_same_weights, last_weights, stats_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from video_iresnet import build
from video_iresnet.config import Config, load_config
from video_iresnet.data.dataset import Failure
from video_iresnet.data.loader import ClipBatch
from video_iresnet.data.mixing import plain_targets
from video_iresnet.engine import optim, schedule
from video_iresnet.engine.checkpoint import list_checkpoints, load_checkpoint
from video_iresnet.engine.step import Step
from video_iresnet.engine.tasks import SingleLabel
from video_iresnet.engine.train import readable
from video_iresnet.models import ResNet, create_model
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError
from video_iresnet.runtime.seeding import generator

CPU = torch.device("cpu")


def config(overrides: str = "") -> Config:
    """The demo config with a network of width 4 and 3 classes, without warm-up."""
    small = "RESNET.WIDTH_PER_GROUP 4 MODEL.NUM_CLASSES 3 SOLVER.WARMUP_EPOCHS 0 NUM_GPUS 0"
    return load_config(DEMO, [*small.split(), "DATA.CLASS_NAMES", "", *overrides.split()])


def make_step(overrides: str = "") -> Step:
    cfg = config(overrides)
    torch.manual_seed(0)
    return build.build_step(cfg, build.build_network(cfg, CPU), Processes(use_gpu=False))


def make_batch(size: int = 8, seed: int = 0) -> ClipBatch:
    source = torch.Generator().manual_seed(seed)
    clips = torch.randint(256, (size, 3, 4, 32, 32), generator=source, dtype=torch.uint8)
    return ClipBatch(clips.to(memory_format=torch.channels_last_3d), torch.arange(size) % 3, [])


def train(step: Step, num_steps: int = 2, size: int = 8) -> None:
    step.train()
    for done in range(num_steps):
        step(make_batch(size, done), done, 0.0)


def state_of(step: Step) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in step.network.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def test_a_step_never_waits_for_the_device() -> None:
    everything = """SOLVER.EMA_DECAY 0.9 SOLVER.CLIP_GRAD_L2NORM 1.0 SOLVER.SKIP_NONFINITE_STEPS 3
    TRAIN.ACCUMULATION 2 MIXUP.ENABLE True MODEL.FROZEN_STAGES 1 SOLVER.LAYER_DECAY 0.8"""
    for overrides in ("", everything, f"{everything} SOLVER.OPTIMIZING_METHOD adamw"):
        step = make_step(overrides)
        step.train()
        batches = [make_batch(8, seed) for seed in range(3)]
        with no_sync():
            outcomes = [step(batch, done, 0.1) for done, batch in enumerate(batches)]
        assert all(float(outcome.sums[-1]) == 8 for outcome in outcomes)
    with pytest.raises(AssertionError, match="item waits"), no_sync():
        outcomes[0].gradient_norm.item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and there is none")
@pytest.mark.parametrize("half", ["", "TRAIN.MIXED_PRECISION True"])
def test_a_step_never_waits_for_the_gpu(half: str) -> None:
    cfg = config(f"SOLVER.EMA_DECAY 0.9 SOLVER.CLIP_GRAD_L2NORM 1 SOLVER.SKIP_NONFINITE_STEPS 1 {half}")
    processes = Processes(use_gpu=True)
    step = build.build_step(cfg, build.build_network(cfg, processes.device), processes)
    step.train()
    batch = make_batch()
    batch = ClipBatch(batch.clips.pin_memory(), batch.labels.pin_memory(), [])
    for done in range(3):  # the first steps choose kernels
        step(batch, done, 0.1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outcomes = [step(batch, done, 0.1) for done in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not any(bool(outcome.is_bad) for outcome in outcomes)


def test_a_step_runs_on_a_fake_gpu() -> None:
    """Wrong devices show without a GPU: the copies, the forward pass and the loss. A backward pass needs
    CUDA's streams.
    """
    cfg = config("SOLVER.SKIP_NONFINITE_STEPS 1")
    with FakeTensorMode(allow_non_fake_inputs=True):
        device = torch.device("cuda")
        processes = Processes(use_gpu=False)
        processes.device = device
        with device:
            network = build.build_model(cfg)  # moving a fake network fails
        step = build.build_step(cfg, network, processes)
        step.train()
        batch = make_batch()
        labels, clips = step._copy(batch.labels), step.task.normalize(step._copy(batch.clips))
        assert clips.device.type == labels.device.type == "cuda"
        assert clips.is_contiguous(memory_format=torch.channels_last_3d)
        inputs, targets = step.task.targets(clips, labels, generator(0, 0))
        loss, sums = step._forward(inputs, targets, labels)
        assert loss.device.type == sums.device.type == "cuda"
        with pytest.raises(RuntimeError, match="device"):
            step.task.loss(torch.zeros(8, 3, device="cuda"), torch.zeros(8, dtype=torch.int64, device="cpu"))


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_accumulation_equals_the_whole_batch_where_normalization_is_frozen(method: str) -> None:
    same = f"SOLVER.OPTIMIZING_METHOD {method} SOLVER.BASE_LR 0.01 MODEL.FROZEN_BN True"
    one, two = make_step(same), make_step(f"{same} TRAIN.ACCUMULATION 2")
    for step in (one, two):
        train(step, 3, size=16)
    ours, theirs = two.network.state_dict(), one.network.state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert not changed(dict(one.network.named_buffers()), dict(make_step(same).network.named_buffers()))
    outcomes = [step(make_batch(16, 9), 9, 0.0) for step in (one, two)]
    torch.testing.assert_close(outcomes[0].sums, outcomes[1].sums, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outcomes[0].gradient_norm, outcomes[1].gradient_norm, rtol=1e-3, atol=1e-4)


def test_accumulation_normalizes_each_part_alone() -> None:
    step = make_step("TRAIN.ACCUMULATION 2")
    train(step, 1)
    assert int(step.network.bn1.num_batches_tracked) == 2


def test_a_moving_average_is_torchs() -> None:
    step = make_step("SOLVER.EMA_DECAY 0.7")
    torchs = AveragedModel(step.network, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    step.train()
    for done in range(4):
        step(make_batch(seed=done), done, 0.0)
        torchs.update_parameters(step.network)
    assert step.average
    expected = torchs.module.state_dict()
    for name, tensor in step.average.network.state_dict().items():
        if "num_batches" not in name:  # which torch averages too, rounding down
            assert torch.equal(tensor, expected[name]), name
    assert step.tested is step.average.network
    assert int(step.tested.bn1.num_batches_tracked) == 4
    assert changed(dict(step.tested.named_parameters()), dict(step.network.named_parameters()))
    assert not step.tested.training
    again = make_step("SOLVER.EMA_DECAY 0.7")
    again.load_state_dict(copy.deepcopy(step.state_dict()), "x")
    assert not changed(dict(step.tested.state_dict()), dict(again.tested.state_dict()))
    for both in (step, again):
        both.train()
        both(make_batch(seed=5), 5, 0.0)
    assert not changed(dict(step.tested.state_dict()), dict(again.tested.state_dict()))


def test_rates_decay_from_the_classifier_to_the_stem() -> None:
    """One step of SGD without momentum moves each weight by its own rate times the gradient."""
    plain = "SOLVER.MOMENTUM 0 SOLVER.NESTEROV False SOLVER.WEIGHT_DECAY 0 SOLVER.BASE_LR 0.1"
    one, decayed = make_step(plain), make_step(f"{plain} SOLVER.LAYER_DECAY 0.5")
    before = state_of(one)
    for step in (one, decayed):
        train(step, 1)
    factors = {
        "conv1": 1 / 32,
        "bn1": 1 / 32,
        "layer1": 1 / 16,
        "layer2": 1 / 8,
        "layer3": 1 / 4,
        "layer4": 1 / 2,
    }
    for name, _ in one.network.named_parameters():
        full = one.network.state_dict()[name] - before[name]
        ours = decayed.network.state_dict()[name] - before[name]
        torch.testing.assert_close(ours, full * factors.get(name.split(".")[0], 1.0), rtol=1e-2, atol=1e-6)
    assert decayed.learning_rate == pytest.approx(0.1)


def test_parameters_have_the_weight_decay_of_their_kind() -> None:
    model = create_model("iresnet", 18, width=4, num_classes=3)
    groups = optim.parameter_groups(
        model, weight_decay=0.1, bn_weight_decay=0.2, decay_1d=False, layer_decay=0.5
    )
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        expected = 0.2 if id(parameter) in norms else 0.0 if name == "fc.bias" else 0.1
        assert decays[id(parameter)] == expected, name
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_adamw_is_torchs() -> None:
    keys = (
        "SOLVER.OPTIMIZING_METHOD adamw SOLVER.BETAS [0.8,0.9] SOLVER.BASE_LR 0.01 SOLVER.WEIGHT_DECAY 0.05"
    )
    step = make_step(keys)
    network = copy.deepcopy(step.network).train()
    norms = {id(p) for m in network.modules() if isinstance(m, nn.BatchNorm3d) for p in m.parameters()}
    torchs = torch.optim.AdamW(
        [
            {"params": [p for p in network.parameters() if id(p) not in norms], "weight_decay": 0.05},
            {"params": [p for p in network.parameters() if id(p) in norms], "weight_decay": 0.0},
        ],
        lr=0.01,
        betas=(0.8, 0.9),
        foreach=False,
    )
    train(step, 2)
    for done in range(2):
        batch = make_batch(seed=done)
        torchs.zero_grad()
        loss = nn.functional.cross_entropy(network(step.task.normalize(batch.clips)), batch.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        torchs.step()
    torch.testing.assert_close(
        dict(step.network.state_dict()), dict(network.state_dict()), rtol=1e-3, atol=1e-5
    )


def test_frozen_stages_stand_still() -> None:
    step = make_step("MODEL.FROZEN_STAGES 3")  # the stem and two stages
    before = state_of(step)
    train(step)
    parts = {name.split(".")[0] for name in changed(before, step.network.state_dict())}
    assert parts == {"layer3", "layer4", "fc"}
    assert not any(p.requires_grad for p in step.network.layer2.parameters())
    assert {id(p) for group in step.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in step.network.parameters() if p.requires_grad
    }


@pytest.mark.parametrize("key", ["SOLVER.CLIP_GRAD_L2NORM", "SOLVER.CLIP_GRAD_VAL"])
def test_gradients_are_limited(key: str) -> None:
    """Against the formulas: g * limit / norm of all, or each element in [-limit, limit]."""
    limit = 0.05
    free, limited = make_step(), make_step(f"{key} {limit}")
    for step in (free, limited):
        train(step, 1)
    gradients = {name: p.grad for name, p in free.network.named_parameters()}
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients.values() if g is not None))
    assert norm > limit
    for name, parameter in limited.network.named_parameters():
        gradient = gradients[name]
        assert gradient is not None
        expected = gradient * (limit / norm) if key.endswith("NORM") else gradient.clamp(-limit, limit)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-7)
    assert float(free(make_batch(), 1, 0.0).gradient_norm) > 0


class Poisoned(SingleLabel):
    """Cross entropy that is NaN in the steps of the set."""

    steps: set[int]
    calls: int

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        object.__setattr__(self, "calls", self.calls + 1)
        loss = super().loss(outputs, targets)
        return loss * float("nan") if self.calls - 1 in self.steps else loss


def poison(step: Step, *steps: int) -> None:
    assert isinstance(step.task, SingleLabel)
    task = Poisoned(step.task.normalize, step.task.targets)
    object.__setattr__(task, "steps", set(steps))
    object.__setattr__(task, "calls", 0)
    step.task = task


@pytest.mark.parametrize("method", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing(method: str) -> None:
    step = make_step(f"SOLVER.OPTIMIZING_METHOD {method} SOLVER.SKIP_NONFINITE_STEPS 1")
    poison(step, 0, 2)
    step.train()
    # The first step too, before the optimizer has a state.
    initial = state_of(step)
    outcome = step(make_batch(seed=7), 0, 0.0)
    assert bool(outcome.is_bad)
    assert not outcome.sums.any()
    assert not changed(initial, step.network.state_dict())
    assert not bool(step(make_batch(seed=8), 1, 0.0).is_bad)
    before, momenta = state_of(step), copy.deepcopy(step.optimizer.state_dict()["state"])
    assert bool(step(make_batch(seed=9), 2, 0.0).is_bad)
    assert not changed(before, step.network.state_dict())
    after = step.optimizer.state_dict()["state"]
    assert all(torch.equal(momenta[i][name], after[i][name]) for i in momenta for name in momenta[i])
    assert not bool(step(make_batch(seed=10), 3, 0.0).is_bad)
    # As a run without those two steps.
    other = make_step(f"SOLVER.OPTIMIZING_METHOD {method}")
    other.train()
    other(make_batch(seed=8), 1, 0.0)
    other(make_batch(seed=10), 3, 0.0)
    assert not changed(state_of(step), other.network.state_dict())


def test_statistics_survive_clips_that_are_not_finite() -> None:
    """A forward pass with NaN leaves NaN in the running statistics, unless they are restored."""
    for tolerated, survive in ((0, False), (1, True)):
        step = make_step(f"SOLVER.SKIP_NONFINITE_STEPS {tolerated}")
        step.task = SingleLabel(lambda clips: clips.float() * float("nan"), plain_targets)
        train(step, 1)
        assert bool(step.network.bn1.running_mean.isfinite().all()) == survive
        assert all(bool(p.isfinite().all()) for p in step.network.parameters())


def test_float16_scales_its_gradients() -> None:
    """A step whose scaled gradients overflow is no bad step: it lowers the scale. The scale is saved."""
    keys = "TRAIN.MIXED_PRECISION True TRAIN.HALF_DTYPE float16"
    step = make_step(keys)
    step._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = state_of(step)
    step.train()
    outcome = step(make_batch(), 0, 0.0)
    assert not bool(outcome.is_bad)
    assert not any(
        name in changed(before, step.network.state_dict()) for name, _ in step.network.named_parameters()
    )
    assert step._scaler.get_scale() == 2.0**39
    again = make_step(keys)
    again.load_state_dict(copy.deepcopy(step.state_dict()), "x")
    assert again._scaler.get_scale() == 2.0**39
    assert "scaler_state" not in make_step().state_dict()


def test_mixed_precision_computes_in_half_and_keeps_float32_weights() -> None:
    step = make_step("TRAIN.MIXED_PRECISION True TRAIN.HALF_DTYPE bfloat16")
    seen: list[torch.dtype] = []
    step.network.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    train(step, 1)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in step.network.parameters()} == {torch.float32}


def test_precise_statistics_are_those_of_the_batches() -> None:
    """Means and variances over all positions of all batches, by hand, in the stem and in the last stage."""
    step = make_step("SOLVER.EMA_DECAY 0.5")
    train(step, 2)
    batches = [make_batch(8, seed) for seed in range(20, 23)]
    kept: dict[str, list[Tensor]] = {}
    for name in ("conv1", "layer4.1.conv1"):
        step.network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.setdefault(name, []).append(output.detach())
        )
    weights = state_of(step)
    step.estimate_statistics(iter(batches), 3)
    for name, norm in (("conv1", "bn1"), ("layer4.1.conv1", "layer4.1.bn1")):
        values = torch.cat(kept[name]).double().transpose(0, 1).flatten(1)
        module = step.network.get_submodule(norm)
        torch.testing.assert_close(module.running_mean.double(), values.mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            module.running_var.double(), values.var(1, unbiased=False), rtol=1e-3, atol=1e-5
        )
        assert module.momentum == 0.1
    assert not any(
        name in changed(weights, step.network.state_dict()) for name, _ in step.network.named_parameters()
    )
    assert not torch.equal(step.tested.bn1.running_mean, step.network.bn1.running_mean)
    frozen = make_step("MODEL.FROZEN_BN True")
    before = state_of(frozen)
    frozen.estimate_statistics(iter(batches), 3)
    assert not changed(before, frozen.network.state_dict())


def test_a_batch_without_clips_is_an_error_of_all_processes() -> None:
    told: list[Exception | None] = []

    class Others(Processes):
        def raise_first(self, error: Exception | None) -> None:
            told.append(error)
            super().raise_first(error)

    empty = ClipBatch(torch.empty(0), torch.empty(0), [Failure(3, "cut")])
    batches = readable(iter([make_batch(), empty]), Others(use_gpu=False))
    assert len(next(batches).clips) == 8
    with pytest.raises(InputError, match=r"no clip for step 2: all videos tried cannot be read, .* cut"):
        next(batches)
    assert told[0] is None
    assert isinstance(told[1], InputError)


def test_rates_scale_with_the_batch() -> None:
    keys = "TRAIN.BATCH_SIZE 64 SOLVER.REFERENCE_BATCH_SIZE 16 SOLVER.BASE_LR 0.1 SOLVER.COSINE_END_LR 0.01"
    rate = build.build_schedule(config(f"{keys} SOLVER.WARMUP_EPOCHS 1 SOLVER.WARMUP_START_LR 0.001"))
    assert rate(0) == pytest.approx(0.004)
    assert rate(1.0) == pytest.approx(0.04)
    assert build.build_schedule(config("SOLVER.BASE_LR 0.1"))(0.0) == pytest.approx(0.1)


def test_the_log_tells_of_scaled_rates_accumulation_and_waiting(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = "SOLVER.REFERENCE_BATCH_SIZE 4 TRAIN.ACCUMULATION 2 SOLVER.MAX_EPOCH 1 SOLVER.WARMUP_EPOCHS 0"
    monkeypatch.setattr("video_iresnet.engine.verdict.BOUND", 0.0)
    assert run_net(*small, *keys.split(), "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False") == 0
    log = (tmp_path / "stdout.log").read_text()
    assert "2 parts of 4 clips make a step of a process; batch normalization sees 4 clips at a time" in log
    assert "learning rates times 2, from a batch of 4 to 8 clips: 0.06 at the peak" in log
    assert "% of the time is spent waiting for data: " in log
    assert "transcoding (data_prep/transcode.py)" in log
    assert build.step_texts(config(), 1) == []


def test_the_cosine_may_begin_after_the_warm_up() -> None:
    """PySlowFast's values for base 0.1, 196 epochs, 34 of warm-up from 0.01 (slowfast/utils/lr_policy.py)."""
    keys = "SOLVER.BASE_LR 0.1 SOLVER.MAX_EPOCH 196 SOLVER.WARMUP_EPOCHS 34 SOLVER.WARMUP_START_LR 0.01"
    rate = build.build_schedule(config(f"{keys} SOLVER.COSINE_AFTER_WARMUP True"))
    for epoch, expected in {0: 0.01, 17: 0.055, 34: 0.1, 98: 0.066187}.items():
        assert rate(epoch / 196) == pytest.approx(expected, abs=1e-6)
    assert schedule.later(lambda progress: progress, 0.5)(0.25) == 0


class Greedy(nn.Module):
    """A network that has memory for three clips."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, clips: Tensor) -> Any:
        if len(clips) > 3:
            raise torch.OutOfMemoryError("no memory")
        return self.network(clips)


def test_a_lack_of_memory_names_what_fits() -> None:
    step = make_step()
    greedy = Greedy(step.network)
    step.network = step._model = greedy  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        step(make_batch(16), 0, 0.0)
    assert step.advise_on_memory(make_batch(16)) == (
        "cpu has not enough memory for 16 clips of 4x32x32 at a time, but for 2: set TRAIN.ACCUMULATION 8, a "
        "smaller TRAIN.BATCH_SIZE, or MODEL.ACT_CHECKPOINT True"
    )


def test_a_run_without_enough_memory_ends_in_one_line(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forward = ResNet.forward

    def limited(self: ResNet, x: Tensor) -> Tensor:
        if self.training and len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return forward(self, x)

    monkeypatch.setattr(ResNet, "forward", limited)
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: cpu has not enough memory for 8 clips of 4x32x32 at a time, but for 2: set "
        "TRAIN.ACCUMULATION 4, a smaller TRAIN.BATCH_SIZE, or MODEL.ACT_CHECKPOINT True\n"
    )
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "TRAIN.ACCUMULATION", "4") == 0


def poisoned_loss(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> None:
    """Make the loss of some steps of runs NaN, counted from 0."""
    calls = iter(range(10**6))
    whole = SingleLabel.loss

    def loss(self: SingleLabel, outputs: Tensor, targets: Tensor) -> Tensor:
        return whole(self, outputs, targets) * (float("nan") if next(calls) in bad else 1.0)

    monkeypatch.setattr(SingleLabel, "loss", loss)


def test_too_many_bad_steps_end_a_run_and_name_their_videos(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poisoned_loss(monkeypatch, {4})
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "not finite in 1 step(s), the last in epoch 2, step 2 (SOLVER.SKIP_NONFINITE_STEPS is 0)" in error
    assert error.count("\n") == 1
    lines = (tmp_path / "nonfinite_steps.csv").read_text().splitlines()
    assert len(lines) == 8
    assert all(line.startswith("2,2,") and Path(line[4:]).exists() for line in lines)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == [
        "checkpoint_epoch_00001.pyth"
    ]
    assert all(bool(tensor.isfinite().all()) for tensor in last_weights(tmp_path).values())


def test_tolerated_bad_steps_are_counted_over_restarts(
    small: list[str],
    tmp_path: Path,
    run_net: RunNet,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = [*small, "SOLVER.SKIP_NONFINITE_STEPS", "1", "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False"]
    poisoned_loss(monkeypatch, {1})
    assert run_net(*run) == 0
    assert (
        "the loss or the gradient of epoch 1, step 2 was not finite, so it changed no weights"
        in capsys.readouterr().out
    )
    assert [line["iter"] for line in stats_of(tmp_path, "train_iter_")] == ["1/3", "3/3", "1/3", "2/3", "3/3"]
    assert load_checkpoint(list_checkpoints(tmp_path / "checkpoints")[-1])["position"]["skipped"] == 1
    poisoned_loss(monkeypatch, {0})
    assert run_net(*run, "SOLVER.MAX_EPOCH", "3") == 1
    assert "not finite in 2 step(s)" in capsys.readouterr().err


RECIPES = {
    "sgd": "",
    "adamw, average": "SOLVER.OPTIMIZING_METHOD adamw SOLVER.BASE_LR 0.003 SOLVER.WARMUP_START_LR 0.001 "
    "SOLVER.EMA_DECAY 0.9 SOLVER.COSINE_AFTER_WARMUP True",
    "accumulation, freezing, decay": "TRAIN.ACCUMULATION 2 MODEL.FROZEN_STAGES 1 SOLVER.LAYER_DECAY 0.7 "
    "SOLVER.CLIP_GRAD_L2NORM 1.0 SOLVER.ZERO_WD_1D_PARAM True BN.USE_PRECISE_STATS True "
    "BN.NUM_BATCHES_PRECISE 2 TRAIN.EVAL_PERIOD 1",
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_run_stopped_inside_an_epoch_goes_on_bit_by_bit(
    recipe: str, small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ["TEST.NUM_ENSEMBLE_VIEWS", "1"]
    run = [*small, *recipe.split(), *quick, "OUTPUT_DIR"]
    assert run_net(*run, str(tmp_path / "whole")) == 0
    call = Step.__call__

    def stopping(self: Step, batch: ClipBatch, done: int, progress: float) -> Any:
        if done in (1, 4):
            signal.raise_signal(signal.SIGTERM)
        return call(self, batch, done, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Step, "__call__", stopping)
        assert run_net(*run, str(tmp_path / "parts")) == 128 + signal.SIGTERM
    while run_net(*run, str(tmp_path / "parts")):
        pass
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    ours, theirs = (
        load_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("parts", "whole")
    )
    for name, tensor in theirs.get("ema_state", {}).items():
        assert torch.equal(ours["ema_state"][name], tensor)
    assert ours["position"] == theirs["position"]
    assert (tmp_path / "parts/predictions.csv").read_bytes() == (
        tmp_path / "whole/predictions.csv"
    ).read_bytes()
    assert ("ema_state" in theirs) == ("EMA" in recipe)


def test_the_average_is_tested_unless_asked_otherwise(
    small: list[str], tmp_path: Path, run_net: RunNet
) -> None:
    run = [*small, "SOLVER.EMA_DECAY", "0.99", "OUTPUT_DIR", str(tmp_path)]
    assert run_net(*run) == 0
    averaged = (tmp_path / "predictions.csv").read_text()
    assert run_net(*run, "TEST.EMA", "False") == 0
    assert (tmp_path / "predictions.csv").read_text() != averaged
    assert run_net(*run) == 0
    assert (tmp_path / "predictions.csv").read_text() == averaged


def test_fine_tuning_freezes_and_averages(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    """The config for fine-tuning, from the weights of a run of the demo."""
    start, tuned = tmp_path / "start", tmp_path / "tuned"
    assert (
        run_net(*small, "OUTPUT_DIR", str(start), "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0") == 0
    )
    weights = str(list_checkpoints(start / "checkpoints")[-1])
    lists = "DATA.TRAIN_LIST train.csv DATA.VAL_LIST val.csv DATA.TEST_LIST test.csv DATA.TEST_SHORT_SIDE 0"
    run = [*small, *lists.split(), "DATA.PATH_PREFIX", "", "OUTPUT_DIR", str(tuned)]
    config = str(ROOT / "configs/ucf101/iR3D18_finetune.yaml")
    assert run_net(*run, "TRAIN.CHECKPOINT_FILE_PATH", weights, cfg=config) == 0
    before = load_checkpoint(weights)["model_state"]
    state = load_checkpoint(list_checkpoints(tuned / "checkpoints")[-1])
    for kept in (state["model_state"], state["ema_state"]):
        stages = {name.split(".")[0] for name in changed(before, kept)}
        assert stages == {"layer2", "layer3", "layer4", "fc"}
    assert changed(state["model_state"], state["ema_state"])
    rates = [group["lr"] for group in state["optimizer_state"]["param_groups"]]
    assert rates[0] / rates[-1] == pytest.approx(0.7**3)
    assert json.loads((tuned / "results.json").read_text())["num_videos"] == 11


def test_a_trace_of_chosen_steps_is_written(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    run = [*small, "TRAIN.PROFILE_STEPS", "[2,3]", "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False"]
    assert run_net(*run, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0") == 0
    trace = json.loads((tmp_path / "trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum("_fused_sgd_" in name for name in names) >= 2
    assert sum(name == "aten::batch_norm" for name in names) in range(2, 200)


def test_garbage_is_collected_between_steps_alone(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    call, enabled = Step.__call__, []

    def watched(self: Step, *arguments: Any) -> Any:
        enabled.append(gc.isenabled())
        return call(self, *arguments)

    monkeypatch.setattr(Step, "__call__", watched)
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False") == 0
    assert enabled == [False] * 6
    assert gc.isenabled()


def test_a_step_says_what_it_cost(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    assert run_net(*small, "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False", "ALLOW_TF32", "False") == 0
    for line in stats_of(tmp_path, "train_iter_"):
        dt, parts = line["dt"], [line[name] for name in ("dt_data", "dt_comm", "dt_net")]
        assert sum(parts) == pytest.approx(dt, abs=3e-5)  # type: ignore[call-overload]
        assert line["grad_norm"] > 0  # type: ignore[operator]
        assert line["clips_per_second"] == pytest.approx(8 / dt, rel=0.05)  # type: ignore[operator]


def test_a_compiled_network_trains_to_the_same_weights(
    small: list[str], tmp_path: Path, run_net: RunNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled without code generation, which takes minutes here."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile(self, backend=backend))
    run = [*small, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False", "OUTPUT_DIR"]
    assert run_net(*run, str(tmp_path / "eager")) == 0
    assert not graphs
    torch._dynamo.reset()  # what other tests have compiled
    assert run_net(*run, str(tmp_path / "compiled"), "TRAIN.COMPILE", "True") == 0
    assert 2 <= len(graphs) <= 4  # one for training, one or two for validation: no graph breaks
    assert_same_weights(tmp_path / "compiled", tmp_path / "eager")
