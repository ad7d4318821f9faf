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
from video_iresnet.models import create_model, fold_batch_norm
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


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("half", [None, torch.bfloat16])
def test_logits_of_a_compiled_network(half: torch.dtype | None) -> None:
    """Folded and with a layer in float32, for full and smaller batches, without another compilation."""
    if half and not supports(CPU, half):
        pytest.skip("this CPU has no bfloat16 convolutions")
    torch.manual_seed(0)
    network = create_model("iresnet", 18, width=4, num_classes=5).to(memory_format=torch.channels_last_3d)
    folded = fold_batch_norm(network)
    precision = Precision("cpu", half)
    with torch.inference_mode(), precision.autocast():
        clips = torch.randn(SIZE).to(memory_format=torch.channels_last_3d)
        if half:
            keep_in_float32(folded, ["layer2.1.conv1"])
        expected = folded(clips).float()
    model = compiled(folded, SIZE, precision, CPU)
    with torch.inference_mode(), precision.autocast(), torch.compiler.set_stance("fail_on_recompile"):
        full = model(clips).float()
        assert (full - expected).abs().max() < (0.02 if half else 1e-5) * expected.abs().max()
        for n in (3, 1):
            assert torch.equal(model(clips[:n]).float(), full[:n])


@pytest.mark.slow
@needs_compiler
def test_testing_with_everything_on_has_the_same_logits() -> None:
    text = """RESNET.WIDTH_PER_GROUP 4 DATA.NUM_FRAMES 4 DATA.TEST_CROP_SIZE 32 DATA.TRAIN_CROP_SIZE 32
    DATA.TRAIN_JITTER_SCALES [32,40] TEST.BATCH_SIZE 3 TEST.FOLD_BN True TEST.COMPILE True"""
    cfg = load_config(DEMO, text.split())
    network = build.build_network(cfg, CPU).eval()
    tested = build.build_tested(cfg, network, Processes(use_gpu=False))
    assert tested.float32_layers == []
    assert tested.precision == Precision("cpu")
    with torch.inference_mode():
        clips = torch.randn(2, *SIZE[1:]).to(memory_format=torch.channels_last_3d)
        assert (tested.network(clips) - network(clips)).abs().max() < 1e-5
