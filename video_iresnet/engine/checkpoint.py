"""Checkpoints: written atomically, read without executing code."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..models import ResNet, WeightsError, load_weights, read_weights
from ..models.weights import Weights, read_file
from ..runtime.errors import reason
from ..runtime.storage import atomic_write, path_manager, remove_leftovers

NAME = re.compile(r"checkpoint_epoch_(\d+)(?:_step_(\d+))?\.pyth")
BEST = "checkpoint_best.pyth"
POSITION: dict[str, type | tuple[type, ...]] = {
    "epoch": int,
    "step": int,
    "sums": (list, type(None)),
    "history": list,
    "skipped": int,
}


@dataclass
class Position:
    """The progress of a training: complete epochs, steps of the current one and the sums over them, the
    accuracies of all validations, and the number of steps that were skipped, as they were not finite.
    """

    epoch: int = 0
    step: int = 0
    sums: list[float] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0

    def validated(self) -> bool:
        return any(past["epoch"] == self.epoch for past in self.history)

    def is_best(self) -> bool:
        """Whether the last validation is the best one, by its first accuracy."""
        *_, last = self.history
        name = next(name for name in last if name != "epoch")
        return all(past[name] < last[name] for past in self.history[:-1])

    def __str__(self) -> str:
        return f"{self.epoch} epochs" + (f" and {self.step} steps" if self.step else "")

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


# What resuming needs.
STATE: dict[str, type | tuple[type, ...]] = {
    "position": dict,
    "model_state": dict,
    "optimizer_state": dict,
    "cfg": str,
    "class_names": list,
}


def read_position(contents: Mapping[str, Any]) -> Position | None:
    """Return the position in a checkpoint; None if another project wrote it.

    Until 2026-11, checkpoints had its fields at the top level, with `epoch` as the last complete one, from 0,
    and later ones did not count skipped steps.
    """
    fields = contents.get("position")
    if fields is None and "step" in contents:
        fields = {name: contents.get(name) for name in POSITION if name in contents}
        if isinstance(fields.get("epoch"), int):
            fields["epoch"] += 1
    if isinstance(fields, dict):
        fields = {"skipped": 0} | fields
    if not isinstance(fields, dict) or any(
        not isinstance(fields.get(name, ...), kind) for name, kind in POSITION.items()
    ):
        return None
    return Position(**{name: fields[name] for name in POSITION})


def checkpoint_name(epochs: int, steps: int = 0) -> str:
    """Return the file name after `epochs` epochs and `steps` steps."""
    return f"checkpoint_epoch_{epochs:05d}" + (f"_step_{steps:06d}" if steps else "") + ".pyth"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint. If the disk is full, an existing file remains. Raises InputError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how PyTorch reports a failed write
            raise OSError(reason(error.__context__ or error)) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first."""
    found = [
        (match, path)
        for path in folder.glob("checkpoint_epoch_*.pyth")
        if (match := NAME.fullmatch(path.name))
    ]
    return [path for match, path in sorted(found, key=lambda item: (int(item[0][1]), int(item[0][2] or 0)))]


def prune_checkpoints(folder: Path, kept: int) -> None:
    """Delete all but the latest `kept` checkpoints of a run."""
    for path in list_checkpoints(folder)[:-kept]:
        path.unlink()


def remove_unfinished(folder: Path) -> None:
    """Delete incomplete files of a `save_checkpoint` that was killed."""
    if folder.exists():
        remove_leftovers(folder)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU and check its contents (STATE) and checksums. Raises WeightsError."""
    state = read_file(path)
    if position := read_position(state):
        state["position"] = position.state_dict()
    lacking = [key for key, kind in STATE.items() if key not in state or not isinstance(state[key], kind)]
    if lacking:
        raise WeightsError(
            f"checkpoint {path} lacks {', '.join(lacking)} (it holds {', '.join(map(str, [*state][:4]))}); "
            "expected one that a training of this project wrote"
        )
    verify_checksums(path)
    return state


def verify_checksums(path: str | Path) -> None:
    """Verify the checksums, which PyTorch writes but does not compare. Raises WeightsError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise WeightsError(f"checkpoint {path} is damaged ({error}); take another one") from error
    if damaged:
        raise WeightsError(f"checkpoint {path} is damaged: {damaged} in it has another checksum")


def intact_before(path: Path) -> Path | None:
    """Return the latest readable checkpoint of the same run before this one."""
    checkpoints = list_checkpoints(path.parent)
    for older in reversed(checkpoints[: checkpoints.index(path)] if path in checkpoints else checkpoints):
        with contextlib.suppress(WeightsError):
            load_checkpoint(older)
            return older
    return None


def load_latest(path: Path) -> dict[str, Any]:
    """Return the checkpoint to resume from. If it is damaged, the WeightsError names an intact one."""
    try:
        return load_checkpoint(path)
    except WeightsError as error:
        older = intact_before(path)
        remedy = (
            f"{older} is intact: move {path.name} away to resume from it"
            if older
            else "no older checkpoint is intact: name another OUTPUT_DIR to train again"
        )
        raise WeightsError(f"{error}; {remedy}") from error


def read_tested(path: str, averaged: bool) -> Weights:
    """Return the weights to test, with `averaged` their moving average if there is one. If they are damaged,
    the WeightsError names an intact checkpoint.
    """
    try:
        file = path_manager.get_local_path(path)
        weights = read_weights(file, averaged)
        if path.endswith(".pyth") and read_position(weights.info):
            verify_checksums(file)
        return weights
    except WeightsError as error:
        older = intact_before(Path(path))
        if not older:
            raise
        raise WeightsError(f"{error}; {older} is intact: name it with TEST.CHECKPOINT_FILE_PATH") from error


def load_model_state(model: ResNet, tensors: dict[str, Any], path: str | Path) -> None:
    """Load the weights of a checkpoint into its network. Raises WeightsError if it is another network."""
    load_weights(model, Weights(str(path), tensors, [], {}), strict=True)


def export_safetensors(checkpoint: str | Path, path: Path) -> list[str]:
    """Write the weights of a checkpoint as safetensors, with what JSON can hold beside them (class names,
    config, ...), but the optimizer's state; returns the names of what JSON cannot hold.

    Raises WeightsError where the checkpoint cannot be read, InputError where the file cannot be written.
    """
    weights = read_weights(checkpoint)
    info, left_out = {}, []
    for key, value in weights.info.items():
        if str(key).startswith(("optimizer", "scaler", "model_state", "ema_")):
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
