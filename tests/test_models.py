"""Networks: exact counts, the blocks' structure, parity with torchvision and stored outputs."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from video_iresnet.models import create_cifar_model, create_model
from video_iresnet.models.blocks import Bottleneck, Position


def multiply_adds(model: nn.Module, size: tuple[int, ...]) -> float:
    """Those of convolutions and linear layers for one input of that size, in units of 1e9."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *size))
    return float(counter.get_total_flops() / 2e9)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Computed from the authors' released code, 1000 classes, 224 x 224: parameters, then multiply-adds (1e9) of
# resnet and iresnet.
IMAGE_COUNTS = {
    18: (11_689_512, 1.814, 1.814),
    34: (21_797_672, 3.664, 3.664),
    50: (25_557_032, 4.089, 4.128),
    101: (44_549_160, 7.801, 7.840),
    152: (60_192_808, 11.514, 11.552),
    200: (64_673_832, 15.007, 15.046),
    302: (96_585_512, 22.432, 22.470),
    404: (124_524_328, 29.856, 29.895),
    1001: (255_597_864, 73.311, 73.350),
}


@pytest.mark.parametrize("depth", IMAGE_COUNTS)
def test_image_network_counts(depth: int) -> None:
    """Multiply-adds up to 200 layers: counting them takes 10 s for a thousand."""
    expected, *giga = IMAGE_COUNTS[depth]
    with torch.device("meta"):
        for arch, multiplied in zip(("resnet", "iresnet"), giga, strict=True):
            model = create_model(arch, depth, dims=2, num_classes=1000)
            assert parameters(model) == expected
            assert depth > 200 or round(multiply_adds(model, (224, 224)), 3) == multiplied
        assert parameters(create_model("resstage", depth, dims=2, num_classes=1000)) == expected


@pytest.mark.parametrize(
    ("arch", "depth", "count", "giga"),
    [
        ("resgroupfix", 50, 23_366_440, 4.229),
        ("iresgroupfix", 50, 23_366_440, 4.384),
        ("resgroup", 50, 24_887_080, 5.357),
        ("iresgroup", 50, 24_887_080, 5.511),
        ("resgroupfix", 101, 43_786_024, None),
        ("resgroup", 101, 47_813_416, None),
        ("resgroupfix", 152, 60_607_272, None),
        ("resgroup", 152, 66_993_960, None),
    ],
)
def test_grouped_network_counts(arch: str, depth: int, count: int, giga: float | None) -> None:
    with torch.device("meta"):
        model = create_model(arch, depth, dims=2, num_classes=1000)
        assert parameters(model) == count
        assert giga is None or round(multiply_adds(model, (224, 224)), 3) == giga


@pytest.mark.parametrize(("arch", "giga"), [("iresnet", 93.140), ("resnet", 92.524)])
def test_video_network_counts(arch: str, giga: float) -> None:
    with torch.device("meta"):
        model = create_model(arch, 50)
        assert parameters(model) == 46_999_760
        assert round(multiply_adds(model, (16, 224, 224)), 3) == giga
        assert parameters(create_model(arch, 50, num_classes=174)) == 46_536_686


# Slow 8x8 R50, I3D 8x8 R50 and C2D 8x8 R50 with 400 classes at 256 x 256; PySlowFast publishes 54.52, 37.1
# and 25.5 GMACs.
@pytest.mark.parametrize(
    ("pattern", "count", "giga"),
    [("slow", 32_454_096, 54.52), ("i3d", 28_043_472, 37.10), ("c2d", 24_327_632, 25.46)],
)
def test_baseline_counts(pattern: str, count: int, giga: float) -> None:
    with torch.device("meta"):
        model = create_model("resnet", 50, temporal_kernels=pattern)
        assert parameters(model) == count
        assert round(multiply_adds(model, (8, 256, 256)), 2) == giga


@pytest.mark.parametrize(("depth", "millions"), [(164, 1.70), (1001, 10.33), (2000, 20.62), (3002, 30.9)])
def test_cifar_network_counts(depth: int, millions: float) -> None:
    with torch.device("meta"):
        for arch in ("resnet", "resstage", "iresnet"):
            model = create_cifar_model(arch, depth)
            assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.05 if depth == 3002 else 0.005)
    if depth == 164:
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    if depth == 3002:  # which computes in test_a_deep_stage_does_not_recurse
        assert [len(stage) for stage in model.stages] == [333, 334, 333]


def test_cifar_networks_in_2d_and_3d() -> None:
    net = create_cifar_model("iresnet", 20, width=4, num_classes=7).eval()
    assert [len(stage) for stage in net.stages] == [2, 2, 2]
    assert (net.conv1.kernel_size, net.conv1.stride) == ((3, 3), (1, 1))
    assert [type(module) for module in net.layer1[0].downsample] == [nn.Conv2d, nn.BatchNorm2d]
    assert [type(module) for module in net.layer2[0].downsample] == [nn.MaxPool2d, nn.Conv2d, nn.BatchNorm2d]
    sizes = []
    net.layer3.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert sizes == [(64, 8, 8)]
    assert create_cifar_model("resnet", 20, width=4, dims=3).eval()(torch.zeros(1, 3, 4, 32, 32)).shape == (
        1,
        10,
    )


def fill(model: nn.Module) -> nn.Module:
    """Weights and statistics that are the same on every machine and version, and away from their defaults."""
    for number, (name, tensor) in enumerate(sorted(model.state_dict().items())):
        if tensor.is_floating_point():
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + number)
            scale = (2.0 / max(tensor[0].numel(), 1)) ** 0.5 if tensor.ndim > 1 else 0.3
            base = 1.0 if name.endswith(("var", "weight")) and tensor.ndim == 1 else 0.0
            tensor.copy_((base + scale * wave).reshape(tensor.shape))
    return model


# Made by this implementation when its counts and structure had been checked; they guard against silent
# change.
GOLDEN = {
    ("iresnet", 18, True): [9044.00958437, -6910.70629558, 3638.62391325],
    ("iresnet", 50, True): [48275.0829985, 71144.2309161, -57461.6551731],
    ("iresnet", 50, False): [28438.4756715, 36797.7124042, -33189.9209634],
    ("resnet", 34, True): [131144879.252, -197345870.951, 231015600.251],
}
GOLDEN_OPTIONS = [
    (
        ("resnet", 50),
        {"temporal_kernels": "slow", "width": 4},
        [-45.5062873596, 6.96494134917, 44.8083835247],
    ),
    (("resnet", 50), {"temporal_kernels": "i3d", "width": 4}, [-11.7054322158, 4.32006596051, 11.3490581326]),
    (("resnet", 50), {"temporal_kernels": "c2d", "width": 4}, [-5.01756836559, 1.58059094522, 5.01493957627]),
    (
        ("iresnet", 50),
        {"temporal_kernels": "i3d", "width": 4, "shortcut_temporal_kernel": 3},
        [-9.50710746128, 19.4761793333, 7.19364169106],
    ),
    (
        ("iresnet", 34),
        {"temporal_kernels": (1, 3, 1, 3), "width": 4, "stem_temporal_stride": 2},
        [13483.6866332, -24189.0929702, 30907.4835869],
    ),
    (("resstage", 50), {"width": 4}, [-57158.7024602, 54274.9440075, 50150.4421234]),
    (("iresgroup", 50), {"width": 16}, [-49.6263306317, 22.2353565972, 5.9530481862]),
    (("resgroupfix", 50), {"width": 16}, [-21.7869978101, 20.7190358597, -18.8789266916]),
    (("iresnet", 101), {"width": 4, "dims": 2}, [825.572991527, -497.040198781, -761.189284681]),
]


@pytest.mark.parametrize(("arch", "depth", "rectify"), GOLDEN)
def test_golden_outputs(arch: str, depth: int, rectify: bool) -> None:
    model = fill(create_model(arch, depth, num_classes=3, width=4, rectify_identity=rectify).double()).eval()
    clip = torch.sin(torch.arange(3 * 8 * 33 * 32, dtype=torch.float64) * 0.37).reshape(1, 3, 8, 33, 32)
    assert model(clip)[0].tolist() == pytest.approx(GOLDEN[arch, depth, rectify], rel=1e-9)


@pytest.mark.parametrize(("name", "options", "expected"), GOLDEN_OPTIONS)
def test_golden_outputs_of_options(
    name: tuple[str, int], options: dict[str, object], expected: list[float]
) -> None:
    model = fill(create_model(*name, num_classes=3, **options).double()).eval()
    clip = torch.sin(torch.arange(3 * 8 * 33 * 32, dtype=torch.float64) * 0.37).reshape(1, 3, 8, 33, 32)
    assert model(clip if model.plan.dims == 3 else clip[:, :, 0])[0].tolist() == pytest.approx(
        expected, rel=1e-9
    )


def test_stage_positions() -> None:
    names = [[Position.in_stage(i, n).value for i in range(n)] for n in (2, 3, 4)]
    assert names == [
        ["start", "second and end"],
        ["start", "first middle", "end"],
        ["start", "first middle", "middle", "end"],
    ]
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
    model = create_model(
        "iresnet", 18, num_classes=5, width=4, temporal_strides=(1, 2, 2, 2), temporal_kernels=(1, 3, 1, 3)
    )
    sizes = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    assert model(torch.randn(1, 3, 8, 64, 96)).shape == (1, 5)
    assert sizes == [(8, 16, 24), (4, 8, 12), (2, 4, 6), (1, 2, 3)]
    assert [
        stage[0].conv1.kernel_size[0] for stage in (model.layer1, model.layer2, model.layer3, model.layer4)
    ] == [1, 3, 1, 3]
    assert isinstance(model.maxpool, nn.Identity)
    assert [type(module) for module in model.layer1[0].downsample] == [nn.MaxPool3d]


@pytest.mark.parametrize(("arch", "depth"), [("resnet", 18), ("iresnet", 18), ("iresnet", 50)])
def test_zero_init_makes_branches_return_zero(arch: str, depth: int) -> None:
    model = create_model(arch, depth, width=4, num_classes=2, zero_init_residual=True)
    model.train()
    block = model.layer2[1]
    x = torch.randn(2, model.plan.stages[1][1].inputs, 2, 4, 4)
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
    model = create_model("iresnet", 50, width=8, num_classes=3).double().eval()
    clip = torch.randn(2, 3, 4, 40, 32, dtype=torch.float64)
    expected = model(clip)
    model = model.to(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(
        model(clip.to(memory_format=torch.channels_last_3d)), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnext", 50),
            "unknown architecture 'resnext'; expected one of resnet, resstage, iresnet, resgroup",
        ),
        (
            ("iresnet", 49),
            "unknown depth 49 of iresnet; expected one of 18, 34, 50, 101, 152, 200, 302, 404, 1001",
        ),
        (("iresgroup", 18), "unknown depth 18 of iresgroup; expected one of 50, 101, 152"),
    ],
)
def test_wrong_names(arguments: tuple[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 1}, "dims is 1; expected 2"),
        ({"temporal_kernels": (3, 3, 2, 3)}, "expected odd numbers"),
        ({"temporal_kernels": (3, (), 3, 3)}, "expected odd numbers"),
        ({"temporal_kernels": "r2plus1d"}, "temporal_kernels is 'r2plus1d'; expected full, i3d, slow, c2d"),
        ({"temporal_strides": (1, 2)}, "expected four positive numbers"),
        ({"temporal_pool": 0}, "temporal_pool is 0; expected 1 or more"),
        ({"stem_temporal_kernel": 2}, "stem_temporal_kernel is .2.; expected odd"),
        ({"stem_temporal_stride": 0}, "stem_temporal_stride is 0; expected 1 or more"),
        ({"shortcut_temporal_kernel": 2}, "shortcut_temporal_kernel is .2.; expected odd"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("iresnet", 18, **options)


@pytest.mark.parametrize(
    ("arch", "depth", "message"),
    [("resgroup", 164, "for small images"), ("resnet", 165, "9n.2"), ("resnet", 11, "at least 20")],
)
def test_wrong_cifar_networks(arch: str, depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_cifar_model(arch, depth)


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(
        ValueError, match="width 8 gives 32 channels in stage 1, which 64 groups do not divide"
    ):
        create_model("resgroupfix", 50, width=8)


def kernels(net: nn.Module, conv: str) -> list[list[int]]:
    return [[getattr(block, conv).kernel_size[0] for block in stage] for stage in net.stages]


def test_temporal_patterns() -> None:
    with torch.device("meta"):
        i3d, slow, c2d = (
            create_model("resnet", 50, temporal_kernels=name) for name in ("i3d", "slow", "c2d")
        )
        explicit = create_model(
            "iresnet",
            50,
            temporal_kernels=(1, (3, 1), 3, 3),
            stem_temporal_stride=2,
            shortcut_temporal_kernel=1,
        )
        basic = create_model("resnet", 18, temporal_kernels="slow")
    assert kernels(i3d, "conv1") == [[3, 3, 3], [3, 1, 3, 1], [3, 1, 3, 1, 3, 1], [1, 3, 1]]
    assert kernels(slow, "conv1") == [[1] * 3, [1] * 4, [3] * 6, [3] * 3]
    assert kernels(explicit, "conv2") == [[1] * 3, [3, 1, 3, 1], [3] * 6, [3] * 3]
    assert kernels(basic, "conv1") == [[1, 1], [1, 1], [3, 3], [3, 3]]
    assert {size for net in (i3d, slow, c2d, basic) for stage in kernels(net, "conv2") for size in stage} == {
        1
    }
    assert [net.conv1.kernel_size[0] for net in (i3d, slow, c2d, explicit)] == [5, 1, 1, 5]
    assert [getattr(net.temporal_pool, "kernel_size", None) for net in (i3d, slow, c2d, explicit)] == [
        (2, 1, 1),
        None,
        (2, 1, 1),
        None,
    ]
    assert {block[0].conv2.stride[0] for net in (i3d, slow, c2d) for block in net.stages} == {1}
    assert explicit.conv1.stride == (2, 2, 2)
    assert [stage[0].downsample[0].kernel_size[0] for stage in explicit.stages] == [1, 1, 1, 1]


def test_temporal_pool_and_stem_shapes() -> None:
    sizes = []
    net = create_model(
        "resnet", 18, width=4, num_classes=2, temporal_kernels="i3d", stem_temporal_stride=2, stem_pool=False
    ).eval()
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[2:])))
    net(torch.zeros(1, 3, 8, 32, 32))
    assert sizes == [(4, 16, 16), (2, 8, 8), (2, 4, 4), (2, 2, 2)]


def test_features_are_the_outputs_of_the_stages() -> None:
    net = create_model("resnet", 18, width=4, num_classes=3, temporal_kernels="c2d").eval()
    seen: list[torch.Tensor] = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output))
    clips = torch.randn(2, 3, 8, 64, 64)
    maps = net.features(clips)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (4, 8, 16, 16), (8, 4, 8, 8), (16, 4, 4, 4), (32, 4, 2, 2)
    ]  # fmt: skip
    assert all(torch.equal(x, y) for x, y in zip(maps, seen, strict=True))
    assert torch.equal(net.fc(maps[-1].mean((2, 3, 4))), net(clips))


@pytest.mark.parametrize(("arch", "temporal"), [("iresnet", "full"), ("resnet", "i3d"), ("resstage", "c2d")])
def test_a_network_can_be_divided_at_each_stage(arch: str, temporal: str) -> None:
    net = create_model(arch, 18, width=4, num_classes=3, temporal_kernels=temporal).eval()
    clips = torch.randn(2, 3, 8, 64, 64)
    names = ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert net.stage_names == names
    parts = [net.features_of(name, clips) for name in names]
    assert all(torch.equal(x, y) for x, y in zip(parts[1:], net.features(clips), strict=True))
    assert all(torch.equal(net.logits_from(*part), net(clips)) for part in zip(names, parts, strict=True))
    assert [tuple(x.shape[2:]) for x in parts] == [
        (8 // time, 64 // height, 64 // width) for time, height, width in net.plan.strides
    ]
    with pytest.raises(ValueError, match="unknown stage 'fc'; expected one of stem, stage1"):
        net.features_of("fc", clips)


def test_copies_and_pickles_compute_the_same() -> None:
    net = create_model("iresnet", 50, width=4, num_classes=3).eval()
    clips = torch.randn(1, 3, 4, 32, 32)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(copied.state_dict()) == list(net.state_dict())
        assert torch.equal(copied(clips), net(clips))


def test_head_per_position_averages_probabilities() -> None:
    """2 x 2 windows of 2 x 2 in a 3 x 3 map; a clip of the training size has one window and plain logits."""
    torch.manual_seed(0)
    options = {"width": 4, "num_classes": 5, "temporal_kernels": "slow"}
    net = create_model("resnet", 18, head_window=(4, 2, 2), **options).double().eval()
    plain = create_model("resnet", 18, **options).double().eval()
    plain.load_state_dict(net.state_dict())
    maps: list[Tensor] = []
    net.layer4.register_forward_hook(lambda module, inputs, output: maps.append(output))
    clip = torch.randn(1, 3, 4, 96, 96, dtype=torch.float64)
    logits = net(clip)
    windows = [maps[0][..., y : y + 2, x : x + 2].mean((2, 3, 4)) for y in (0, 1) for x in (0, 1)]
    expected = torch.stack([net.fc(window).softmax(1) for window in windows]).mean(0)
    torch.testing.assert_close(logits.softmax(1), expected)
    assert (logits.exp().sum() - 1).abs() < 1e-12
    small = clip[..., :64, :64]
    torch.testing.assert_close(net(small), plain(small))
    assert not torch.allclose(plain(clip).softmax(1), expected, rtol=1e-6)
    image_net = create_model("resnet", 18, dims=2, width=4, num_classes=5, head_window=(1, 2, 2)).eval()
    assert image_net(torch.zeros(1, 3, 96, 96)).shape == (1, 5)


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    """Same loss, gradients and BN statistics, which are updated once."""
    options = {"width": 4, "num_classes": 3}
    torch.manual_seed(0)
    plain = create_model("iresnet", 50, **options)
    thrifty = create_model("iresnet", 50, checkpoint_activations=True, **options)
    thrifty.load_state_dict(plain.state_dict())
    clips = torch.randn(2, 3, 4, 32, 32)
    saved = {}
    for name, net in (("plain", plain), ("thrifty", thrifty)):
        for _ in range(2):
            kept: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor, lambda tensor: tensor
            ):
                loss = F.cross_entropy(net(clips), torch.tensor([0, 1]))
            loss.backward()
        saved[name] = sum(kept)
    assert saved["thrifty"] < saved["plain"] / 2
    for (key, expected), actual in zip(
        plain.state_dict().items(), thrifty.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, actual), key
    assert int(thrifty.layer1[0].bn1.num_batches_tracked) == 2
    for expected, actual in zip(plain.parameters(), thrifty.parameters(), strict=True):
        assert torch.equal(expected.grad, actual.grad)


@pytest.mark.parametrize(("dims", "depth"), [(3, 404), (2, 1001)])
def test_the_deepest_networks_take_a_training_step(dims: int, depth: int) -> None:
    net = create_model("iresnet", depth, dims=dims, width=2, num_classes=2, checkpoint_activations=True)
    images = torch.randn(2, 3, *(4, 32, 32)[3 - dims :])
    F.cross_entropy(net(images), torch.tensor([0, 1])).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert net.conv1.weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_deep_stage_does_not_recurse() -> None:
    """1000 blocks forward, backward, copied and saved with room for few more calls than a shallow network
    needs.
    """
    net = create_cifar_model("iresnet", 3002, width=1, checkpoint_activations=True)
    depth = len(inspect.stack())
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + 150)
    try:
        logits = net(torch.randn(2, 3, 4, 4))
        assert logits.shape == (2, 10)
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        assert len(net.state_dict()) > 1000
    finally:
        sys.setrecursionlimit(limit)
    assert torch.isfinite(net.conv1.weight.grad).all()


@pytest.mark.slow
def test_capture_and_export() -> None:
    """As one graph; test_compiled.py has kernels generated for one."""
    torch.manual_seed(0)
    clip = torch.randn(1, 3, 8, 64, 64)
    net = create_model("iresnet", 50, num_classes=5, width=4).eval()
    with torch.no_grad():
        for made in (
            torch.export.export(net, (clip,)).module(),
            torch.compile(net, fullgraph=True, backend="aot_eager"),
        ):
            torch.testing.assert_close(made(clip), net(clip), rtol=1e-3, atol=1e-4)


def test_bottleneck_of_a_plain_network_has_all_norms() -> None:
    block = create_model("resnet", 50, width=4).layer1[1]
    assert isinstance(block, Bottleneck)
    assert [hasattr(block, f"bn{i}") for i in range(4)] == [False, True, True, True]
