"""YAML that remembers in which line each key stands, and refuses a key that stands twice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """What a YAML file says.

    Attributes:
        content: plain values.
        lines: of each key and each entry of a list, by its path from the top, counted from 1.
        doubles: keys that stand twice in one mapping, each as its path and its two lines.
    """

    content: Any
    lines: dict[Place, int]
    doubles: tuple[tuple[Place, int, int], ...]

    def line(self, place: Sequence[Any]) -> int | None:
        """Of the innermost key on the way to a place that stands in the file."""
        for end in range(len(place), 0, -1):
            if tuple(place[:end]) in self.lines:
                return self.lines[tuple(place[:end])]
        return None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 3e-4 for a word; here it is a number, as in YAML 1.2."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str | bytes) -> Document:
    """Read one document.

    Raises:
        yaml.YAMLError: it is none.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        doubles: list[tuple[Place, int, int]] = []
        if node is not None:
            _walk(node, (), lines, doubles)
        content = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    return Document(content, lines, tuple(doubles))


def _walk(
    node: yaml.Node,
    place: Place,
    lines: dict[Place, int],
    doubles: list[tuple[Place, int, int]],
) -> None:
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            lines[(*place, number)] = entry.start_mark.line + 1
            _walk(entry, (*place, number), lines, doubles)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            here, line = (*place, key.value), key.start_mark.line + 1
            if here in lines:
                doubles.append((here, lines[here], line))
            lines[here] = line
            _walk(value, here, lines, doubles)
