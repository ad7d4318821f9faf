"""Classes that tell left from right: what a mirrored clip of a class shows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

DIRECTION = re.compile(r"(?<![a-z])(left|right)(?=wards?(?![a-z])|[^a-z]|$)")


class Directions(NamedTuple):
    """`partners`: classes that become each other in a mirror, both ways. `fixed`: classes with a direction in
    their name and no partner.
    """

    partners: dict[int, int]
    fixed: frozenset[int]


def directions(class_names: Sequence[str]) -> Directions:
    """Found from the names: "left" and "right" exchanged give the name of another class, or of none.

    Where the words mean something else ("pulling it right out"), a class is fixed without need, which costs
    no more than its mirror images.
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
