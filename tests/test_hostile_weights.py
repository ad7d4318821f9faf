"""Weights files that are damaged or hostile: one line each, and the network as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from video_iresnet.models import ResNet, WeightsError, create_model, load_weights, read_weights

KERNEL = "layer1.0.conv1.weight"
nan, inf = float("nan"), float("inf")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(create_model("iresnet", 18, width=4, num_classes=3).state_dict())


def refused(net: ResNet, path: Path, **options: object) -> str:
    """The message of the WeightsError, after which the network is as it was."""
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(net, path, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


ODD_KERNELS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "a scalar": (lambda kernel: torch.tensor(1.0), r"is (), expected (4, 4, 3, 3, 3)"),
    "no numbers": (lambda kernel: torch.zeros(4, 0, 3, 3, 3), "is (4, 0, 3, 3, 3), expected (4, 4"),
    "sparse": (lambda kernel: kernel.to_sparse(), "is sparse; expected a dense tensor"),
    "quantised": (lambda kernel: torch.quantize_per_tensor(kernel, 0.1, 0, torch.qint8), "is quantised"),
    "meta": (lambda kernel: kernel.to("meta"), "is without values (on the meta device)"),
    "nested": (lambda kernel: torch.nested.nested_tensor([kernel[0], kernel[0, :2]]), "is nested"),
    "complex": (lambda kernel: kernel * 1j, "is of type torch.complex64, expected one of torch.float64"),
    "whole numbers": (lambda kernel: (100 * kernel).to(torch.int8), "is of type torch.int8"),
    "NaN": (lambda kernel: kernel.where(kernel != kernel.max(), nan), "holds values that are not finite"),
    "infinite": (lambda kernel: kernel.where(kernel != kernel.max(), -inf), "are not finite"),
    "too large": (lambda kernel: kernel.double() + 1e300, "holds values that are not finite"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["conv1.weight", KERNEL, "layer2.0.conv2.weight", "fc.weight"])
@pytest.mark.parametrize("kind", ODD_KERNELS)
def test_odd_tensors_are_named(kind: str, name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    change, message = ODD_KERNELS[kind]
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    text = refused(create_model("iresnet", 18, width=4, num_classes=3), tmp_path / "w.pth")
    assert f"{tmp_path}/w.pth" in text
    assert f"{name} " in text
    assert message in text or (name != KERNEL and "expected (" in text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: torch.zeros(2), 2: torch.zeros(2)}, "hold a name that is int; expected texts like conv1.weight"),
        ({(1, 2): torch.zeros(2)}, "hold a name that is tuple"),
        ({"model_state": {3: torch.zeros(2)}}, "hold a name that is int"),
        ({"module." * 10_000 + "conv1.weight": torch.zeros(2)}, "that is a text of 70012 characters"),
        ({"model_state": {"conv1.weight": torch.zeros(2).to_sparse()}}, "conv1.weight is sparse"),
    ],
)
def test_odd_names(names: object, message: str, tmp_path: Path) -> None:
    torch.save(names, tmp_path / "w.pth")
    assert message in refused(create_model("iresnet", 18, width=4, num_classes=3), tmp_path / "w.pth")


def test_names_with_huge_numbers_are_passed_over(state: dict[str, Tensor], tmp_path: Path) -> None:
    odd = {
        "layer99999999999.0.conv1.weight": torch.zeros(1),
        "layer1.99999999999.conv1.weight": torch.ones(1),
    }
    torch.save({**state, **odd}, tmp_path / "w.pth")
    report = load_weights(create_model("iresnet", 18, width=4, num_classes=3), tmp_path / "w.pth")
    assert set(report.skipped) == set(odd)


def test_infinite_image_kernels_are_refused_before_and_after_inflation(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    images = {name: tensor[:, :, 0] if tensor.ndim == 5 else tensor for name, tensor in state.items()}
    torch.save({**images, KERNEL: images[KERNEL] / 0}, tmp_path / "w.pth")
    net = create_model("iresnet", 18, width=4, num_classes=3)
    for method in ("average", "center"):
        assert "are not finite" in refused(net, tmp_path / "w.pth", inflate=method)


def test_pipes_and_devices_are_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pth")
    for path in (tmp_path / "w.pth", Path("/dev/zero"), tmp_path):
        with pytest.raises(WeightsError, match="are no regular file"):
            read_weights(path)


def test_metadata_may_be_anything(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for text in ("[" * 50_000, "9" * 5000, "[" * 90 + "]" * 90, '{"a": 1}'):
        safetensors.torch.save_file(state, path, {"class_names": text, "cfg": text})
        assert load_weights(create_model("iresnet", 18, width=4, num_classes=3), path).class_names == []


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes cut short, or with some of them changed, moved or doubled; more often near both ends, where
    names and tables stand.
    """
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        near = int(rng.integers(min(len(changed), 3000)))
        place = (near, len(changed) - 1 - near, int(rng.integers(len(changed))))[int(rng.integers(3))]
        kind = int(rng.integers(4))
        if kind == 0:
            del changed[max(place, 1) :]
        elif kind == 1:
            changed[place] = int(rng.integers(256))
        elif kind == 2:
            changed[place : place + 8] = rng.bytes(8)
        else:
            changed[place:place] = changed[place : place + int(rng.integers(1, 64))]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_load_whole_or_end_in_one_line(state: dict[str, Tensor], tmp_path: Path) -> None:
    """180 files that were cut or changed at random."""
    small = {name: tensor for name, tensor in state.items() if tensor.numel() < 2000}
    torch.save({"model_state": small, "cfg": "A: 1", "class_names": ["a", "b"]}, tmp_path / "zip.pth")
    torch.save(small, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(small, tmp_path / "whole.safetensors", {"cfg": "A: 1"})
    net = create_model("iresnet", 18, width=4, num_classes=3)
    rng = np.random.default_rng(0)
    outcomes = []
    for name in ("zip.pth", "legacy.pth", "whole.safetensors"):
        data = (tmp_path / name).read_bytes()
        for _ in range(60):
            path = tmp_path / f"damaged {name}"
            path.write_bytes(damaged(data, rng))
            before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
            message = ""
            try:
                load_weights(net, path, min_fraction=0.1)
            except WeightsError as error:
                message = str(error)
            outcomes.append("refused" if message else "loaded")
            assert "\n" not in message
            assert not message or all(
                torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items()
            )
            assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    assert outcomes.count("refused") > 80


@pytest.mark.filterwarnings("ignore")
def test_random_bytes_of_any_name_end_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    net = create_model("iresnet", 18, width=4, num_classes=3)
    headers = [
        b"",
        b"\x20" + bytes(7) + b"{",
        b"\xff" * 8 + b"{",
        b"PK\x03\x04",
        b"\x80\x02",
        b"\x80\x02]q\x00(",
    ]
    for header in headers:
        for size in (0, 1, 9, 300, 3000):
            (tmp_path / "w.safetensors").write_bytes(header + rng.bytes(size))
            assert "w.safetensors " in refused(net, tmp_path / "w.safetensors")
