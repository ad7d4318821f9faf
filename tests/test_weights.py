"""Weights from files: every layout, inflation, the report, fine-tuning, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from video_iresnet.engine.checkpoint import export_safetensors, save_checkpoint
from video_iresnet.models import WeightsError, create_cifar_model, create_model, load_weights, read_weights
from video_iresnet.models.released import describe

NARROW = {"width": 4, "num_classes": 3}


def randomised(net: nn.Module) -> nn.Module:
    """Other statistics, scales and shifts than those of a new network, in float64."""
    net = net.double()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_mean") or (tensor.ndim == 1 and name.endswith("bias")):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
    return net


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "r3d_18"])
def test_parity_with_torchvision(name: str, tmp_path: Path) -> None:
    """Their weights in our network give their logits, in eval and in training mode, to float64 rounding."""
    torch.manual_seed(0)
    if name == "r3d_18":
        theirs = torchvision.models.video.r3d_18(num_classes=7)
        ours = create_model(
            "resnet",
            18,
            num_classes=7,
            temporal_strides=(1, 2, 2, 2),
            stem_temporal_kernel=3,
            stem_pool=False,
        ).double()
        inputs = torch.randn(2, 3, 8, 48, 48, dtype=torch.float64)
        assert sum(p.numel() for p in torchvision.models.video.r3d_18().parameters()) == 33_371_472
    else:
        theirs = getattr(torchvision.models, name)(num_classes=7)
        ours = create_model("resnet", int(name.removeprefix("resnet")), dims=2, num_classes=7).double()
        inputs = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    theirs = randomised(theirs)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    report = load_weights(ours, tmp_path / "w.pth", strict=True)
    assert report.complete
    assert report.fraction == 1
    with torch.no_grad():
        for mode in (False, True):
            assert relative(ours.train(mode)(inputs), theirs.train(mode)(inputs)) < 1e-9
    for key, statistic in ours.state_dict().items():
        if key == "layer3.0.bn1.running_var":
            assert statistic.sum() == pytest.approx(
                sum(
                    b
                    for k, b in theirs.state_dict().items()
                    if re.fullmatch(r"layer3.0.(bn1|conv1.1).running_var", k)
                ).sum()
            )


def pytorchvideo_names(net: nn.Module, stage_blocks: tuple[int, ...], head: int) -> dict[str, Tensor]:
    state = {
        f"blocks.0.{new}.{k}": v
        for old, new in (("conv1", "conv"), ("bn1", "norm"))
        for k, v in getattr(net, old).state_dict().items()
    }
    for block_number, stage in zip(stage_blocks, net.stages, strict=True):
        for i, block in enumerate(stage):
            prefix = f"blocks.{block_number}.res_blocks.{i}."
            if i == 0:
                state |= {
                    f"{prefix}branch1_{new}.{k}": v
                    for j, new in enumerate(("conv", "norm"))
                    for k, v in block.downsample[j].state_dict().items()
                }
            for j, letter in enumerate("abc", start=1):
                state |= {
                    f"{prefix}branch2.conv_{letter}.{k}": v
                    for k, v in getattr(block, f"conv{j}").state_dict().items()
                }
                state |= {
                    f"{prefix}branch2.norm_{letter}.{k}": v
                    for k, v in getattr(block, f"bn{j}").state_dict().items()
                }
    return state | {f"blocks.{head}.proj.{k}": v for k, v in net.fc.state_dict().items()}


def pyslowfast_names(net: nn.Module) -> dict[str, Tensor]:
    state = {
        f"s1.pathway0_stem.{new}.{k}": v
        for old, new in (("conv1", "conv"), ("bn1", "bn"))
        for k, v in getattr(net, old).state_dict().items()
    }
    for s, stage in enumerate(net.stages, start=2):
        for i, block in enumerate(stage):
            prefix = f"s{s}.pathway0_res{i}."
            if i == 0:
                state |= {
                    f"{prefix}{new}.{k}": v
                    for j, new in enumerate(("branch1", "branch1_bn"))
                    for k, v in block.downsample[j].state_dict().items()
                }
            for j, letter in enumerate("abc", start=1):
                state |= {
                    f"{prefix}branch2.{letter}.{k}": v
                    for k, v in getattr(block, f"conv{j}").state_dict().items()
                }
                state |= {
                    f"{prefix}branch2.{letter}_bn.{k}": v
                    for k, v in getattr(block, f"bn{j}").state_dict().items()
                }
    return state | {f"head.projection.{k}": v for k, v in net.fc.state_dict().items()}


@pytest.mark.parametrize("pattern", ["slow", "c2d", "i3d"])
@pytest.mark.parametrize("project", ["PyTorchVideo", "PySlowFast"])
def test_baselines_of_other_projects(project: str, pattern: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = randomised(create_model("resnet", 50, temporal_kernels=pattern, **NARROW)).eval()
    if project == "PySlowFast":
        contents = {
            "epoch": 195,
            "model_state": pyslowfast_names(theirs),
            "cfg": "TRAIN: {}",
            "optimizer_state": {},
        }
    else:
        blocks, head = ((1, 2, 3, 4), 5) if pattern == "slow" else ((1, 3, 4, 5), 6)
        contents = {"model_state": pytorchvideo_names(theirs, blocks, head)}
    torch.save(contents, tmp_path / "w.pyth")
    ours = create_model("resnet", 50, temporal_kernels=pattern, **NARROW).double().eval()
    report = load_weights(ours, tmp_path / "w.pyth", strict=True)
    assert report.complete
    assert project in str(report)
    assert len(report.loaded) == len(theirs.state_dict())
    clip = torch.randn(1, 3, 8, 32, 32, dtype=torch.float64)
    assert relative(ours(clip), theirs(clip)) < 1e-12


def test_names_of_other_projects_are_spelled_as_they_are() -> None:
    """Against names written down by hand from the projects' files."""
    net = create_model("resnet", 50, temporal_kernels="i3d", **NARROW)
    video = pytorchvideo_names(net, (1, 3, 4, 5), 6)
    assert {
        "blocks.0.conv.weight",
        "blocks.3.res_blocks.0.branch1_conv.weight",
        "blocks.5.res_blocks.2.branch2.norm_c.running_var",
    } <= set(video)
    assert {"blocks.6.proj.weight", "blocks.1.res_blocks.0.branch1_norm.weight"} <= set(video)
    slowfast = pyslowfast_names(net)
    assert {
        "s1.pathway0_stem.bn.running_mean",
        "s2.pathway0_res0.branch1.weight",
        "s4.pathway0_res5.branch2.b_bn.bias",
    } <= set(slowfast)
    assert {
        "s5.pathway0_res2.branch2.c.weight",
        "head.projection.bias",
        "s3.pathway0_res0.branch1_bn.weight",
    } <= set(slowfast)
    assert video["blocks.1.res_blocks.0.branch2.conv_a.weight"].shape == (4, 4, 3, 1, 1)


@pytest.mark.parametrize(
    "arch", ["resnet", "resstage", "iresnet", "resgroup", "resgroupfix", "iresgroup", "iresgroupfix"]
)
def test_released_family_is_recognized_and_inflated(arch: str, tmp_path: Path) -> None:
    """A wrapped image checkpoint of each architecture, into images and, centred, into video."""
    torch.manual_seed(0)
    options = {"width": 16, "num_classes": 5}
    theirs = randomised(create_model(arch, 50, dims=2, **options)).eval()
    torch.save(
        {"epoch": 90, "arch": "x", "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}},
        tmp_path / "w.pth",
    )
    ours = create_model(arch, 50, dims=2, **options).double().eval()
    report = load_weights(ours, tmp_path / "w.pth")
    assert report.complete
    image = torch.randn(2, 3, 48, 40, dtype=torch.float64)
    assert torch.equal(ours(image), theirs(image))
    assert f"{arch}-50 for images, width 16" in str(report)
    video = create_model(arch, 50, **options).double().eval()
    report = load_weights(video, tmp_path / "w.pth", inflate="center")
    assert report.complete
    assert len(report.inflated) == 53
    assert report.difference is not None
    assert report.difference < 1e-12
    assert relative(video(image.unsqueeze(2).expand(-1, -1, 6, -1, -1)), theirs(image)) < 1e-12


PATTERNS: list[dict[str, Any]] = [
    {"temporal_kernels": "full"},
    {"temporal_kernels": "i3d"},
    {"temporal_kernels": "slow"},
    {"temporal_kernels": "c2d"},
    {
        "temporal_kernels": (5, 1, (3, 7), 3),
        "temporal_strides": (1, 2, 3, 1),
        "stem_temporal_kernel": 7,
        "stem_temporal_stride": 2,
    },
    {
        "temporal_kernels": "full",
        "temporal_strides": (1, 2, 2, 2),
        "shortcut_temporal_kernel": 1,
        "temporal_pool": 2,
    },
    {"temporal_kernels": "full", "shortcut_temporal_kernel": 5, "head_window": (2, 1, 1)},
    {"temporal_kernels": "slow", "rectify_identity": False, "temporal_strides": (1, 1, 2, 2)},
]


@pytest.mark.parametrize("options", PATTERNS)
@pytest.mark.parametrize(("arch", "depth"), [("resnet", 18), ("iresnet", 34), ("iresnet", 50)])
def test_centred_inflation_keeps_the_image_network(
    arch: str, depth: int, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    image_options = {key: value for key, value in options.items() if key == "rectify_identity"}
    if "head_window" in options:
        image_options["head_window"] = (1, 1, 1)
    image_net = randomised(create_model(arch, depth, dims=2, **image_options, **NARROW)).eval()
    torch.save(image_net.state_dict(), tmp_path / "w.pth")
    net = create_model(arch, depth, **options, **NARROW).double().eval()
    report = load_weights(net, tmp_path / "w.pth", inflate="center")
    image = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    for frames in (12, 17):
        assert relative(net(image.unsqueeze(2).expand(-1, -1, frames, -1, -1)), image_net(image)) < 1e-12
    assert report.difference is not None
    assert report.difference < 1e-12


def test_averaged_inflation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image_net = randomised(create_model("iresnet", 18, dims=2, **NARROW))
    torch.save(image_net.state_dict(), tmp_path / "w.pth")
    net = create_model("iresnet", 18, **NARROW).double()
    report = load_weights(net, tmp_path / "w.pth", inflate="average")
    kernel = image_net.layer2[1].conv2.weight
    for moment in range(3):
        torch.testing.assert_close(net.layer2[1].conv2.weight[:, :, moment], kernel / 3)
    torch.testing.assert_close(net.conv1.weight.sum(2), image_net.conv1.weight)
    assert report.difference is not None
    assert 1e-3 < report.difference < 1, "the frames before the first and after the last are zero"
    assert re.search(r"inflated +20 \(average\)", str(report))
    assert "averaged kernels see zeros" in str(report)


def test_a_failed_check_is_an_error(tmp_path: Path) -> None:
    state = create_model("iresnet", 18, dims=2, **NARROW).state_dict()
    state["layer2.0.bn1.running_var"].fill_(-1.0)
    torch.save(state, tmp_path / "w.pth")
    net = create_model("iresnet", 18, **NARROW)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(
        WeightsError,
        match="identical frames give logits that differ by nan from the image network's; "
        "expected less than 1e-06",
    ):
        load_weights(net, tmp_path / "w.pth", inflate="center")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_plain_image_weights_in_an_improved_video_network(tmp_path: Path) -> None:
    """A partial fit is loaded and reported: the BN of middle blocks differ, the shortcuts' convolutions find
    their place behind the pool.
    """
    torch.manual_seed(0)
    image_net = create_model("resnet", 50, dims=2, width=4, num_classes=9)
    torch.save(image_net.state_dict(), tmp_path / "w.pth")
    net = create_model("iresnet", 50, **NARROW)
    head = net.fc.weight.clone()
    report = load_weights(net, tmp_path / "w.pth", inflate="center")
    assert torch.equal(net.layer3[0].downsample[1].weight[:, :, 0], image_net.layer3[0].downsample[0].weight)
    assert torch.equal(net.layer3[0].downsample[2].running_var, image_net.layer3[0].downsample[1].running_var)
    assert torch.equal(net.fc.weight, head)
    # Eight blocks begin with a BN that an ordinary network has not (4 tensors each), and eight lack the last
    # one; fc is reinitialized.
    assert len(report.missing) == 8 * 4 + 2
    assert len(report.skipped) == 8 * 4 + 2
    assert report.difference == pytest.approx(0, abs=1e-9)
    text = str(report)
    assert "resnet-50 for images, width 4) -> iresnet-50 for video, width 4: 87." in text
    assert "9 classes in the file, 3 in the network, whose head is reinitialized: fc.weight, fc.bias" in text
    assert re.search(r"loaded +\d+\n  inflated +53 \(center\)\n  skipped +34\n", text)
    assert "no such tensor in the network: layer1.1.bn3.weight, layer1.1.bn3.bias" in text


def test_fine_tuning_replaces_the_head(tmp_path: Path) -> None:
    torch.save(
        {"model_state": create_model("iresnet", 18, width=4, num_classes=8).state_dict()}, tmp_path / "w.pyth"
    )
    net = create_model("iresnet", 18, **NARROW)
    report = load_weights(net, tmp_path / "w.pyth")
    assert report.missing == ["fc.weight", "fc.bias"]
    assert report.fraction == 1
    assert report.difference is None
    with pytest.raises(WeightsError, match="8 classes in the file, 3 in the network"):
        load_weights(net, tmp_path / "w.pyth", strict=True)


def save(path: Path, net: nn.Module) -> Path:
    torch.save(net.state_dict(), path)
    return path


def test_what_does_not_fit_fails_and_changes_nothing(tmp_path: Path) -> None:
    net = create_model("iresnet", 50, **NARROW)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for other, message in {
        "iresnet 101": r"iresnet-101 for video, width 4\) fit 5\d\.\d % of the tensors of iresnet-50 "
        "for video, width 4, expected at least 80 %; "
        r"it lacks 4 tensors, layer3.5.bn3.weight first; \d+ of its tensors have no place, "
        r"layer3.5.bn1.weight|layer3.6",
        "iresnet 18": "layer1.0.conv1.weight is .4, 4, 3, 3, 3., expected .4, 4, 1, 1, 1.; "
        "the file looks like iresnet-18 for video, width 4, the network is iresnet-50",
    }.items():
        arch, depth = other.split()
        path = save(tmp_path / "w.pth", create_model(arch, int(depth), **NARROW))
        with pytest.raises(WeightsError, match=f"^weights [^\n]*w.pth[^\n]*({message})"):
            load_weights(net, path)
    with pytest.raises(
        WeightsError,
        match=r"conv1.weight is \(8, 3, 5, 7, 7\), expected \(4, 3, 5, 7, 7\); "
        "the file looks like iresnet-50 for video, width 8",
    ):
        load_weights(net, save(tmp_path / "w.pth", create_model("iresnet", 50, width=8)))
    with pytest.raises(
        WeightsError,
        match=r"are an image network's: conv1.weight is .*; inflate them with inflate='average' or 'center'",
    ):
        load_weights(net, save(tmp_path / "w.pth", create_model("iresnet", 50, dims=2, **NARROW)))
    with pytest.raises(WeightsError, match=r"conv1.weight is \(4, 3, 5, 7, 7\), expected \(4, 3, 7, 7\)"):
        load_weights(create_model("iresnet", 50, dims=2, **NARROW), save(tmp_path / "w.pth", net))
    path = save(tmp_path / "w.pth", create_model("iresnet", 101, **NARROW))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert load_weights(net, path, min_fraction=0.4).fraction == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="inflate is 'mean'; expected None or one of average, center"):
        load_weights(net, path, inflate="mean")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    net = create_model("iresnet", 18, **NARROW)
    state = net.state_dict()
    del state["layer3.1.conv2.weight"]
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(net, tmp_path / "w.pth")
    assert report.missing == ["layer3.1.conv2.weight"]
    assert "missing      1 (reinitialized): layer3.1.conv2.weight" in str(report)
    with pytest.raises(
        WeightsError, match=r"fit 99.\d % .*expected all; it lacks 1 tensors, layer3.1.conv2.weight first"
    ):
        load_weights(net, tmp_path / "w.pth", strict=True)


def test_inflation_without_a_convolution_is_not_checked(tmp_path: Path) -> None:
    state = create_model("iresnet", 18, dims=2, **NARROW).state_dict()
    del state["layer3.1.conv2.weight"]
    torch.save(state, tmp_path / "w.pth")
    report = load_weights(create_model("iresnet", 18, **NARROW), tmp_path / "w.pth", inflate="center")
    assert report.difference is None


def test_files_without_counters_are_complete(tmp_path: Path) -> None:
    net = create_model("iresnet", 18, **NARROW)
    torch.save(
        {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")},
        tmp_path / "w.pth",
    )
    assert load_weights(net, tmp_path / "w.pth", strict=True).complete


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"backbone.blocks.0.attn.qkv.weight": torch.zeros(2)},
            "have no layout that is known .the first tensors are backbone.blocks.0.attn.qkv.weight.; "
            "expected",
        ),
        ({"epoch": 3}, "hold no tensors .but epoch.; expected a state dict, or one under state_dict"),
        ([torch.zeros(1)], "hold a list; expected a state dict"),
    ],
)
def test_unknown_files(contents: object, message: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"^weights [^\n]*w.pth [^\n]*{message}[^\n]*$"):
        load_weights(create_model("iresnet", 18, **NARROW), tmp_path / "w.pth")


def test_export_to_safetensors_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = create_model("iresnet", 18, **NARROW)
    save_checkpoint(
        tmp_path / "a.pyth",
        {
            "model_state": theirs.state_dict(),
            "optimizer_state": {"x": 1},
            "class_names": ["up", "down", "to the \u2190"],
            "epoch": 4,
            "cfg": "A: 1",
        },
    )
    export_safetensors(tmp_path / "a.pyth", tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert "to the" in file.metadata()["class_names"]
    weights = read_weights(tmp_path / "a.safetensors")
    assert weights.class_names == ["up", "down", "to the \u2190"]
    assert (weights.info["epoch"], weights.info["cfg"]) == (4, "A: 1")
    assert "optimizer_state" not in weights.info
    ours = create_model("iresnet", 18, **NARROW)
    report = load_weights(ours, tmp_path / "a.safetensors", strict=True)
    assert report.class_names == ["up", "down", "to the \u2190"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    )


def test_broken_safetensors(tmp_path: Path) -> None:
    contents = safetensors.torch.save(create_model("iresnet", 18, **NARROW).state_dict())
    for name, data in {
        "cut": contents[:-100],
        "head": contents[:40],
        "huge": b"\xff" * 7 + b"\x7f" + b"{" + contents[9:],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            WeightsError, match=f"^weights [^\n]*{name} cannot be read [^\n]*cut short[^\n]*$"
        ):
            read_weights(tmp_path / name)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "plain", {"note": "not json"})
    assert read_weights(tmp_path / "plain").info == {"note": "not json"}


def test_descriptions() -> None:
    with torch.device("meta"):
        for arch, depth in [
            ("iresnet", 200),
            ("resnet", 34),
            ("resstage", 152),
            ("iresgroup", 101),
            ("resgroupfix", 50),
        ]:
            assert describe(create_model(arch, depth, dims=2).state_dict()) == f"{arch}-{depth} for images"
        assert describe(create_cifar_model("iresnet", 164).state_dict()) == "iresnet-164 for images"
    assert describe({}) == "no residual network"


@pytest.mark.parametrize("extra", [0, 1])
def test_messages_name_four_tensors_at_most(tmp_path: Path, extra: int) -> None:
    torch.save(dict.fromkeys("abcd"[:4] + "e" * extra, 1), tmp_path / "w.pth")
    names = "a, b, c, d" + (" and 1 more" if extra else "")
    with pytest.raises(WeightsError, match=rf"hold no tensors \(but {names}\);"):
        read_weights(tmp_path / "w.pth")
