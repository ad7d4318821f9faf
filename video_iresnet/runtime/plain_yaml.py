"""YAML as plain data, with unique keys and one line per mistake."""

from __future__ import annotations

import ast
from contextlib import suppress
from typing import Any

import yaml

from .errors import InputError

# Characters of a number or list given as text.
LONGEST_LITERAL = 1000


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, repeated lists or mappings (a few lines could expand to any
    amount of data), and numbers with more digits than Python accepts.
    """

    last_wins = False

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="an alias of a list or of keys; write them out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen and not self.last_wins:
                    raise yaml.MarkedYAMLError(
                        problem=f"key {key.value} comes twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 1000:
            raise yaml.MarkedYAMLError(
                problem="a number of more than 1000 digits", problem_mark=node.start_mark
            )
        return super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _LastWins(_Loader):
    """Takes the last of several values of a key, as PyYAML does."""

    last_wins = True


class _Dumper(yaml.SafeDumper):
    """Writes a key a line, and lists within their line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def parse_yaml(text: str, name: str, *, last_wins: bool = False) -> Any:
    """Parse a YAML text. `last_wins`: of a key that comes several times, take the last value. Raises
    InputError with `name`.
    """
    try:
        return yaml.load(text, _LastWins if last_wins else _Loader)
    except RecursionError as error:
        raise InputError(f"{name} is not plain YAML: it is nested too deeply") from error
    except Exception as error:  # tags on unsuitable values fail in any way
        raise InputError(f"{name} is not plain YAML: {' '.join(str(error).split())}") from error


def dump_yaml(tree: Any) -> str:
    """Return nested dicts as YAML, one key a line."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
    return text


def literal(text: str) -> Any:
    """Return the number, truth value or list that a text spells; the text itself if it spells none."""
    if len(text) <= LONGEST_LITERAL:
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return ast.literal_eval(text)
    return text
