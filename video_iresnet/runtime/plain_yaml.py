"""YAML as plain data, with unique keys and one line per mistake."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import InputError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, repeated lists or mappings (a few lines could expand to any
    amount of data), and numbers with more digits than Python accepts.
    """

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
                if key.value in seen:
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


def parse_yaml(text: str, name: str) -> Any:
    """Parse a YAML text. Raises InputError with `name`."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise InputError(f"{name} is not plain YAML: it is nested too deeply") from error
    except Exception as error:  # tags on unsuitable values fail in any way
        raise InputError(f"{name} is not plain YAML: {' '.join(str(error).split())}") from error
