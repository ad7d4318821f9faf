"""The label of a video: its class, or all of its classes where videos have many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Label: TypeAlias = int | tuple[int, ...]
"""A class, or where videos have any number of them the ascending classes."""


def classes_of(label: Label) -> tuple[int, ...]:
    """Return the classes of a label."""
    return (label,) if isinstance(label, int) else label


def label_text(label: Label) -> str:
    """Return a label as lists have it: `7`, `3,17,42`, or `""` for no class."""
    return ",".join(map(str, classes_of(label))) or '""'


def label_names(label: Label, class_names: Sequence[str]) -> str:
    """Return the classes of a label with their names."""
    return ", ".join(f"{number} {class_names[number]}".strip() for number in classes_of(label)) or "no class"


def exchanged(label: Label, partners: Mapping[int, int]) -> Label:
    """Return a label with its classes replaced by their partners."""
    if isinstance(label, int):
        return partners.get(label, label)
    return tuple(sorted(partners.get(number, number) for number in label))


def label_tensor(labels: Sequence[Label]) -> Tensor:
    """Return B labels as (B,) classes, or where videos have many as (B, N), filled up with -1."""
    longest = max((len(label) for label in labels if not isinstance(label, int)), default=0)
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels)
    rows = [[*classes_of(label), *[-1] * (longest - len(classes_of(label)))] for label in labels]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), longest)
