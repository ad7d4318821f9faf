"""Checkpoints: written whole or not at all, read as data and never as code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..models import ResNet, WeightsError, load_weights, read_weights
from ..models.weights import Weights, read_file
from ..runtime.storage import atomic_write, remove_leftovers

NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
BEST = "checkpoint_best.pyth"


def checkpoint_name(epochs: int, steps: int = 0) -> str:
    """The file name after `epochs` whole epochs and `steps` steps of the next."""
    return f"checkpoint_epoch_{epochs:05d}" + (f"_step_{steps:06d}" if steps else "") + ".pyth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts. Where the disk is full, the file that stood there before stays.
    Raises InputError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a failed write
            raise OSError(str(error.__context__ or error).splitlines()[0]) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run in the order in which they were made."""
    found = [
        (match, path)
        for path in folder.glob("checkpoint_epoch_*.pyth")
        if (match := NAME.fullmatch(path.name))
    ]
    return [path for match, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2] or 0)))]


def prune_checkpoints(folder: Path, kept: int) -> None:
    """Remove all but the latest `kept` checkpoints of a run."""
    for path in list_checkpoints(folder)[:-kept]:
        path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Remove what `save_checkpoint`s that were killed left in the folder of a run."""
    if folder.exists():
        remove_leftovers(folder)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint that `save_checkpoint` wrote, on the CPU. Raises WeightsError."""
    state = read_file(path)
    if not isinstance(state.get("model_state"), dict):
        raise WeightsError(
            f"checkpoint {path} has no model_state (it holds {', '.join(map(str, list(state)[:4]))}); "
            "expected a .pyth of this project"
        )
    return state


def load_model_state(model: ResNet, state: dict[str, Any], path: str | Path) -> None:
    """Copy the weights of one of our checkpoints into the network it was made from. Raises WeightsError where
    that is another one.
    """
    load_weights(model, Weights(str(path), state["model_state"], [], {}), strict=True)


def export_safetensors(checkpoint: str | Path, path: Path) -> None:
    """Write the weights of a checkpoint as safetensors, with all that is not a tensor or the optimizer's
    (class names, config, ...) as JSON.

    Raises WeightsError where the checkpoint cannot be read, InputError where the file cannot be written.
    """
    weights = read_weights(checkpoint)
    info = {key: json.dumps(value) for key, value in weights.info.items() if not key.startswith("optimizer")}
    contents = safetensors.torch.save(
        {key: value.contiguous() for key, value in weights.tensors.items()}, info
    )
    with atomic_write(path, "wb") as file:
        file.write(contents)
