"""Checkpoints: written whole or not at all, read as data and never as code."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..models import ResNet, WeightsError, load_weights, read_weights
from ..models.weights import Weights, read_file
from ..runtime.storage import atomic_write, remove_leftovers

NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
BEST = "checkpoint_best.pyth"
# What a run needs of a checkpoint to go on.
STATE: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "model_state": dict,
    "optimizer_state": dict,
    "cfg": str,
    "step": int,
    "sums": (list, type(None)),
    "history": list,
    "class_names": list,
}


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
    """A checkpoint of a run, on the CPU, with all that STATE lists and its checksums verified. Raises
    WeightsError.
    """
    state = read_file(path)
    lacking = [key for key, kind in STATE.items() if key not in state or not isinstance(state[key], kind)]
    if lacking:
        raise WeightsError(
            f"checkpoint {path} lacks {', '.join(lacking)} (it holds {', '.join(map(str, [*state][:4]))}); "
            "expected one that a training of this project wrote"
        )
    verify_checksums(path)
    return state


def verify_checksums(path: str | Path) -> None:
    """PyTorch writes checksums into a file, but does not compare them when it reads. Raises WeightsError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise WeightsError(f"checkpoint {path} is damaged ({error}); take another one") from error
    if damaged:
        raise WeightsError(f"checkpoint {path} is damaged: {damaged} in it has another checksum")


def intact_before(path: Path) -> Path | None:
    """The latest checkpoint before this one of the same run that can be read."""
    checkpoints = list_checkpoints(path.parent)
    for older in reversed(checkpoints[: checkpoints.index(path)] if path in checkpoints else checkpoints):
        with contextlib.suppress(WeightsError):
            load_checkpoint(older)
            return older
    return None


def load_model_state(model: ResNet, state: dict[str, Any], path: str | Path) -> None:
    """Copy the weights of one of our checkpoints into the network it was made from. Raises WeightsError where
    that is another one.
    """
    load_weights(model, Weights(str(path), state["model_state"], [], {}), strict=True)


def export_safetensors(checkpoint: str | Path, path: Path) -> list[str]:
    """Write the weights of a checkpoint as safetensors, with what JSON can hold beside them (class names,
    config, ...), but the optimizer's state; returns the names of what JSON cannot hold.

    Raises WeightsError where the checkpoint cannot be read, InputError where the file cannot be written.
    """
    weights = read_weights(checkpoint)
    info, left_out = {}, []
    for key, value in weights.info.items():
        if str(key).startswith("optimizer"):
            continue
        try:
            info[str(key)] = json.dumps(value)
        except (TypeError, ValueError):  # tensors
            left_out.append(str(key))
    contents = safetensors.torch.save(
        {key: value.contiguous() for key, value in weights.tensors.items()}, info
    )
    with atomic_write(path, "wb") as file:
        file.write(contents)
    return left_out
