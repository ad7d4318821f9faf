"""The mutation check changes what it says, and only that."""

from __future__ import annotations

import ast
from pathlib import Path

from mutate import changes

SOURCE = '''"""A module with the number 7."""

LIMIT: int = 3


def find(values: list[int], é: str = "5") -> int:
    """Docs of 9 lines."""
    total = 0
    for value in values:
        if value < LIMIT and not é:
            total += value
        elif value is None:
            raise ValueError(f"{value + 1} is {value * 2}")
    log.info("%d", 8)
    values.sort(reverse=True)
    return total
'''


def test_each_change_is_one_place(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    lines = SOURCE.splitlines()
    found = []
    for change in changes(path):
        changed = change.apply(SOURCE).splitlines()
        ast.parse("\n".join(changed))
        ((before, after),) = [pair for pair in zip(lines, changed, strict=True) if pair[0] != pair[1]]
        found.append((before.strip(), after.strip()))
    assert found == [
        ("LIMIT: int = 3", "LIMIT: int = (4)"),
        ("total = 0", "total = (1)"),
        ("if value < LIMIT and not é:", "if (value < LIMIT or not é):"),
        ("if value < LIMIT and not é:", "if (value <= LIMIT) and not é:"),
        ("if value < LIMIT and not é:", "if value < LIMIT and (é):"),
        ("total += value", "pass"),
        ("elif value is None:", "elif (value is not None):"),
        ('raise ValueError(f"{value + 1} is {value * 2}")', "pass"),
        ("values.sort(reverse=True)", "pass"),
        ("values.sort(reverse=True)", "values.sort(reverse=False)"),
    ]
