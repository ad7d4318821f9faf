"""Complexity: against counts by hand, on every config, and as MODEL_ZOO.md states it."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT, load_script
from torch import nn

from video_iresnet.engine.complexity import complexity
from video_iresnet.models import create_model

ZOO = [line for line in (ROOT / "MODEL_ZOO.md").read_text().splitlines() if line.startswith("| `configs/")]


def test_by_hand() -> None:
    """A grouped convolution puts out 6 x 2 x 3 x 3 numbers, each of 3 x 3 products; a linear layer 5 numbers,
    each of 108 products.
    """
    model = nn.Sequential(
        nn.Conv3d(3, 6, (1, 3, 3), (2, 2, 2), groups=3),
        nn.BatchNorm3d(6),
        nn.Flatten(),
        nn.Linear(6 * 2 * 3 * 3, 5),
    ).train()
    cost = complexity(model, (4, 7, 7))
    outputs = 6 * 2 * 3 * 3
    assert cost == (6 * 9 + 6 + 12 + outputs * 5 + 5, outputs * 9 + outputs * 5, outputs + 5)
    assert model.training


def test_published_multiply_adds() -> None:
    with torch.device("meta"):
        cost = complexity(create_model("iresnet", 50), (16, 224, 224))
    assert (cost.parameters, round(cost.multiply_adds / 1e9, 3)) == (46_999_760, 93.140)


@pytest.mark.parametrize("line", ZOO, ids=lambda line: line.split("`")[1])
def test_model_zoo_states_what_is_true(line: str) -> None:
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    assert load_script("tools/complexity.py").row(str(ROOT / cells[0].strip("`"))) == cells[:7]
    assert cells[7] == "not trained here"


def test_model_zoo_has_every_config() -> None:
    configs = [
        path.relative_to(ROOT)
        for name in ("kinetics", "ssv2")
        for path in (ROOT / "configs" / name).glob("*.yaml")
    ]
    assert {line.split("`")[1] for line in ZOO} == set(map(str, configs))


def test_the_tool(capsys: pytest.CaptureFixture[str]) -> None:
    main = load_script("tools/complexity.py").main
    assert main(["--cfg", str(ROOT / "configs/kinetics/SLOW_8x8_R50.yaml")]) == 0
    assert "32,454,096" in capsys.readouterr().out
    assert main(["--cfg", "absent.yaml"]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read absent.yaml")


def test_depth_tool_prints_its_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = load_script("tools/depth.py")
    monkeypatch.setattr(
        depth, "NETWORKS", {"18": (lambda arch: create_model(arch, 18, width=2, num_classes=4), (2, 32, 32))}
    )
    depth.main(["--steps", "2", "--seeds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["resnet", "iresnet"]
