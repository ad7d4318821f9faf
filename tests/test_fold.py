"""Folded batch normalization: the same logits, and which normalizations remain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from video_iresnet.models import (
    ARCHITECTURES,
    ResNet,
    create_cifar_model,
    create_model,
    fold_batch_norm,
    set_norm,
)


def trained(network: ResNet) -> ResNet:
    """Draw what training would have learned about batch normalization."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
    return network.to(memory_format=torch.channels_last_3d).eval()  # type: ignore[call-overload]


def norms(network: nn.Module) -> set[str]:
    return {
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logits_are_the_same(arch: str, depth: int) -> None:
    groups = ARCHITECTURES[arch].groups
    if groups and depth == 18:
        pytest.skip("grouped networks are bottlenecks")
    network = trained(create_model(arch, depth, width=16 if groups else 4, num_classes=5))
    clips = torch.randn(2, 3, 4, 32, 32).to(memory_format=torch.channels_last_3d)
    folded = fold_batch_norm(network)
    with torch.inference_mode():
        expected = network(clips)
        found = folded(clips)
        assert (found - expected).abs().max() < 1e-4
        assert expected.std() > 0.1
        # What is folded matters: without it the logits are others.
        assert (
            create_model(arch, depth, width=16 if groups else 4, num_classes=5).eval()(clips) - expected
        ).abs().max() > 0.1


def test_small_and_image_networks() -> None:
    for network, size in (
        (create_cifar_model("iresnet", 29, dims=3, width=4, num_classes=5), (2, 3, 4, 16, 16)),
        (create_model("iresnet", 18, dims=2, width=4, num_classes=5), (2, 3, 32, 32)),
        (create_model("resnet", 18, width=4, num_classes=5, temporal_kernels="i3d"), (2, 3, 8, 32, 32)),
    ):
        network = trained(network) if len(size) == 5 else network.eval()
        inputs = torch.randn(size)
        with torch.inference_mode():
            assert (fold_batch_norm(network)(inputs) - network(inputs)).abs().max() < 1e-4


def test_which_normalizations_remain() -> None:
    """Those that do not follow a convolution: at the start of blocks, and after the addition."""
    assert norms(fold_batch_norm(create_model("resnet", 50, width=4))) == set()
    assert norms(fold_batch_norm(create_model("iresnet", 18, width=4))) == {
        f"layer{stage}.1.bn2" for stage in (1, 2, 3, 4)
    }
    remain = norms(fold_batch_norm(create_model("iresnet", 50, width=4)))
    assert {name for name in remain if name.startswith("layer2")} == {
        "layer2.2.bn0", "layer2.3.bn0", "layer2.3.bn3"
    }  # fmt: skip
    assert len(remain) == 2 + 3 + 5 + 2


def test_the_network_itself_is_not_changed() -> None:
    network = trained(create_model("iresnet", 18, width=4, num_classes=5)).train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batch_norm(network)
    assert network.training
    assert not folded.training
    assert isinstance(network.bn1, nn.BatchNorm3d)
    assert list(state) == list(network.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    for module in folded.modules():
        if isinstance(module, nn.Conv3d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("kind", ["sub_batchnorm", "sync_batchnorm"])
def test_other_kinds_of_batch_normalization_are_folded(kind: str) -> None:
    network = trained(create_model("iresnet", 18, width=4, num_classes=5))
    set_norm(network, kind, splits=2)
    clips = torch.randn(3, 3, 4, 32, 32)
    folded = fold_batch_norm(network)
    assert len(norms(folded)) == 4
    with torch.inference_mode():
        assert (folded(clips) - network.eval()(clips)).abs().max() < 1e-4
