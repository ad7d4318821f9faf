"""Networks: exact counts, the blocks' structure, parity with torchvision and stored outputs."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from video_iresnet.models import create_model
from video_iresnet.models.blocks import Bottleneck, Position


def multiply_adds(model: nn.Module, clips: Tensor) -> int:
    """Those of convolutions and linear layers."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            module.register_forward_hook(count)
    model(clips)
    return total


# Computed from the authors' released code, 1000 classes, 224 x 224.
IMAGE_COUNTS = {18: (11_689_512, 1.814, 1.814), 34: (21_797_672, 3.664, 3.664), 50: (25_557_032, 4.089, 4.128), 101: (44_549_160, 7.801, 7.840)}


@pytest.mark.parametrize("depth", IMAGE_COUNTS)
def test_image_network_counts(depth: int) -> None:
    parameters, *giga = IMAGE_COUNTS[depth]
    for arch, expected in zip(("resnet", "iresnet"), giga, strict=True):
        with torch.device("meta"):
            model = create_model(arch, depth, dims=2, num_classes=1000)
            assert sum(p.numel() for p in model.parameters()) == parameters
            assert round(multiply_adds(model, torch.empty(1, 3, 224, 224)) / 1e9, 3) == expected


@pytest.mark.parametrize(("arch", "giga"), [("iresnet", 93.140), ("resnet", 92.524)])
def test_video_network_counts(arch: str, giga: float) -> None:
    with torch.device("meta"):
        model = create_model(arch, 50)
        assert sum(p.numel() for p in model.parameters()) == 46_999_760
        assert round(multiply_adds(model, torch.empty(1, 3, 16, 224, 224)) / 1e9, 3) == giga
        assert sum(p.numel() for p in create_model(arch, 50, num_classes=174).parameters()) == 46_536_686


@pytest.mark.parametrize("depth", [18, 50])
def test_plain_image_network_equals_torchvision(depth: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7).double()
    ours = create_model("resnet", depth, dims=2, num_classes=7).double()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for mode in (True, False):
        expected, actual = theirs.train(mode)(images), ours.train(mode)(images)
        assert (actual - expected).norm() < 1e-9 * expected.norm()


def fill(model: nn.Module) -> nn.Module:
    """Weights and statistics that are the same on every machine and version, and away from their defaults."""
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        if tensor.is_floating_point():
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number)
            scale = (2.0 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.ndim > 1 else 0.3
            base = 1.0 if name.endswith(("var", "weight")) and tensor.ndim == 1 else 0.0
            tensor.copy_((base + scale * wave).reshape(tensor.shape))
    return model


# Made by this implementation when its counts and structure had been checked; they guard against silent change.
GOLDEN = {
    ("iresnet", 18, True): [9044.00958437, -6910.70629558, 3638.62391325],
    ("iresnet", 50, True): [48275.0829985, 71144.2309161, -57461.6551731],
    ("iresnet", 50, False): [28438.4756715, 36797.7124042, -33189.9209634],
    ("resnet", 34, True): [131144879.252, -197345870.951, 231015600.251],
}


@pytest.mark.parametrize(("arch", "depth", "rectify"), GOLDEN)
def test_golden_outputs(arch: str, depth: int, rectify: bool) -> None:
    model = fill(create_model(arch, depth, num_classes=3, width=4, rectify_identity=rectify).double()).eval()
    clip = torch.sin(torch.arange(3 * 8 * 33 * 32, dtype=torch.float64) * 0.37).reshape(1, 3, 8, 33, 32)
    assert model(clip)[0].tolist() == pytest.approx(GOLDEN[arch, depth, rectify], rel=1e-9)


def test_stage_positions() -> None:
    names = [[Position.in_stage(i, n).value for i in range(n)] for n in (2, 3, 4)]
    assert names == [["start", "second and end"], ["start", "first middle", "end"], ["start", "first middle", "middle", "end"]]
    with pytest.raises(ValueError, match="a stage of 1 block"):
        Position.in_stage(0, 1)


def test_stage_blocks_compute_their_formulas() -> None:
    """Start F(x) + S(x); first middle F(relu x) + relu x; end relu(BN(F(relu BN x) + x))."""
    torch.manual_seed(0)
    start, first, *_, end = create_model("iresnet", 50, width=4).double().eval().layer2

    def branch(block: nn.Module, x: Tensor) -> Tensor:
        return block.conv3(F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))))

    x = torch.randn(1, 16, 2, 8, 8, dtype=torch.float64)
    pool, conv, norm = start.downsample
    assert (pool.kernel_size, pool.stride, conv.stride) == ((3, 3, 3), (1, 2, 2), (1, 1, 1))
    torch.testing.assert_close(start(x), start.bn3(branch(start, x)) + norm(conv(pool(x))))
    x = torch.randn(1, 32, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(first(x), branch(first, F.relu(x)) + F.relu(x))
    torch.testing.assert_close(end(x), F.relu(end.bn3(branch(end, F.relu(end.bn0(x))) + x)))
    first.rectify_identity = False
    torch.testing.assert_close(first(x), branch(first, F.relu(x)) + x)
    assert not hasattr(first, "bn0")
    assert not hasattr(first, "bn3")


def test_strides_and_shapes() -> None:
    model = create_model("iresnet", 18, num_classes=5, width=4, temporal_strides=(1, 2, 2, 2), temporal_kernels=(1, 3, 1, 3))
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    assert model(torch.randn(1, 3, 8, 64, 96)).shape == (1, 5)
    assert sizes == [(8, 16, 24), (4, 8, 12), (2, 4, 6), (1, 2, 3)]
    assert [stage[0].conv1.kernel_size[0] for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 3, 1, 3]
    assert isinstance(model.maxpool, nn.Identity)
    assert [type(module) for module in model.layer1[0].downsample] == [nn.MaxPool3d]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 18), ("iresnet", 18), ("iresnet", 50)])
def test_zero_init_makes_branches_return_zero(arch: str, depth: int) -> None:
    model = create_model(arch, depth, width=4, num_classes=2, zero_init_residual=True)
    model.train()
    block = model.layer2[1]
    x = torch.randn(2, 8 * block.expansion, 2, 4, 4)
    identity = F.relu(x) if arch == "iresnet" else x
    if block.position is Position.SECOND_AND_END:
        torch.testing.assert_close(block(x), F.relu(block.bn2(identity)))
    else:
        torch.testing.assert_close(block(x), identity if arch == "iresnet" else F.relu(identity))
    assert model(torch.randn(2, 3, 4, 32, 32)).abs().sum() > 0


def test_every_parameter_gets_a_gradient() -> None:
    model = create_model("iresnet", 50, width=4, num_classes=3, dropout=0.5)
    F.cross_entropy(model(torch.randn(4, 3, 4, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_channels_last_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    model = create_model("iresnet", 18, width=8, num_classes=3).double().eval()
    clip = torch.randn(2, 3, 4, 40, 32, dtype=torch.float64)
    expected = model(clip)
    model = model.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(model(clip.to(memory_format=torch.channels_last_3d)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnext", 50), "unknown architecture 'resnext'; expected one of resnet, iresnet"),
        (("iresnet", 49), "unknown depth 49; expected one of 18, 34, 50, 101"),
    ],
)
def test_wrong_names(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(*arguments)


@pytest.mark.parametrize("options", [{"dims": 1}, {"temporal_kernels": (3, 3, 2, 3)}, {"temporal_strides": (1, 2)}])
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        create_model("iresnet", 18, **options)


def test_bottleneck_of_a_plain_network_has_all_norms() -> None:
    block = create_model("resnet", 50, width=4).layer1[1]
    assert isinstance(block, Bottleneck)
    assert [hasattr(block, f"bn{i}") for i in range(4)] == [False, True, True, True]
