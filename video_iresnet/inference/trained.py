"""Read a trained network with everything that using it needs from one file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import build
from ..config import Config, parse_config, validate
from ..engine.checkpoint import list_checkpoints, read_position, read_tested
from ..models import ResNet, load_weights
from ..runtime.errors import InputError
from .pretrained import is_pretrained, read_pretrained


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, the config of its training, and the names of its classes (their numbers
    where the training had none). `path`: its file. `info`: what else the file holds.
    """

    network: ResNet
    cfg: Config
    class_names: list[str]
    path: str
    info: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        return self.network.fc.weight.device

    def __str__(self) -> str:
        cfg = self.cfg
        position = read_position(self.info)
        after = f" after {position}" if position else ""
        return (
            f"{cfg.MODEL.ARCH}-{cfg.RESNET.DEPTH}{after}, {cfg.MODEL.NUM_CLASSES} classes, clips of "
            f"{build.clip_text(cfg)} @{cfg.DATA.TEST_CROP_SIZE}"
        )


def read_trained(
    path: str | os.PathLike[str], device: str | torch.device | None = None, *, averaged: bool = True
) -> Trained:
    """Read a checkpoint, one exported to safetensors, the latest checkpoint of a run's OUTPUT_DIR, or a
    folder of the Hugging Face Hub (see pretrained.py).

    `device`: by default a GPU if there is one. `averaged`: take the moving average of the weights, if there
    is one. Raises InputError or WeightsError if the file is no checkpoint of this project or is damaged.
    """
    weights = read_pretrained(Path(path)) if is_pretrained(path) else read_tested(_file(path), averaged)
    file = weights.name
    cfg = parse_config(weights.info.get("cfg"))
    if cfg is None:
        raise InputError(
            f"{file} holds no config of a training of this project, which says what network it is and what "
            "clips it takes; expected what tools/run_net.py or tools/export.py wrote"
        )
    cfg.TRAIN.ENABLE, cfg.TEST.ENABLE = False, True
    try:
        validate(cfg)
    except InputError as error:
        raise InputError(f"the config in {file} cannot be used: {error}") from error
    network = build.build_network(cfg, torch.device("cpu"))
    load_weights(network, weights, strict=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = weights.class_names or [str(label) for label in range(cfg.MODEL.NUM_CLASSES)]
    if len(names) != cfg.MODEL.NUM_CLASSES:
        raise InputError(f"{file} names {len(names)} classes, but its network has {cfg.MODEL.NUM_CLASSES}")
    return Trained(network.to(device).eval(), cfg, names, file, weights.info)


def _file(path: str | os.PathLike[str]) -> str:
    """Return the file of weights that a path means."""
    if not os.path.isdir(path):
        return os.fspath(path)
    checkpoints = list_checkpoints(Path(path, "checkpoints"))
    if not checkpoints:
        raise InputError(
            f"{os.fspath(path)} holds no checkpoints; name the OUTPUT_DIR of a training, or a checkpoint"
        )
    return str(checkpoints[-1])
