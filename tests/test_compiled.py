"""A network compiled for testing: the same logits, one program for all batches."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from conftest import DEMO
from torch import Tensor, nn

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.engine import compiled as compiled_module
from video_iresnet.engine.compiled import FullBatches, compiled
from video_iresnet.engine.precision import Precision, keep_in_float32, supports
from video_iresnet.models import create_cifar_model, fold_batch_norm
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError

CPU = torch.device("cpu")
SIZE = (4, 3, 4, 32, 32)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


class Sizes(nn.Module):
    """Sums of clips; remembers the sizes of batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Size, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x.shape, x.is_contiguous(memory_format=torch.channels_last_3d)))
        return x.flatten(1).sum(1, keepdim=True)


def test_batches_are_full() -> None:
    network = Sizes()
    model = FullBatches(network, 5)
    clips = torch.randn(5, 2, 3, 4, 4).to(memory_format=torch.channels_last_3d)
    for n in (5, 3, 1):
        torch.testing.assert_close(model(clips[:n])[:, 0], clips[:n].sum((1, 2, 3, 4)))
    assert network.seen == [(clips.shape, True)] * 3


def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(network: nn.Module, **options: Any) -> nn.Module:
        def run(inputs: Tensor) -> Tensor:
            raise error

        module = nn.Module()
        module.forward = run
        return module

    monkeypatch.setattr(compiled_module.torch, "compile", broken)
    error: Exception = RuntimeError("no C++ compiler\nand more")
    with pytest.raises(
        InputError,
        match=r"^TEST.COMPILE is True, but torch.compile fails here \(no C\+\+ compiler\); set it to",
    ):
        compiled(nn.Identity(), SIZE, Precision("cpu"), CPU)
    error = torch.OutOfMemoryError("too much")
    with pytest.raises(torch.OutOfMemoryError):
        compiled(nn.Identity(), SIZE, Precision("cpu"), CPU)


def check_compiled(network: nn.Module, precision: Precision, tolerance: float) -> None:
    """For full and smaller batches, without another compilation."""
    with torch.inference_mode(), precision.autocast():
        clips = torch.randn(SIZE).to(memory_format=torch.channels_last_3d)
        expected = network.eval()(clips).float()
    model = compiled(network, SIZE, precision, CPU)
    with torch.inference_mode(), precision.autocast(), torch.compiler.set_stance("fail_on_recompile"):
        full = model(clips).float()
        assert (full - expected).abs().max() < tolerance * expected.abs().max()
        for n in (3, 1):
            assert torch.equal(model(clips[:n]).float(), full[:n])
        next(network.parameters()).add_(1)  # weights have become constants
        assert torch.equal(model(clips).float(), full)


@pytest.mark.slow
@needs_compiler
def test_logits_of_a_compiled_network() -> None:
    """One of few layers, because each kernel takes a second."""
    torch.manual_seed(0)
    network = create_cifar_model("iresnet", 20, width=4, num_classes=5, dims=3)
    network = network.to(memory_format=torch.channels_last_3d)
    check_compiled(fold_batch_norm(network), Precision("cpu"), 1e-5)


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(not supports(CPU, torch.bfloat16), reason="this CPU has no bfloat16 convolutions")
def test_logits_of_a_network_compiled_in_half_precision() -> None:
    """With a layer in float32."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(3, 4, 3),
        nn.ReLU(),
        nn.MaxPool3d(3, 2, 1),
        nn.Conv3d(4, 4, 1),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    network(torch.zeros(SIZE))
    keep_in_float32(network, ["3"])
    check_compiled(network, Precision("cpu", torch.bfloat16), 0.02)


def test_a_config_compiles_what_it_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def compiled_by(network: nn.Module, *more: Any) -> nn.Module:
        made.extend([network, *more])
        return Sizes()

    monkeypatch.setattr(build, "compiled", compiled_by)
    text = """RESNET.WIDTH_PER_GROUP 4 DATA.NUM_FRAMES 4 DATA.TEST_CROP_SIZE 32 DATA.TRAIN_CROP_SIZE 32
    DATA.TRAIN_JITTER_SCALES [32,40] TEST.BATCH_SIZE 3 TEST.FOLD_BN True TEST.COMPILE"""
    for compiles in (True, False):
        cfg = load_config(DEMO, [*text.split(), str(compiles)])
        trained = build.build_network(cfg, CPU)
        tested = build.build_tested(cfg, trained, Processes(use_gpu=False))
        assert isinstance(tested.network, Sizes) is compiles
        assert tested.arithmetic() == {"half": "None", "float32_layers": []}
        folded = made[0] if compiles else tested.network
        assert isinstance(folded.bn1, nn.Identity)
        assert isinstance(trained.bn1, nn.BatchNorm3d)
    assert made[1:] == [(3, 3, 4, 32, 32), Precision("cpu"), CPU]
