"""Classes with a direction in their name, and what a mirrored clip of them shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DIRECTION = re.compile(r"(?<![a-z])(left|right)(?=wards?(?![a-z])|[^a-z]|$)")


class Directions(NamedTuple):
    """`partners`: classes that swap in a mirror. `fixed`: classes with a direction but no partner."""

    partners: dict[int, int]
    fixed: frozenset[int]


def directions(class_names: Sequence[str]) -> Directions:
    """Find classes whose names become each other, or no class, when "left" and "right" are swapped.

    If the words mean something else ("pulling it right out"), the class is merely never mirrored.
    """
    names = [
        re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in class_names
    ]  # TurnLeft -> turn left
    number = {name: label for label, name in enumerate(names)}
    partners, fixed = {}, set()
    for label, name in enumerate(names):
        mirrored = DIRECTION.sub(lambda match: "right" if match[0] == "left" else "left", name)
        if mirrored == name:
            continue
        if mirrored in number:
            partners[label] = number[mirrored]
        else:
            fixed.add(label)
    return Directions(partners, frozenset(fixed))
