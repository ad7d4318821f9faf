"""Exported files compute what the network does, say how they are used, and are written only then."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import DEMO, load_script
from torch import Tensor

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.engine.checkpoint import save_checkpoint
from video_iresnet.inference import Classifier, Trained, export, read_trained
from video_iresnet.inference.export import ExportedNetwork, export_onnx, export_torch
from video_iresnet.inference.parity import compare_on_clips, compare_on_videos, read_videos
from video_iresnet.runtime.errors import InputError

NAMES = [f"class {i}" for i in range(8)]
MAIN = load_script("tools/export.py").main


def write_checkpoint(path: Path, overrides: list[str]) -> Path:
    """A network with random weights, the statistics of random clips, and logits of some size."""
    cfg = load_config(DEMO, overrides)
    torch.manual_seed(0)
    network = build.build_network(cfg, torch.device("cpu")).train()
    with torch.no_grad():
        size = 4, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE
        for _ in range(30):
            network(torch.randn(size))
        network.fc.weight *= 2
    save_checkpoint(path, {"model_state": network.state_dict(), "cfg": cfg.dump(), "class_names": NAMES})
    return path


@pytest.fixture(scope="module")
def checkpoint(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("trained") / "a.pyth", small)


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> Trained:
    return read_trained(checkpoint, "cpu")


@pytest.fixture(scope="module")
def by_onnx(trained: Trained) -> ExportedNetwork:
    return export_onnx(trained)


@pytest.fixture(scope="module")
def by_torch(trained: Trained) -> ExportedNetwork:
    return export_torch(trained)


def clips(number: int, size: int = 32) -> np.ndarray:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (number, 3, 4, size, size), dtype=np.uint8)


def expected(trained: Trained, pixels: np.ndarray) -> Tensor:
    """The network's own logits, by the formula of the normalization."""
    with torch.inference_mode():
        return trained.network((torch.from_numpy(pixels).float() / 255 - 0.45) / 0.225)


def run_onnx(contents: bytes, inputs: np.ndarray) -> Tensor:
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: inputs})[0])


def test_onnx_takes_pixels_and_any_batch(trained: Trained, by_onnx: ExportedNetwork) -> None:
    for number in (1, 3, 5):
        logits = run_onnx(by_onnx.contents, clips(number))
        assert logits.dtype == torch.float32
        difference = (logits - expected(trained, clips(number))).abs().max()
        assert difference < 1e-4 < 0.5 < logits.abs().max()


def test_an_onnx_file_says_how_it_is_used(trained: Trained, by_onnx: ExportedNetwork) -> None:
    model = onnx.load_from_string(by_onnx.contents)
    (entry,) = model.metadata_props
    assert entry.key == "video_iresnet"
    about = json.loads(entry.value)
    assert about["class_names"] == NAMES
    assert (about["mean"], about["std"], about["input_type"]) == ([0.45] * 3, [0.225] * 3, "uint8")
    assert [about[key] for key in ("num_frames", "sampler", "sampling_rate")] == [4, "dense", 2]
    assert [about[key] for key in ("short_side", "crop_size", "clips", "crops")] == [32, 32, 2, 3]
    assert about["format"].startswith("ONNX (opset ")
    shapes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"clips": ["batch", 3, 4, 32, 32], "logits": ["batch", 8]}
    # The four normalizations after additions remain; the others are in the convolutions.
    operations = [node.op_type for node in model.graph.node]
    assert operations.count("Conv") == 20
    assert operations.count("BatchNormalization") < 8


def test_torch_export_takes_normalized_clips(trained: Trained, tmp_path: Path) -> None:
    exported = export_torch(trained, input_type="float32")
    (tmp_path / "a.pt2").write_bytes(exported.contents)
    files = {"video_iresnet.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=files).module()
    for number in (1, 3):
        inputs = (torch.from_numpy(clips(number)).float() / 255 - 0.45) / 0.225
        with torch.inference_mode():
            assert (program(inputs) - expected(trained, clips(number))).abs().max() < 1e-4
    about = json.loads(files["video_iresnet.json"])
    assert about["class_names"] == NAMES
    assert about["input"] == "clips (batch, 3, 4, 32, 32) of float32, RGB, (value / 255 - mean) / std"
    assert compare_on_clips(trained, exported).logits < 1e-4  # which normalizes by itself


def test_files_hold_no_paths_of_this_machine(by_torch: ExportedNetwork, by_onnx: ExportedNetwork) -> None:
    root = str(Path(export.__file__).parents[1]).encode()
    assert root not in by_onnx.contents
    assert root not in by_torch.contents


def test_int8_quantizes_all_convolutions(trained: Trained, by_onnx: ExportedNetwork) -> None:
    exported = export_onnx(trained, precision="int8")
    model = onnx.load_from_string(exported.contents)
    operations = [node.op_type for node in model.graph.node]
    assert operations.count("ConvInteger") == 20
    assert "Conv" not in operations
    weights = [sum(w.dims) and w.data_type for w in model.graph.initializer if len(w.dims) == 5]
    assert weights == [onnx.TensorProto.UINT8] * 20
    logits, exact = run_onnx(exported.contents, clips(3)), expected(trained, clips(3))
    assert 1e-4 < (logits - exact).abs().max() < 0.3 * exact.abs().max()
    assert compare_on_clips(trained, exported).logits > 1e-4


def test_float16_computes_in_half_precision(trained: Trained, by_torch: ExportedNetwork) -> None:
    half = export_torch(trained, precision="float16")
    found = compare_on_clips(trained, half)
    assert 1e-4 < found.logits < 0.05 * found.largest
    assert len(half.contents) < 0.75 * len(by_torch.contents)
    logits = half.logits(torch.from_numpy(clips(2)))
    assert logits.dtype == torch.float32
    assert (logits - expected(trained, clips(2))).abs().max() < 0.05 * found.largest


@pytest.mark.slow
def test_an_overflow_in_float16_is_refused(checkpoint: Path) -> None:
    trained = read_trained(checkpoint, "cpu")
    with torch.no_grad():
        trained.network.fc.weight *= 1e6
    with pytest.raises(InputError, match="the exported network's logits are not finite in float16; "):
        compare_on_clips(trained, export_torch(trained, precision="float16"))


def test_a_file_that_differs_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fold_wrongly(network: Any) -> Any:
        folded = original(network)
        with torch.no_grad():
            folded.fc.bias += 0.01
        return folded

    original = export.fold_batch_norm
    monkeypatch.setattr(export, "fold_batch_norm", fold_wrongly)
    assert MAIN(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "a.pt2")]) == 1
    assert re.fullmatch(
        r"error: the exported network is another one: on random clips logits differ by up to 1.0e-02 .*\n",
        capsys.readouterr().err,
    )
    assert not list(tmp_path.iterdir())


def test_the_accuracy_of_both_is_shown(
    shapes: Path, checkpoint: Path, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a list of one's own; a video that cannot be read counts as wrong for both."""
    out, videos = tmp_path / "new/a.pt2", tmp_path / "list.csv"
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    rows = [line.rsplit(maxsplit=1) for line in (shapes / "test.csv").read_text().splitlines()]
    labels = [int(label) for _, label in rows]
    lines = [f"{shapes / name} {label}" for name, label in rows]
    videos.write_text("\n".join([*lines, "empty.mp4 0"]))
    arguments = ["--checkpoint", str(checkpoint), "--videos", str(videos)]
    assert MAIN([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    classify = Classifier(trained)
    guesses = [[guess.label for guess in classify(str(shapes / name)).top(5)] for name, _ in rows]
    top1 = 100 / 12 * sum(label == found[0] for label, found in zip(labels, guesses, strict=True))
    top5 = 100 / 12 * sum(label in found for label, found in zip(labels, guesses, strict=True))
    assert "12 videos, 1 failed, 2x3 @32, clips of 4x2\n" in printed
    for name in ("original", "exported"):
        assert re.search(rf"{name} +{top1:.2f} +{top5:.2f}\n", printed)
    assert "the same most probable class for 11 of 11 videos; probabilities differ by up to " in printed
    assert torch.export.load(out).module()(torch.from_numpy(clips(2))).shape == (2, 8)


def test_a_change_of_accuracy_is_seen(shapes: Path, trained: Trained, by_onnx: ExportedNetwork) -> None:
    """Of a network whose classes are exchanged."""
    data = read_videos(trained, str(shapes / "test.csv"))
    same = compare_on_videos(trained, by_onnx, data)
    assert (same.original, same.agreeing, same.readable) == (same.exported, 11, 11)
    assert 0 < same.change < 1e-5
    other = dataclasses.replace(by_onnx, logits=lambda clips: by_onnx.logits(clips).roll(1, 1))
    moved = compare_on_videos(trained, other, data)
    assert (moved.original, moved.agreeing) == (same.original, 0)
    assert moved.change > 0.1
    data.records = [record._replace(label=(record.label + 1) % 8) for record in data.records]
    assert compare_on_videos(trained, other, data).exported == same.original


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--out", "a.onx"],
            "--out is a.onx; expected a name in .onnx, .pt2 or .safetensors, or a folder's without",
        ),
        (
            ["--out", "a.pt2", "--precision", "int8"],
            "int8 is offered for ONNX alone; name a file that ends in .onnx",
        ),
        (
            ["--out", "a.pt2", "--videos", "gone.csv"],
            "gone.csv does not exist; name a list of videos with labels",
        ),
        (
            ["--out", "a.safetensors", "--precision", "float16"],
            "--precision is for .onnx and .pt2, and --out is a.safetensors; leave it out",
        ),
        (["--out", "old.onnx"], "--out old.onnx exists; name another one, or remove it"),
    ],
)
def test_mistakes_are_one_clear_line(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.onnx").write_text("kept")
    assert MAIN(["--checkpoint", str(checkpoint), *arguments]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_a_missing_package_is_named(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"^ONNX needs a package .*onnxscript.*\[onnx\]'$"):
        export_onnx(trained)


@pytest.mark.slow
def test_a_network_of_50_layers(small: list[str], tmp_path: Path) -> None:
    """Of bottlenecks, with fewer channels than the paper's."""
    trained = read_trained(write_checkpoint(tmp_path / "a.pyth", [*small, "RESNET.DEPTH", "50"]), "cpu")
    assert compare_on_clips(trained, export_onnx(trained, input_type="float32")).logits < 1e-4


@pytest.mark.slow
def test_a_network_of_18_layers(trained: Trained, by_torch: ExportedNetwork) -> None:
    """Of basic blocks, with fewer channels than the paper's."""
    assert compare_on_clips(trained, by_torch).logits < 1e-4
    found = compare_on_clips(trained, export_onnx(trained, precision="float16"))
    assert 1e-4 < found.logits < 0.05 * found.largest
