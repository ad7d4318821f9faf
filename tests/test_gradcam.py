"""Grad-CAM: the equations, on any stage of any network, which stays as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from video_iresnet.inference.gradcam import default_stage, grad_cam
from video_iresnet.models import ResNet, create_cifar_model, create_model

STAGES = ["stem", "stage1", "stage2", "stage3", "stage4"]


def network(arch: str = "iresnet", **options: object) -> ResNet:
    torch.manual_seed(0)
    net = create_model(arch, 18, width=4, num_classes=3, **options)  # type: ignore[arg-type]
    return net.double().eval()


def clips_of(number: int, size: tuple[int, int, int] = (8, 64, 64)) -> Tensor:
    return torch.randn(number, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_one_channel_that_the_class_reads_is_the_heat() -> None:
    net = network("resnet")
    net.fc.weight.data.zero_()
    net.fc.weight.data[1, 5], net.fc.weight.data[2, 5] = 2.5, -1.0
    clips = clips_of(1).repeat(3, 1, 1, 1, 1)
    heat = grad_cam(net, clips, torch.tensor([1, 2, 0]), "stage4")
    channel = net.features(clips)[3][:1, 5:6]
    assert channel.shape == (1, 1, 2, 2, 2)
    expected = F.interpolate(channel, (8, 64, 64), mode="trilinear")[0, 0]
    torch.testing.assert_close(heat[0], expected / expected.max())
    assert heat[1:].abs().max() == 0  # the channel speaks against class 2, and nothing for class 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("head_window", [None, (2, 1, 1)])
def test_heat_is_that_of_the_equations(stage: str, head_window: tuple[int, int, int] | None) -> None:
    """With gradients from differences: a channel is raised everywhere by a little."""
    net, clips, step = network(head_window=head_window), clips_of(1), 1e-6
    maps = net.features_of(stage, clips).detach()
    raised = maps.repeat(maps.shape[1], 1, 1, 1, 1)
    raised += step * torch.eye(maps.shape[1], dtype=maps.dtype)[:, :, None, None, None]
    rises = (net.logits_from(stage, raised) - net(clips)).detach() / step
    found = []
    for label in range(3):
        weights = rises[:, label] / maps[0, 0].numel()
        rectified = (weights[:, None, None, None] * maps[0]).sum(0).clamp(min=0)
        expected = F.interpolate(rectified[None, None], (8, 64, 64), mode="trilinear")[0, 0]
        found.append(float(expected.max()))
        heat = grad_cam(net, clips, torch.tensor([label]), stage)[0]
        torch.testing.assert_close(heat, expected / max(found[-1], 1e-9), rtol=1e-3, atol=1e-4)
    assert max(found) > 0


def test_a_clip_has_one_scale_and_no_part_in_others() -> None:
    net, clips, labels = network(), clips_of(3, (8, 64, 48)), torch.tensor([0, 1, 2])
    heat = grad_cam(net, clips, labels)
    assert heat.shape == (3, 8, 64, 48)
    assert heat.amin() >= 0
    assert heat.amax((1, 2, 3)).tolist() == [1, 1, 1]
    assert heat[0].amax((1, 2)).unique().numel() > 1  # frames differ in their maximum
    for i in range(3):
        torch.testing.assert_close(grad_cam(net, clips[i : i + 1], labels[i : i + 1]), heat[i : i + 1])


@pytest.mark.parametrize("frozen", [False, True])
def test_the_network_stays_as_it_was(frozen: bool) -> None:
    net, clips = network(), clips_of(1)
    net.requires_grad_(not frozen)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    label = torch.tensor([0])
    heat = grad_cam(net, clips, label, "stage3")
    with torch.inference_mode():
        assert torch.equal(grad_cam(net, clips.clone(), label, "stage3"), heat)
    assert not heat.requires_grad
    assert not clips.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad is not frozen for p in net.parameters())
    assert not any(module.training or module._forward_hooks for module in net.modules())


def test_mistakes_are_told() -> None:
    net, clips, label = network(), clips_of(1), torch.tensor([0])
    with pytest.raises(ValueError, match=r"unknown stage 'layer4'; expected one of stem, stage1, .*, stage4"):
        grad_cam(net, clips, label, "layer4")
    with pytest.raises(ValueError, match="training mode"):
        grad_cam(net.train(), clips, label)


def test_the_default_stage_has_as_many_positions_as_in_the_paper() -> None:
    net = network()
    assert [default_stage(net, size) for size in (224, 112, 48, 16, 8)] == [
        "stage4", "stage3", "stage1", "stem", "stem"
    ]  # fmt: skip
    clips = clips_of(1, (8, 112, 112))
    assert net.features_of("stage3", clips).shape[3:] == (7, 7)
    label = torch.tensor([1])
    assert torch.equal(grad_cam(net, clips, label), grad_cam(net, clips, label, "stage3"))


def test_networks_for_small_clips_have_three_stages() -> None:
    net = create_cifar_model("iresnet", 20, dims=3, width=4, num_classes=3).eval()
    assert net.stage_names == ["stem", "stage1", "stage2", "stage3"]
    clips = clips_of(1, (4, 32, 32)).float()
    assert grad_cam(net, clips, torch.tensor([1])).shape == (1, 4, 32, 32)
