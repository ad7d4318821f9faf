"""Folders for the Hugging Face Hub: read back bit for bit, refused where damaged, with a card that tells the
figures of the run. Nothing here uses the network.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO, ROOT, load_script, write_video
from huggingface_hub import ModelCard, constants
from safetensors import safe_open

from video_iresnet import build
from video_iresnet.config import load_config
from video_iresnet.engine.checkpoint import save_checkpoint
from video_iresnet.engine.views import weights_hash
from video_iresnet.inference import hub, load, read_trained
from video_iresnet.inference.card import fenced, markdown
from video_iresnet.inference.hub import HubClassifier
from video_iresnet.models import WeightsError
from video_iresnet.runtime.errors import InputError

MAIN = load_script("tools/export.py").main
HOSTILE = ["up | down", "`rm`\n---\nlicense: mit", "<script>alert(1)</script>", "[a](https://b.c)", "{{ 1 }}"]
NAMES = [*HOSTILE, "Füße 動画", "*bold*", "\x1b[31m"]
RESULTS: dict[str, Any] = {
    "top1_acc": 61.25, "top5_acc": 87.5, "top1_acc_interval": [51.5, 70.75],
    "top1_acc_readable": 61.25, "top5_acc_readable": 87.5,
    "num_videos": 96, "num_failed": 0, "num_classes": 8, "protocol": "2x3 @32, clips of 4x2",
    "by_views": {"1x1": {"top1_acc": 58.5, "top5_acc": 81.0}, "2x3": {"top1_acc": 61.25, "top5_acc": 87.5}},
    "temporal_checks": {"reversed": {"top1_acc": 13.75, "top5_acc": 44.5}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_folder(small: list[str], tmp_path: Path) -> Path:
    """What a tested run leaves behind."""
    folder = tmp_path / "run"
    cfg = load_config(DEMO, [*small, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    network = build.build_network(cfg, torch.device("cpu"))
    stamp = {"code": "0.1.0, commit abc", "torch": "2.14.1", "train_list": "24 records with hash 12"}
    state = {"model_state": network.state_dict(), "cfg": cfg.dump(), "class_names": NAMES, "stamp": stamp}
    save_checkpoint(folder / "checkpoints/checkpoint_epoch_00002.pyth", state)
    stamp = {"weights": weights_hash(network.state_dict())[:16], "test_list": "96 records with hash 34"}
    (folder / "results.json").write_text(json.dumps(RESULTS | {"stamp": stamp}))
    return folder


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    assert MAIN(["--checkpoint", str(run_folder), "--out", str(tmp_path / "hub/demo")]) == 0
    return tmp_path / "hub/demo"


def test_a_folder_gives_the_same_classifier(run_folder: Path, folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["demo"]
    theirs, ours = read_trained(run_folder, "cpu"), HubClassifier.from_pretrained(folder, device="cpu")
    state = ours.trained.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in theirs.network.state_dict().items())
    clips = torch.randn(2, 3, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(ours.trained.network(clips), theirs.network(clips))
    assert ours.class_names == NAMES
    assert (ours.whole.num_clips, ours.whole.num_crops) == (2, 3)
    video = str(write_video(tmp_path / "a.mp4", 20))
    expected = load(run_folder, "cpu")(video)
    assert (ours(video).probabilities == expected.probabilities).all()
    # And without huggingface_hub.
    assert (load(folder, "cpu")(video).probabilities == expected.probabilities).all()
    few = HubClassifier.from_pretrained(folder, device="cpu", clips=1, crops=1)
    assert (few.whole.num_clips, few.whole.num_crops) == (1, 1)


def test_a_folder_that_was_read_is_written_again(folder: Path, tmp_path: Path) -> None:
    HubClassifier.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_holds_no_paths_of_this_machine(run_folder: Path, folder: Path) -> None:
    for path in folder.iterdir():
        assert b"/tmp" not in path.read_bytes()
        assert str(run_folder.parent).encode() not in path.read_bytes()
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_card_tells_the_figures_of_the_run(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == {
        "library_name": "video_iresnet",
        "license": "other",
        "license_name": "to-be-filled",
        "pipeline_tag": "video-classification",
        "tags": ["action-recognition", "model_hub_mixin", "pytorch"],
    }
    text = card.text
    for figures in ("96 videos, 0 failed; chance 12.50", "2x3 views +61.25 +87.50", "frames reversed +13.75"):
        assert re.search(figures, text)
    assert "95 % interval of top-1: 51.50 to 70.75" in text
    assert "Accuracy on test\\.csv, 96 records with hash 34. Protocol: 2x3 \\@32, clips of 4x2." in text
    assert "List of videos: train\\.csv, 24 records with hash 12." in text
    assert "code 0.1.0, commit abc, torch 2.14.1" in text
    assert "0.13 million parameters" in text
    assert "  WIDTH_PER_GROUP: 4\n" in text
    assert "Licence: left to fill." in text


def test_the_card_of_an_image_network_says_so(tmp_path: Path) -> None:
    cfg = load_config(str(ROOT / "configs/cifar/iresnet20.yaml"), ["RESNET.WIDTH_PER_GROUP", "4"])
    network = build.build_network(cfg, torch.device("cpu"))
    state = {"model_state": network.state_dict(), "cfg": cfg.dump(), "class_names": list("abcdefghij")}
    save_checkpoint(tmp_path / "run/checkpoints/checkpoint_epoch_00001.pyth", state)
    assert MAIN(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "hub")]) == 0
    card = ModelCard.load(tmp_path / "hub/README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["model_hub_mixin", "pytorch"]
    assert re.search(
        r"\nA residual network \(.*\) that classifies pictures, .*\ntakes pictures at 32 ", card.text
    )
    assert 'classify("picture.jpg")' in card.text
    assert "video.mp4" not in card.text
    assert "of time" not in card.text


def test_names_of_classes_are_only_names(folder: Path) -> None:
    text = ModelCard.load(folder / "README.md").text
    rows = re.findall(r"^\| \d .*$", text, re.MULTILINE)
    assert rows == [
        r"| 0 | up \| down |",
        r"| 1 | \`rm\`\\n---\\nlicense\: mit |",
        r"| 2 | \<script\>alert(1)\<\/script\> |".replace(r"\/", "/"),
        r"| 3 | \[a\](https\://b\.c) |",
        r"| 4 | \{\{ 1 \}\} |",
        r"| 5 | Füße 動画 |",
        r"| 6 | \*bold\* |",
        r"| 7 | \\x1b\[31m |",
    ]
    assert fenced("a\n````\nb") == "`````\na\n````\nb\n`````"
    assert markdown("1 - 2, 'a'") == "1 - 2, 'a'"


@pytest.mark.parametrize("change", ["other weights", "no results"])
def test_figures_of_other_weights_are_not_told(change: str, run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "results.json"
    if change == "no results":
        path.unlink()
    else:
        results = json.loads(path.read_text())
        path.write_text(json.dumps(results | {"stamp": {"weights": "0" * 16, "test_list": ""}}))
    HubClassifier(read_trained(run_folder, "cpu")).save_pretrained(tmp_path / "out")
    text = ModelCard.load(tmp_path / "out/README.md").text
    assert "Not tested: there are no results for these weights." in text
    assert "61.25" not in text


def test_results_that_are_damaged_are_one_clear_line(run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "results.json"
    results = json.loads(path.read_text())
    del results["by_views"]
    path.write_text(json.dumps(results))
    with pytest.raises(
        InputError, match=r"results.json is no results.json of a test \('by_views'\); run the test"
    ):
        HubClassifier(read_trained(run_folder, "cpu")).save_pretrained(tmp_path / "out")


def test_a_folder_without_card_is_read(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert HubClassifier.from_pretrained(folder, device="cpu").class_names == NAMES


def changed(contents: dict[str, Any], **keys: Any) -> str:
    """config.json with other values of keys such as MODEL__NUM_CLASSES."""
    for key, value in keys.items():
        section, _, name = key.partition("__")
        contents["config"][section][name] = value
    return json.dumps(contents)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: "{", "config.json cannot be used \\(Expecting property name"),
        (lambda c: "[]", "config.json cannot be used \\(list indices"),
        (lambda c: "[" * 100_000, "config.json cannot be used \\("),
        (lambda c: '{"config": {}}', "config.json cannot be used \\('class_names'\\)"),
        (lambda c: json.dumps(c | {"config": "A: &a 1"}), "holds no config"),
        (
            lambda c: json.dumps(c | {"class_names": "up"}),
            "class_names in .*config.json is up; expected a list",
        ),
        (
            lambda c: json.dumps(c | {"class_names": [1]}),
            "class_names in .* is \\[1\\]; expected a list of texts",
        ),
        (lambda c: json.dumps(c | {"class_names": ["up"]}), "names 1 classes, but its network has 8"),
        (lambda c: changed(c, MODEL__NUM_CLASSES="many"), "MODEL.NUM_CLASSES"),
        (lambda c: changed(c, MODEL__NUM_CLASSES=10**9), "MODEL.NUM_CLASSES"),
        (lambda c: changed(c, DATA__SAMPLER="sideways"), "DATA.SAMPLER"),
        (lambda c: changed(c, RESNET__DEPTH=34), "model.safetensors .*fit .* % of the tensors"),
    ],
)
def test_a_changed_config_is_one_clear_line(change: Any, message: str, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises((InputError, WeightsError), match=message) as caught:
        HubClassifier.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="owner/gone is no folder here, and cannot be loaded from the Hugging"
    ):
        HubClassifier.from_pretrained("owner/gone")
    with pytest.raises(InputError, match="a/b/c is no folder here, and cannot be loaded from the Hugging"):
        HubClassifier.from_pretrained("a/b/c")
    with pytest.raises(
        InputError, match=r"holds no config\.json; expected a folder that tools/export.py wrote"
    ):
        HubClassifier.from_pretrained(tmp_path)


def test_only_safetensors_are_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"model.safetensors cannot be read"):
        HubClassifier.from_pretrained(folder, device="cpu")


def test_nothing_is_overwritten(run_folder: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "README.md").read_bytes()
    assert MAIN(["--checkpoint", str(run_folder), "--out", str(folder)]) == 1
    assert re.fullmatch(r"error: --out \S* exists; name another one, .*\n", capsys.readouterr().err)
    assert (folder / "README.md").read_bytes() == before


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, hub.__name__)
    with pytest.raises(
        InputError, match=r"the Hugging Face Hub needs a package .*; pip install 'video_iresnet\[hub\]'$"
    ):
        importlib.import_module(hub.__name__)
