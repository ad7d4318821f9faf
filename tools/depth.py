"""Training of resnet and iresnet with growing depth, at equal settings: python tools/depth.py
[--steps 150] [--seeds 2].

Each network memorizes 64 fixed random images or clips of 4 classes with SGD, 16 per step. The table
shows the gradient norm of the first stage at the first step and its median over the steps, and the loss: the
first, and the mean of the last ten steps (chance: 1.386). Prints a table as Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from video_iresnet.runtime.ending import exit_code  # isort: skip, so Ctrl-C ends slow imports in one line

import torch
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from video_iresnet.models import ResNet, create_cifar_model, create_model

CLASSES = 4
NETWORKS: dict[str, tuple[Callable[[str], ResNet], tuple[int, ...]]] = {
    "164, 2D, three stages, width 4": (
        lambda arch: create_cifar_model(arch, 164, width=4, num_classes=CLASSES),
        (16, 16),
    ),
    "1001, 2D, three stages, width 4": (
        lambda arch: create_cifar_model(arch, 1001, width=4, num_classes=CLASSES),
        (16, 16),
    ),
    "200, 3D, width 4": (lambda arch: create_model(arch, 200, width=4, num_classes=CLASSES), (4, 32, 32)),
    "404, 3D, width 4": (lambda arch: create_model(arch, 404, width=4, num_classes=CLASSES), (4, 32, 32)),
}


class Run(NamedTuple):
    losses: list[float]
    gradients: list[float]


def train(net: ResNet, inputs: Tensor, labels: Tensor, steps: int, learning_rate: float) -> Run:
    """Return losses and gradient norms of the first stage, by step."""
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4)
    run = Run([], [])
    for step in range(steps):
        batch = torch.arange(step * 16, (step + 1) * 16) % len(inputs)
        loss = F.cross_entropy(net(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in net.stages[0].parameters() if p.grad is not None]
        run.losses.append(loss.item())
        run.gradients.append(torch.nn.utils.get_total_norm(gradients).item())
        optimizer.step()
    return run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    options = parser.parse_args(arguments)
    return exit_code(lambda: compare(options))


def compare(options: argparse.Namespace) -> None:
    """Train all networks and print the table."""
    torch.set_num_threads(1)  # more threads make such small layers slower
    torch.set_flush_denormal(True)  # with vanishing gradients, denormal numbers make steps take seconds
    rows = []
    for name, (create, size) in NETWORKS.items():
        for arch in ("resnet", "iresnet"):
            for seed in tqdm(range(options.seeds), desc=f"{arch}, {name}", leave=False):
                torch.manual_seed(seed)
                inputs, labels = torch.randn(64, 3, *size), torch.arange(64) % CLASSES
                run = train(create(arch), inputs, labels, options.steps, options.learning_rate)
                first, median, last = (
                    run.gradients[0],
                    statistics.median(run.gradients),
                    statistics.mean(run.losses[-10:]),
                )
                rows.append(
                    (
                        name,
                        arch,
                        seed,
                        *(f"{value:.1e}" for value in (first, median)),
                        *(f"{value:.3f}" for value in (run.losses[0], last)),
                    )
                )
    headers = [
        "depth",
        "network",
        "seed",
        "gradient, first step",
        "gradient, median",
        "loss, first step",
        "loss, last 10 steps",
    ]
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
