"""Checkpoints: written whole or not at all, read as data and never as code."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime.errors import InputError
from ..runtime.storage import atomic_write, path_manager

NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
BEST = "checkpoint_best.pyth"


def checkpoint_name(epochs: int, steps: int = 0) -> str:
    """The file name after `epochs` whole epochs and `steps` steps of the next."""
    return f"checkpoint_epoch_{epochs:05d}" + (f"_step_{steps:06d}" if steps else "") + ".pyth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts. Where the disk is full, the file that stood there before stays. Raises InputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a failed write
            raise OSError(str(error.__context__ or error).splitlines()[0]) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run in the order in which they were made."""
    found = [(match, path) for path in folder.glob("checkpoint_epoch_*.pyth") if (match := NAME.fullmatch(path.name))]
    return [path for match, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2] or 0)))]


def prune_checkpoints(folder: Path, kept: int) -> None:
    """Remove all but the latest `kept` checkpoints of a run."""
    for path in list_checkpoints(folder)[:-kept]:
        path.unlink()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's contents, on the CPU. Raises InputError where the file is not one of ours."""
    try:
        with path_manager.open(str(path), "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PyTorch warns of in foreign files, the errors below say
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"checkpoint {path} is damaged or holds more than tensors, numbers and texts, and was not loaded; expected a .pyth of this project"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"checkpoint {path} cannot be read ({(str(error) or type(error).__name__).splitlines()[0]}); take another one, or remove it"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("model_state"), dict):
        keys = ", ".join(map(str, list(state)[:4])) if isinstance(state, dict) else type(state).__name__
        raise InputError(f"checkpoint {path} has no model_state (it holds {keys}); expected a .pyth of this project")
    return state


def load_model_state(model: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    """Copy the weights into a model of the same architecture and class count. Raises InputError where it differs."""
    ours, theirs = model.state_dict(), state["model_state"]
    head = "fc.weight"
    if head in theirs and theirs[head].shape[1:] == ours[head].shape[1:] and len(theirs[head]) != len(ours[head]):
        classes = len(theirs[head])
        raise InputError(f"checkpoint {path} has {classes} classes, but MODEL.NUM_CLASSES is {len(ours[head])}; set it to {classes}")
    missing = [key for key in ours if key not in theirs]
    unknown = [key for key in theirs if key not in ours]
    other = [key for key in ours if key in theirs and theirs[key].shape != ours[key].shape]
    for what, keys in (("lacks", missing), ("has, beyond the network's,", unknown), ("has in other shapes", other)):
        if keys:
            raise InputError(f"checkpoint {path} {what} {len(keys)} of the tensors, {keys[0]} first; MODEL and RESNET must be as in its training")
    model.load_state_dict(theirs)
