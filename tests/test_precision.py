"""Half precision: what computes in it, and the check of the convolutions before."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, RunNet
from torch import Tensor, nn

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.engine import precision as precision_module
from video_iresnet.engine import probe as probe_module
from video_iresnet.engine.checkpoint import save_checkpoint
from video_iresnet.engine.precision import InFloat32, Precision, check, keep_in_float32, remembered, supports
from video_iresnet.engine.probe import HEADERS, ROUNDING, Layer, Measured, convolutions, probe, rows, verdict
from video_iresnet.engine.views import ViewStore
from video_iresnet.models import create_model
from video_iresnet.runtime.distributed import Processes
from video_iresnet.runtime.errors import InputError

CPU, HALF = torch.device("cpu"), torch.bfloat16
SIZE = (1, 3, 8, 32, 32)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "video_iresnet"


class Clock:
    """Shows a tenth of a second more at each look, whatever else the machine does."""

    now = 0.0

    @classmethod
    def perf_counter(cls) -> float:
        cls.now += 0.1
        return cls.now


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU support half precision, and compute it right, in float32 with rounded results, as fast as
    float32.
    """

    def in_half(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def compute(inputs: Tensor, weight: Tensor, *more: Any, **named: Any) -> Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return function(inputs, weight, *more, **named)
            with torch.autocast("cpu", enabled=False):
                inputs, weight = inputs.to(HALF).float(), weight.to(HALF).float()
                return function(inputs, weight, *more, **named).to(HALF)

        return compute

    monkeypatch.setattr(nn.functional, "conv3d", in_half(nn.functional.conv3d))
    monkeypatch.setattr(precision_module, "supports", lambda device, dtype: True)
    monkeypatch.setattr(probe_module, "time", Clock)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_precision_of_a_config(half: str) -> None:
    """Convolutions and linear layers compute in half precision, by key."""
    layer, inputs = nn.Linear(2, 3), torch.ones(1, 2)
    for enabled, expected in ((True, getattr(torch, half)), (False, torch.float32)):
        text = f"TRAIN.MIXED_PRECISION {enabled} TRAIN.HALF_DTYPE {half}"
        precision = build.build_precision(load_config(DEMO, text.split()), CPU)
        with precision.autocast():
            assert layer(inputs).dtype is expected
        assert layer(inputs).dtype is torch.float32
        assert precision.needs_scaler is (expected is torch.float16)


@pytest.mark.parametrize("key", ["TRAIN.HALF_DTYPE", "TRAIN.HALF_PROBLEMS"])
def test_keys_of_half_precision_are_checked_for_tests_too(key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} is half; expected one of .*float"):
        load_config(DEMO, ["TRAIN.ENABLE", "False", key, "half"])


def network() -> nn.Module:
    torch.manual_seed(0)
    net = create_model("iresnet", 18, width=4, num_classes=3)
    return net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def test_distinct_convolutions_of_a_network() -> None:
    """Of iR3D-18, by hand: the stem, four stages of four 3x3x3 convolutions, and three projections."""
    net = network()
    layers = convolutions(net, (2, *SIZE[1:]), training=True)
    found = {layer.names: layer for layer in layers}
    assert sorted(name for names in found for name in names) == sorted(
        name for name, module in net.named_modules() if isinstance(module, nn.Conv3d)
    )
    assert len(layers) == 1 + 2 + 3 * 3
    stem = found["conv1",]
    assert (stem.inputs, stem.weight, stem.stride, stem.padding) == (
        (2, 3, 8, 32, 32), (4, 3, 5, 7, 7), (1, 2, 2), (2, 3, 3)
    )  # fmt: skip
    assert (stem.input_gradient, stem.weight_gradient) == (False, True)  # clips need no gradient
    stage3 = found["layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2"]
    assert (stage3.inputs, stage3.stride, stage3.input_gradient) == ((2, 16, 4, 2, 2), (1, 1, 1), True)
    assert str(stage3) == "layer3.0.conv2 and 2 more (3x3x3, 16 -> 16 channels, input 2x16x4x2x2)"
    assert all(not parameter.is_meta for parameter in net.parameters())
    for layer in convolutions(net, SIZE, training=False):
        assert layer.parts() == ["output"]


def test_frozen_layers_need_no_gradient() -> None:
    net = network()
    for module in (net.conv1, net.bn1, net.layer1):
        module.requires_grad_(False)
    parts = {name: layer.parts() for layer in convolutions(net, SIZE, training=True) for name in layer.names}
    assert parts["layer1.1.conv2"] == ["output"]
    assert parts["layer2.0.conv1"] == ["output", "weight gradient"]
    assert parts["layer2.0.conv2"] == ["output", "input gradient", "weight gradient"]


class WrongOutput(nn.Conv3d):
    """10 % too much in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.1 if torch.is_autocast_enabled("cpu") else 1)


class Scaled(torch.autograd.Function):
    """The identity with a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class WrongWeightGradient(nn.Conv3d):
    """Infinite in half precision."""

    factor = math.inf

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor if torch.is_autocast_enabled("cpu") else 1.0
        weight = Scaled.apply(self.weight, factor)
        return nn.functional.conv3d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)


class NoWeightGradient(WrongWeightGradient):
    factor = math.nan


class WrongInputGradient(nn.Conv3d):
    """10 % too little in half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Scaled.apply(x, 0.9) if torch.is_autocast_enabled("cpu") else x)


class Slow(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            Clock.now += 0.05
        return super().forward(x)


def with_layer(kind: type[nn.Conv3d], name: str) -> nn.Module:
    net = network()
    net.get_submodule(name).__class__ = kind
    return net


PROBLEMS = {
    WrongOutput: "the output of {} is off by 10.0 %, where rounding gives 0.2 %",
    WrongWeightGradient: "the weight gradient of {} is not finite",
    NoWeightGradient: "the weight gradient of {} is not finite",
    WrongInputGradient: "the input gradient of {} is off by 10.0 %, where rounding gives 0.2 %",
    Slow: "{} takes 150 ms, where float32 takes 100",
}


def run_check(net: nn.Module, *, keep_float32: bool = False, training: bool = True) -> list[str]:
    return check(
        net, Precision("cpu", HALF), SIZE,
        processes=Processes(use_gpu=False), training=training, keep_float32=keep_float32,
    )  # fmt: skip


@pytest.mark.parametrize("kind", PROBLEMS, ids=lambda kind: kind.__name__)
def test_wrong_and_slow_convolutions_are_found(kind: type[nn.Conv3d], emulated: None) -> None:
    name = "layer2.1.conv1"
    layer = r"layer2.1.conv1 \(3x3x3, 8 -> 8 channels, input 1x8x8x4x4\)"
    message = PROBLEMS[kind].format(layer)
    with pytest.raises(
        InputError,
        match=rf"^bfloat16 cannot be trusted on [^\n]*: {message}; set TRAIN.HALF_PROBLEMS float32 to "
        "compute such layers in float32, or TRAIN.HALF_DTYPE float16, or TRAIN.MIXED_PRECISION False$",
    ):
        run_check(with_layer(kind, name))
    net = with_layer(kind, name)
    assert run_check(net, keep_float32=True) == [name]
    assert isinstance(net.get_submodule(name), kind)


def test_gradients_do_not_matter_in_testing(emulated: None) -> None:
    net = with_layer(WrongWeightGradient, "layer2.1.conv1")
    assert run_check(net, training=False) == []
    with pytest.raises(InputError, match=r"or TEST\.MIXED_PRECISION False$"):
        run_check(with_layer(WrongOutput, "layer2.1.conv1"), training=False)


def test_right_convolutions_pass(emulated: None, logged: pytest.LogCaptureFixture) -> None:
    logged.set_level("INFO")
    net = network()
    classes = [type(module) for module in net.modules()]
    assert run_check(net) == []
    assert classes == [type(module) for module in net.modules()]
    (message,) = logged.messages
    assert re.match(r"convolutions in bfloat16 agree with float32 \(errors of 0.2 % at most\) and", message)


def test_float32_needs_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "probe", None)
    arguments = {"processes": Processes(use_gpu=False), "training": True, "keep_float32": False}
    assert check(network(), Precision("cpu"), SIZE, **arguments) == []


@pytest.mark.parametrize(
    ("half", "others", "message"),
    [
        (
            "bfloat16",
            False,
            r"bfloat16 \(AVX512-BF16 or AMX\).*70 times .*; set TRAIN.MIXED_PRECISION False$",
        ),
        ("float16", True, "; set TRAIN.HALF_DTYPE bfloat16, or TRAIN.MIXED_PRECISION False$"),
    ],
)
def test_slow_reference_code_is_refused_at_once(
    half: str, others: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = getattr(torch, half)
    monkeypatch.setattr(precision_module, "supports", lambda device, asked: others and asked is not dtype)
    monkeypatch.setattr(precision_module, "probe", None)
    overrides = ["TRAIN.MIXED_PRECISION", "True", "TRAIN.HALF_DTYPE", half, "TRAIN.HALF_PROBLEMS", "float32"]
    with pytest.raises(InputError, match=f"^TRAIN.MIXED_PRECISION is True, but .* has no [^\n]*{message}"):
        build.check_precision(load_config(DEMO, overrides), network(), Processes(use_gpu=False))


def test_problem_layers_alone_compute_in_float32(emulated: None, logged: pytest.LogCaptureFixture) -> None:
    """They give the rounded numbers of float32; the layers beside them do not."""
    name, other = "layer2.1.conv1", "layer2.1.conv2"
    net = with_layer(WrongOutput, name)
    parameters, names = list(map(id, net.parameters())), list(net.state_dict())
    inputs = torch.randn(1, 8, 8, 4, 4)
    exact = {layer: net.get_submodule(layer)(inputs) for layer in (name, other)}
    assert run_check(net, keep_float32=True) == [name]
    assert logged.messages == [f"computing in float32 what is wrong or slow in bfloat16: {name}"]
    assert (list(map(id, net.parameters())), list(net.state_dict())) == (parameters, names)
    clone = copy.deepcopy(net)
    assert clone.get_submodule(name).weight is not net.get_submodule(name).weight
    keep_in_float32(clone, [name])  # the second time nothing changes
    assert run_check(net) == []  # a layer in float32 is right
    for model in (net, clone):
        assert torch.equal(model.get_submodule(name)(inputs), exact[name])
        with Precision("cpu", HALF).autocast():
            assert torch.equal(model.get_submodule(name)(inputs), exact[name].to(HALF))
            found = model.get_submodule(other)(inputs)
        assert found.dtype is HALF
        assert not torch.equal(found, exact[other].to(HALF))


@pytest.mark.parametrize("training", [True, False])
def test_problems_by_key(training: bool, emulated: None) -> None:
    """Each kind of run is checked at its own size, and its own key turns half precision on."""
    kind = "TRAIN" if training else "TEST"
    text = f"""DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 48 DATA.TEST_CROP_SIZE 64 {kind}.MIXED_PRECISION True
    TRAIN.HALF_PROBLEMS"""
    processes, net = Processes(use_gpu=False), with_layer(WrongOutput, "layer2.1.conv1")
    cfg = load_config(DEMO, [*text.split(), "error"])
    with pytest.raises(InputError, match="input 1x8x4x6x6" if training else "input 1x8x4x8x8"):
        build.check_precision(cfg, net, processes, training=training)
    cfg = load_config(DEMO, [*text.split(), "float32"])
    assert build.check_precision(cfg, net, processes, training=not training) == []
    assert build.check_precision(cfg, net, processes, training=training) == ["layer2.1.conv1"]


class SecondOfTwo(Processes):
    """The second process of a machine, whose first one found a problem."""

    def __init__(self) -> None:
        super().__init__(use_gpu=False)
        self.rank, self.local_size = 1, 2

    def gather(self, value: Any) -> list[Any]:
        return [{"layer2.1.conv1": "it is slow"}, value]


def test_processes_of_a_machine_follow_the_first(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "probe", None)
    net = network()
    arguments = {"processes": SecondOfTwo(), "training": True}
    with pytest.raises(InputError, match="it is slow; set"):
        check(net, Precision("cpu", HALF), SIZE, **arguments, keep_float32=False)
    assert check(net, Precision("cpu", HALF), SIZE, **arguments, keep_float32=True) == ["layer2.1.conv1"]
    assert isinstance(net.get_submodule("layer2.1.conv1"), InFloat32)
    assert not isinstance(net.get_submodule("layer2.1.conv2"), InFloat32)


def test_layers_in_float32_train(emulated: None) -> None:
    """Their gradients are those of float32, to the last bit."""
    layer = with_layer(WrongWeightGradient, "layer2.1.conv1").get_submodule("layer2.1.conv1")
    inputs, gradient = torch.randn(2, 1, 8, 8, 4, 4).to(HALF)
    (expected,) = torch.autograd.grad(layer(inputs.float()), layer.weight, gradient.float())
    root = nn.Sequential(layer)
    keep_in_float32(root, ["0"])
    with Precision("cpu", HALF).autocast():
        output = root(inputs)
    (found,) = torch.autograd.grad(output, layer.weight, gradient)
    assert torch.equal(found, expected)


def result(alike: int, exact: float, half: float, error: float = 0.0) -> Measured:
    """The times in milliseconds."""
    layer = Layer(
        tuple(map(str, range(alike))), "Conv3d", (1, 2, 4, 8, 8), (2, 2, 3, 3, 3), (1, 1, 1), (1, 1, 1),
        (1, 1, 1), 1, False, True, True,
    )  # fmt: skip
    errors = dict.fromkeys(layer.parts(), 0.0) | {"weight gradient": error}
    return Measured(layer, errors, (exact / 1000, half / 1000))


def test_verdicts() -> None:
    """Slow: by a quarter, by a millisecond, and by a fiftieth of the whole."""
    whole = [result(1, 60, 74), result(1, 30, 20), result(2, 3, 4.1), result(2, 2, 2.9), result(2, 1, 3)]
    whole += [result(1, 0.01, 0.9)]  # the whole: 102 ms
    assert [verdict(some, whole, HALF) for some in whole] == ["", "", "slow", "", "slow", ""]
    whole = [result(4, 0.1, 0.34), result(4, 0.1, 0.36)]
    assert [verdict(some, whole, HALF) for some in whole] == ["", "slow"]
    eps = 2**-7
    for error, expected in ((7.9 * eps, ""), (8.1 * eps, "wrong"), (float("inf"), "wrong")):
        assert verdict(result(1, 1, 1, error), whole, HALF) == expected
    assert verdict(result(1, 1, 1, 7.9 * eps), whole, torch.float16) == "wrong"


def test_table_of_results() -> None:
    results = [result(2, 2, 8, error=eps_of(1.5)), result(1, 8, 2)._replace(errors={"output": eps_of(0.25)})]
    results[1] = results[1]._replace(layer=results[1].layer._replace(groups=2))
    lines = [dict(zip(HEADERS, row, strict=True)) for row in rows(results, HALF)]
    assert lines[0] == {
        "convolution": "0 and 1 more (3x3x3, 2 -> 2 channels, input 1x2x4x8x8)", "layers": "2",
        "output": "0.00", "input gradient": "0.00", "weight gradient": "1.50",
        "float32, ms": "2.00", "half, ms": "8.00", "times as fast": "0.25", "verdict": "slow",
    }  # fmt: skip
    assert lines[1]["convolution"] == "0 (3x3x3, 2 -> 2 channels in 2 groups, input 1x2x4x8x8)"
    assert [lines[1][part] for part in ("output", "weight gradient", "verdict")] == ["0.25", "-", "right"]


def eps_of(number: float) -> float:
    return number * 2**-7


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is measured, and measure nothing."""
    runs: list[int] = []

    def measure(net: nn.Module, layers: list[Layer], *more: Any) -> list[Measured]:
        runs.append(len(layers))
        return [
            Measured(layer, dict.fromkeys(layer.parts(), 0.1 + number), (float(number), float("inf")))
            for number, layer in enumerate(layers)
        ]

    monkeypatch.setattr(precision_module, "probe", measure)
    return runs


def test_results_are_remembered(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, net = count_runs(monkeypatch), network()
    layers = convolutions(net, SIZE, training=True)
    first = remembered(net, layers, CPU, HALF)
    assert remembered(net, layers, CPU, HALF) == first
    assert len(runs) == 1
    (path,) = empty_cache.iterdir()
    assert json.loads(path.read_text())["about"]["torch"] == torch.__version__
    changes: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
        "dtype": lambda patch: torch.float16,
        "size": lambda patch: convolutions(net, (1, 3, 4, 32, 32), training=True),
        "testing": lambda patch: convolutions(net, SIZE, training=False),
        "torch": lambda patch: patch.setattr(torch, "__version__", "2.99"),
        "machine": lambda patch: patch.setattr("platform.node", lambda: "elsewhere"),
        "processor": lambda patch: patch.setattr(precision_module, "device_name", lambda device: "other"),
        "threads": lambda patch: patch.setattr(torch, "get_num_threads", lambda: 99),
        "instructions": lambda patch: patch.setattr(
            "torch.backends.cpu.get_cpu_capability", lambda: "AVX9"
        ),
    }  # fmt: skip
    for number, change in enumerate(changes.values(), start=2):
        with monkeypatch.context() as patch:
            changed = change(patch)
            remembered(
                net,
                changed if isinstance(changed, list) else layers,
                CPU,
                changed if isinstance(changed, torch.dtype) else HALF,
            )
        assert len(runs) == number
    assert remembered(net, layers, CPU, HALF) == first
    assert len(runs) == 1 + len(changes)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "cut": lambda stored: json.dumps(stored)[:-9],
    "empty": lambda stored: "",
    "other file": lambda stored: json.dumps({**stored, "about": {}}),
    "no results": lambda stored: json.dumps({"about": stored["about"]}),
    "fewer": lambda stored: json.dumps({**stored, "results": stored["results"][1:]}),
    "text": lambda stored: json.dumps({**stored, "results": ["ab"] * len(stored["results"])}),
    "deep": lambda stored: "[" * 99999,
    "list": lambda stored: "[1]",
    "no text": lambda stored: b"\xff\xfe",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_results_are_measured_again(
    damage: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, net = count_runs(monkeypatch), network()
    layers = convolutions(net, SIZE, training=True)
    first = remembered(net, layers, CPU, HALF)
    (path,) = empty_cache.iterdir()
    damaged = DAMAGE[damage](json.loads(path.read_text()))
    path.write_bytes(damaged if isinstance(damaged, bytes) else str(damaged).encode())
    for _ in range(2):
        assert remembered(net, layers, CPU, HALF) == first
    assert len(runs) == 2
    assert [file.name for file in empty_cache.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_ends_no_run(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, net = count_runs(monkeypatch), network()
    empty_cache.parent.mkdir()
    empty_cache.touch()
    for _ in range(2):
        remembered(net, convolutions(net, SIZE, training=True), CPU, HALF)
    assert len(runs) == 2


def test_a_small_memory_measures_fewer_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def measure(net: nn.Module, layers: list[Layer], *more: Any) -> list[Measured]:
        sizes.append(layers[0].inputs[0])
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return []

    monkeypatch.setattr(precision_module, "probe", measure)
    monkeypatch.setattr(precision_module, "supports", lambda device, dtype: True)
    check(
        network(), Precision("cpu", HALF), (9, *SIZE[1:]),
        processes=Processes(use_gpu=False), training=True, keep_float32=False,
    )  # fmt: skip
    assert sizes == [9, 4, 2]


def test_releases_of_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {8902: "", 90701: "", 90800: "9.8", 91002: "9.10", 91400: "9.14", 91500: "", 92100: ""}
    for version, release in expected.items():
        monkeypatch.setattr(precision_module, "cudnn_version", lambda version=version: version)
        text = precision_module._release(torch.device("cuda"))
        assert text == (release and f" (cuDNN {release} is known for wrong ones; 9.15 or later is not)")
    assert precision_module._release(CPU) == ""


@pytest.mark.skipif(not supports(CPU, HALF), reason="this CPU has no bfloat16 convolutions")
def test_this_machines_verdicts_against_doubles() -> None:
    """For an input of temporal size 2 too, whose weight gradient is garbage in PyTorch 2.13 to 2.15."""
    torch.manual_seed(0)
    net = network()
    layers = convolutions(net, SIZE, training=True)
    results = probe(net, layers, CPU, HALF)
    assert {layer.inputs[2] for layer in layers} == {8, 4, 2}
    for measured in results:
        layer = copy.deepcopy(net.get_submodule(measured.layer.names[0]))
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape).to(HALF))
        inputs = torch.randn(measured.layer.inputs).to(HALF).to(memory_format=torch.channels_last_3d)
        with Precision("cpu", HALF).autocast():
            output = layer(inputs)
        gradient = torch.randn(output.shape).to(HALF).to(memory_format=torch.channels_last_3d)
        (found,) = torch.autograd.grad(output, layer.weight, gradient)
        layer.double()
        (expected,) = torch.autograd.grad(layer(inputs.double()), layer.weight, gradient.double())
        error = float((found - expected).norm() / expected.norm())
        wrong = not error < 0.0625
        assert (verdict(measured, results, HALF) == "wrong") == wrong
        if not wrong:
            assert measured.errors["weight gradient"] == pytest.approx(ROUNDING / 2**7, rel=0.3)


def test_a_test_in_half_precision(
    small: list[str], tmp_path: Path, run_net: RunNet, emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores views of its own, whose probabilities are those of float32 up to rounding; so does one with
    other layers in float32.
    """
    torch.manual_seed(0)
    weights = tmp_path / "w.pyth"
    save_checkpoint(weights, {"model_state": build.build_model(load_config(DEMO, small)).state_dict()})
    run = [*small, "TRAIN.ENABLE", "False", "TEST.CHECKPOINT_FILE_PATH", str(weights), "OUTPUT_DIR"]
    run.append(str(tmp_path))
    half = [*run, "TEST.MIXED_PRECISION", "True", "TEST.FOLD_BN", "True"]
    assert run_net(*run) == 0
    assert run_net(*half) == 0
    monkeypatch.setattr(build, "check", lambda *more, **named: ["conv1"])
    assert run_net(*half) == 0
    stores = [ViewStore.open(folder) for folder in (tmp_path / "views").iterdir()]
    stored = {json.dumps(store.about["arithmetic"]): list(store) for store in stores}
    assert stored.keys() == {
        '{"half": "None", "float32_layers": []}',
        '{"half": "torch.bfloat16", "float32_layers": []}',
        '{"half": "torch.bfloat16", "float32_layers": ["conv1"]}',
    }
    exact, rounded = (stored[f'{{"half": "{half}", "float32_layers": []}}'] for half in ("None", HALF))
    errors = [
        np.abs(one.outputs[""]["probabilities"] - other.outputs[""]["probabilities"]).max()
        for one, other in zip(exact, rounded, strict=True)
    ]
    assert 1e-5 < max(errors) < 0.02


def test_a_run_in_half_precision(
    small: list[str], tmp_path: Path, run_net: RunNet, emulated: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is checked once, trains, validates and resumes; without the instructions it ends in one line."""
    run = [*small, "TRAIN.MIXED_PRECISION", "True", "OUTPUT_DIR", str(tmp_path), "TEST.ENABLE", "False"]
    assert run_net(*run) == 0
    assert capfd.readouterr().out.count("convolutions in bfloat16 agree with float32") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_module, "supports", lambda device, dtype: False)
        assert run_net(*run, "SOLVER.MAX_EPOCH", "3") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "TRAIN.MIXED_PRECISION is True, but" in line
