"""Training and testing do not wait for the device, and the check of that finds what does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import DEMO
from no_sync import WaitsForDeviceError, no_sync, on_fake_gpu
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.data.dataset import VideoViews
from video_iresnet.data.functional import Place
from video_iresnet.engine.evaluate import _all_views, _outputs, _split, forward, temporal_checks
from video_iresnet.engine.precision import Precision

WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 2,
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: x.clone().__setitem__(x > 0, 1.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x + 1),
    "unique": lambda x: x.unique(),
    "any": lambda x: bool((x > 0).any()),
}
FINE: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda x: x.sum(),
    "index": lambda x: x[x.long()],
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "half": lambda x: x.half(),
    "same device": lambda x: x.to(x.device),
    "shape": lambda x: x.shape[0],
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", WAITING)
def test_operations_that_wait_are_found(name: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        x = torch.ones(3)
        WAITING[name](x)
        with pytest.raises(WaitsForDeviceError), no_sync():
            WAITING[name](x)
        WAITING[name](x)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", FINE)
def test_operations_that_do_not_wait_are_fine(name: str, inference: bool) -> None:
    with torch.inference_mode(inference), no_sync():
        FINE[name](torch.ones(3))


@pytest.mark.parametrize("inference", [False, True])
def test_copies_between_host_and_device(inference: bool) -> None:
    with FakeTensorMode(), torch.inference_mode(inference):
        host, device = torch.ones(3), torch.ones(3, device="cuda")
        waiting: list[Callable[[], Any]] = [
            device.cpu,
            lambda: device.to("cpu", non_blocking=True),
            lambda: host.copy_(device),
            lambda: host.to("cuda"),
            host.cuda,
            lambda: device.copy_(host),
            lambda: device.sum().item(),
            lambda: device[device > 0],
        ]
        for operation in waiting:
            with pytest.raises(WaitsForDeviceError), no_sync("cuda"):
                operation()
        with no_sync("cuda"):
            assert host.to("cuda", non_blocking=True).device.type == "cuda"
            device.copy_(host, non_blocking=True)
            host.clone().copy_(host)
            device.half()


def small_config() -> Any:
    text = """RESNET.WIDTH_PER_GROUP 4 DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32
    DATA.TRAIN_JITTER_SCALES [32,40]"""
    return load_config(DEMO, text.split())


def group_of_videos() -> list[VideoViews]:
    """Two videos of two clips and three crops, and one that cannot be read between them."""
    clips, crops = [[0, 1, 2, 3], [2, 3, 4, 5]], [Place(0, 0), Place(0, 2), Place(0, 4)]
    first, last = (
        VideoViews(record, torch.randint(256, (6, 32, 36, 3), dtype=torch.uint8), clips, crops, "")
        for record in (0, 2)
    )
    return [first, VideoViews(1, torch.empty(0), [], [], "broken"), last]


def test_testing_waits_only_for_its_results() -> None:
    device = torch.device("cpu")
    network = build.build_network(small_config(), device).eval()
    task = build.build_task(small_config(), device)
    group, orders = group_of_videos(), {"": forward, **temporal_checks(0)}
    with torch.inference_mode():
        with no_sync():
            views = _all_views(group, orders, 32, device)
            outputs = _outputs(network, views, 5, task, Precision("cpu"))
        assert outputs["probabilities"].shape == (2 * 4 * 6, 8)
        with pytest.raises(WaitsForDeviceError), no_sync():
            _split(group, list(orders), outputs)


@pytest.mark.parametrize("half", [None, torch.bfloat16, torch.float16])
def test_testing_runs_on_a_fake_gpu(half: torch.dtype | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are copied there without waiting, and all that follows is there, in channels-last layout."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *more, **named: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    device = torch.device("cuda")
    found: list[tuple[str, torch.dtype, bool]] = []

    def note(module: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        layout = output.is_contiguous(memory_format=torch.channels_last_3d)
        found.append((output.device.type, output.dtype, layout))

    network = build.build_network(small_config(), torch.device("cpu")).eval()
    with FakeTensorMode() as mode:
        on_fake_gpu(network, mode)
        task = build.build_task(small_config(), device)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.register_forward_hook(note)
        group, orders = group_of_videos(), {"": forward, **temporal_checks(0)}
        with torch.inference_mode(), no_sync("cuda"):
            views = _all_views(group, orders, 32, device)
            outputs = _outputs(network, views, 5, task, Precision("cuda", half))
    assert {name: (values.device.type, values.dtype) for name, values in outputs.items()} == {
        "probabilities": ("cuda", torch.float32),
        "normalizer": ("cuda", torch.float32),
    }
    assert {some[:2] for some in found} == {("cuda", half or torch.float32)}
    if half is None:  # without a GPU, torch plans to compute half precision without cuDNN, in another layout
        assert all(layout for *_, layout in found)
