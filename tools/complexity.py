"""Complexity of networks, one row per config: python tools/complexity.py --cfg CONFIG.yaml [MORE.yaml ...].

Prints a table as Markdown: parameters, and for one view multiply-adds (1e9) at the training and at the test
crop, and activations (1e6, the numbers that convolutions and linear layers put out) at the training crop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import torch
from tabulate import tabulate

from video_iresnet.build import build_model, clip_text
from video_iresnet.config import load_config
from video_iresnet.engine.complexity import complexity

ROOT = Path(__file__).resolve().parents[1]
HEADERS = [
    "config",
    "clip",
    "views",
    "parameters",
    "GMACs @train crop",
    "GMACs @test crop",
    "activations (M)",
]


def row(path: str) -> list[str]:
    """Return the row of a config."""
    cfg = load_config(path)
    with torch.device("meta"):
        model = build_model(cfg)
        train, test = (
            complexity(model, (cfg.DATA.NUM_FRAMES, size, size))
            for size in (cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE)
        )
    absolute = Path(path).resolve()
    name = absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else absolute
    costs = [
        f"{cost.multiply_adds / 1e9:.2f} @{size}"
        for cost, size in ((train, cfg.DATA.TRAIN_CROP_SIZE), (test, cfg.DATA.TEST_CROP_SIZE))
    ]
    views = f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}"
    return [
        f"`{name}`",
        clip_text(cfg),
        views,
        f"{train.parameters:,}",
        *costs,
        f"{train.activations / 1e6:.1f}",
    ]


def table(paths: list[str]) -> None:
    """Print a row for each config."""
    print(tabulate([row(path) for path in paths], headers=HEADERS, tablefmt="github", disable_numparse=True))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", nargs="+", required=True, metavar="CONFIG.yaml")
    options = parser.parse_args(arguments)
    return exit_code(lambda: table(options.cfg))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
