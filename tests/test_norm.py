"""Batch normalization over parts of a batch, and over the batches of several processes, against computations
by hand in one process.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO, RunNet, run_together
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.engine.checkpoint import load_checkpoint
from video_iresnet.models import ResNet, create_model, set_norm
from video_iresnet.models.norm import SubBatchNorm, SyncBatchNorm
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError


class NoWaiting(TorchDispatchMode):
    """Fails where numbers of tensors reach Python, which waits for the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func.name() not in {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}, func
        return func(*args, **(kwargs or {}))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def normalized_by_hand(parts: tuple[Tensor, ...], weight: Tensor, bias: Tensor) -> Tensor:
    """Each part normalized by its own mean and biased variance, from their definitions in float64."""
    outputs = []
    for part in parts:
        values = part.transpose(0, 1).flatten(1)
        mean = values.mean(1)
        variance = ((values - mean[:, None]) ** 2).mean(1)
        shape = (1, -1, *[1] * (part.dim() - 2))
        scale = (weight / (variance + 1e-5).sqrt()).view(shape)
        outputs.append((part - mean.view(shape)) * scale + bias.view(shape))
    return torch.cat(outputs)


@pytest.mark.parametrize("shape", [(6, 5, 7, 4), (6, 5, 3, 4, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_parts_are_normalized_by_themselves(shape: tuple[int, ...], momentum: float | None) -> None:
    """Outputs, gradients and, after two steps, the running statistics, which without a momentum are the mean
    over all steps.
    """
    norm = SubBatchNorm(5, splits=3, momentum=momentum)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    means, variances = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    for step in range(2):
        batch = noise(*shape, seed=step).requires_grad_()
        with NoWaiting():
            output = norm(batch)
        double = batch.detach().double().requires_grad_()
        weight, bias = (p.detach().double().requires_grad_() for p in (norm.weight, norm.bias))
        parts = double[:2], double[2:4], double[4:]
        expected = normalized_by_hand(parts, weight, bias)
        torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
        slopes = noise(*shape, seed=7)
        ours = torch.autograd.grad((output * slopes).sum(), [batch, norm.weight, norm.bias])
        theirs = torch.autograd.grad((expected * slopes).sum(), [double, weight, bias])
        torch.testing.assert_close([g.double() for g in ours], list(theirs), rtol=1e-4, atol=1e-4)
        per_part = [part.detach().transpose(0, 1).flatten(1) for part in parts]
        rate = 0.1 if momentum else 1 / (step + 1)
        means += rate * (sum(part.mean(1) for part in per_part) / 3 - means)
        variances += rate * (sum(part.var(1) for part in per_part) / 3 - variances)
    torch.testing.assert_close(norm.running_mean.double(), means, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), variances, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 2
    plain = nn.BatchNorm3d(5) if len(shape) == 5 else nn.BatchNorm2d(5)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm.eval()(batch), plain.eval()(batch))


def test_one_part_is_ordinary_and_others_must_fit() -> None:
    ordinary, parts = nn.BatchNorm3d(5), SubBatchNorm(5)
    batch = noise(6, 5, 3, 4, 2)
    assert torch.equal(ordinary(batch), parts(batch))
    assert str(ordinary.state_dict()) == str(parts.state_dict())
    with pytest.raises(ValueError, match=r"a batch of 6 clips does not divide into BN.NUM_SPLITS 4 parts"):
        SubBatchNorm(5, splits=4)(batch)
    assert "splits=4" in str(SubBatchNorm(5, splits=4))


def test_without_statistics_or_parameters() -> None:
    norm = SubBatchNorm(5, splits=2, affine=False, track_running_stats=False)
    batch = noise(4, 5, 3, 4, 2).double()
    one, zero = torch.ones(5), torch.zeros(5)
    expected = normalized_by_hand((batch[:2], batch[2:]), one, zero)
    torch.testing.assert_close(norm(batch), expected)
    torch.testing.assert_close(norm.eval()(batch), normalized_by_hand((batch,), one, zero))


def small_network() -> ResNet:
    torch.manual_seed(0)
    return create_model("iresnet", 18, width=4, num_classes=3, checkpoint_activations=False)


def norms(network: nn.Module) -> list[Any]:
    return [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def test_normalizations_are_exchanged_and_tensors_stay() -> None:
    """The optimizer's parameters are still the network's; BatchNorm3d comes back; evaluation is the same."""
    network = small_network()
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    clips = noise(4, 3, 4, 32, 32)
    expected = network.eval()(clips)
    network.bn1.eps = 1e-3
    for kind, splits, layer in [
        ("sub_batchnorm", 2, SubBatchNorm), ("sub_batchnorm", 4, SubBatchNorm),
        ("sync_batchnorm", 1, SyncBatchNorm), ("batchnorm", 1, nn.BatchNorm3d),
    ]:  # fmt: skip
        set_norm(network, kind, splits=splits, group="the group")
        assert {type(norm) for norm in norms(network)} == {layer}
        assert {getattr(norm, "splits", 1) for norm in norms(network)} == {splits}
        assert {getattr(norm, "process_group", "the group") for norm in norms(network)} == {"the group"}
        now = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        assert now.keys() == tensors.keys() == network.state_dict().keys()
        assert all(now[name] is tensor for name, tensor in tensors.items())
        assert network.bn1.eps == 1e-3
        assert not network.bn1.training
        before = norms(network)
        set_norm(network, kind, splits=splits, group="the group")
        assert all(ours is theirs for ours, theirs in zip(norms(network), before, strict=True))
    network.bn1.eps = 1e-5
    assert torch.equal(network(clips), expected)
    set_norm(network, "sub_batchnorm", splits=2)
    before = network.layer4[1].bn2.weight.clone()
    network.train()(clips).sum().backward()
    optimizer.step()
    assert not torch.equal(network.layer4[1].bn2.weight, before)
    with pytest.raises(ValueError, match="unknown normalization 'groupnorm'; expected one of batchnorm, sub"):
        set_norm(network, "groupnorm")


def test_images_get_their_own_class_back() -> None:
    network = create_model("resnet", 18, dims=2, width=4, num_classes=3)
    set_norm(network, "sub_batchnorm", splits=2)
    assert network(noise(4, 3, 32, 32)).shape == (4, 3)
    set_norm(network, "batchnorm")
    assert {type(norm) for norm in norms(network)} == {nn.BatchNorm2d}


def test_a_second_pass_counts_no_batch_twice() -> None:
    """Parts in blocks whose activations are computed again for the backward pass."""
    plain, checkpointed = small_network(), small_network()
    for stage in checkpointed.stages:
        stage.checkpoint_activations = True
    for network in (plain, checkpointed):
        set_norm(network, "sub_batchnorm", splits=2)
        network.train()(noise(4, 3, 4, 32, 32)).square().sum().backward()
    assert {int(norm.num_batches_tracked) for norm in norms(checkpointed)} == {1}
    torch.testing.assert_close(checkpointed.state_dict(), plain.state_dict())
    for ours, theirs in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("BN.NORM_TYPE sub_batchnorm BN.NUM_SPLITS 3", "BN.NUM_SPLITS 3 does not divide the 16 clips"),
        ("BN.NORM_TYPE sync_batchnorm BN.NUM_SYNC_DEVICES 2", "BN.NUM_SYNC_DEVICES 2 does not divide the 1 "),
        ("BN.NORM_TYPE apex", "BN.NORM_TYPE is apex; expected one of batchnorm, sub_batchnorm, sync_batch"),
        ("BN.NUM_SPLITS 0", "BN.NUM_SPLITS is 0; expected a number in"),
        ("BN.NUM_SYNC_DEVICES -1", "BN.NUM_SYNC_DEVICES is -1; expected a number in"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(overrides: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build.build_step(load_config(DEMO, overrides.split()), small_network(), Processes(use_gpu=False))


def test_settings_reach_the_network() -> None:
    cfg = load_config(DEMO, ["BN.NORM_TYPE", "sub_batchnorm", "BN.NUM_SPLITS", "4"])
    step = build.build_step(cfg, small_network(), Processes(use_gpu=False))
    assert {(type(norm), norm.splits) for norm in norms(step.network)} == {(SubBatchNorm, 4)}


# A process of four. The process of rank r has the clips of `rows[r]`; what it computes goes into a file.
PROCESS = """
import os, sys
import torch
sys.path.insert(0, "tests")
from test_norm import DEMO, NoWaiting, build, load_config, noise, Processes, ROWS, SHAPE, shared_network
processes = Processes(use_gpu=False)
results = {}
for devices in (2, 0):
    network = shared_network()
    overrides = f"BN.NORM_TYPE sync_batchnorm BN.NUM_SYNC_DEVICES {devices} TRAIN.BATCH_SIZE 20"
    build.set_batch_norm(load_config(DEMO, overrides.split()), [network], processes, epoch=0)
    for step in range(2):
        clips = noise(*SHAPE, seed=step)[slice(*ROWS[processes.rank])].requires_grad_()
        with NoWaiting():
            outputs = network(clips)
        slopes = noise(*SHAPE, seed=7)[slice(*ROWS[processes.rank])]
        gradients = torch.autograd.grad((outputs * slopes).sum(), [clips, *network.parameters()])
    half = network(clips.bfloat16())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    unsynchronized = network.eval()(clips)
    results[devices] = outputs, gradients, state, half, unsynchronized
torch.save(results, f"{sys.argv[1]}/{processes.rank}.pt")
"""
SHAPE = (10, 5, 3, 4, 2)
ROWS = [(0, 1), (1, 3), (3, 6), (6, 10)]


def shared_network() -> nn.Sequential:
    """Two normalizations with something between, so that gradients pass through both."""
    network = nn.Sequential(nn.BatchNorm3d(5), nn.Tanh(), nn.BatchNorm3d(5))
    with torch.no_grad():
        for norm in (network[0], network[2]):
            norm.weight.copy_(torch.linspace(0.5, 2, 5))
            norm.bias.copy_(torch.linspace(-1, 1, 5))
    return network


@pytest.mark.slow
def test_processes_normalize_together(tmp_path: Path) -> None:
    """In groups of two of four processes, and all four, with batches of different sizes: outputs, gradients
    and running statistics are those of one process with the batch of its group.
    """
    run_together(4, "-c", PROCESS, str(tmp_path))
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for devices, groups in {2: [(0, 1), (2, 3)], 0: [(0, 1, 2, 3)]}.items():
        for ranks in groups:
            network = shared_network()
            rows = slice(ROWS[ranks[0]][0], ROWS[ranks[-1]][1])
            for step in range(2):
                clips = noise(*SHAPE, seed=step)[rows].requires_grad_()
                outputs = network(clips)
                loss = (outputs * noise(*SHAPE, seed=7)[rows]).sum()
                gradients = torch.autograd.grad(loss, [clips, *network.parameters()])
            half = network(clips.bfloat16())
            everywhere = [results[rank][devices] for rank in ranks]
            torch.testing.assert_close(torch.cat([of[0] for of in everywhere]), outputs)
            torch.testing.assert_close(
                torch.cat([of[1][0] for of in everywhere]), gradients[0], rtol=1e-4, atol=1e-5
            )
            for number in range(1, len(gradients)):
                whole = sum(of[1][number] for of in everywhere)
                torch.testing.assert_close(whole, gradients[number], rtol=1e-4, atol=1e-4)
            assert everywhere[0][3].dtype == torch.bfloat16
            torch.testing.assert_close(torch.cat([of[3] for of in everywhere]), half, rtol=0.02, atol=0.02)
            for of in everywhere:
                torch.testing.assert_close(of[2], dict(network.state_dict()), rtol=1e-4, atol=1e-4)
            alone = copy.deepcopy(network).eval()(clips)
            torch.testing.assert_close(torch.cat([of[4] for of in everywhere]), alone, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="starts its processes on the CPU, and there is a GPU")
def test_two_processes_train_as_one(small: list[str], tmp_path: Path, run_net: RunNet) -> None:
    """With their statistics together, the mean of two processes' gradients is the gradient of the batch."""
    run = [*small, "SOLVER.MAX_EPOCH", "1", "SOLVER.WARMUP_EPOCHS", "0", "TEST.ENABLE", "False"]
    assert run_net(*run, "OUTPUT_DIR", str(tmp_path / "one")) == 0
    together = ["BN.NORM_TYPE", "sync_batchnorm", "OUTPUT_DIR", str(tmp_path / "two")]
    run_together(2, "tools/run_net.py", "--cfg", DEMO, *run, *together)
    one, two = (
        load_checkpoint(tmp_path / name / "checkpoints/checkpoint_epoch_00001.pyth")["model_state"]
        for name in ("one", "two")
    )
    assert os.environ.get("WORLD_SIZE") is None
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)
