"""All that is wrong with a file at once, each with its line; what a model's checks say, located.

Pydantic stops at the first check across keys that fails, and does not say where in the file it
looked. So what is at fault is found by leaving out: without it, the same is not said any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

Place = tuple[str | int, ...]
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        message: what, and what to do about it.
        where: the keys that lead there, such as ``parameters.width.max``; empty for the whole file.
        line: in the file, from 1; None where it stands nowhere in it.
    """

    message: str
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


def find_problems(
    model: type[BaseModel],
    content: Mapping[str, Any],
    text: str,
    describe: Callable[[Any, Mapping[str, Any]], tuple[Place, str]],
    *,
    instead: Mapping[str, Any],
    names: str,
) -> list[Problem]:
    """Everything that the model refuses in a file, in the order of its lines.

    Args:
        model: that the content is to meet.
        content: of the file.
        text: the same as it was read, for the lines.
        describe: the place of an error of pydantic's in the file, and what to say.
        instead: for required keys that are missing or wrong, so that the others can be judged.
        names: the key whose entries other keys refer to: once one of these is wrong, no more is
            said of how keys go together.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    left = deepcopy(dict(content))
    problems: list[Problem] = []
    for _ in range(_MOST_ROUNDS):
        errors = _errors(model, left)
        if errors and not errors[0]["loc"] and any(p.where.startswith(names) for p in problems):
            break
        places: list[Place] = []
        for error in errors:
            place, message = describe(error, left)
            if len(place) < 2 and error["type"] != "missing":
                place = _culprit(model, left, place, error["msg"])
            where = ".".join(map(str, place))
            problems.append(Problem(message, where, line_of(root, place)))
            places.append(place)
        if not errors or () in places:
            break
        for place in sorted(set(places), key=str, reverse=True):  # the last of a list first
            _leave_out(left, place, instead)
        if names not in left:
            break
    return sorted(problems, key=lambda problem: problem.line or 0)


def line_of(root: yaml.Node | None, place: Sequence[str | int]) -> int | None:
    """The line at which a value stands, or that in which it is missing; None for none."""
    node, line = root, None
    for part in place:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = (node.value[part],) * 2 if part < len(node.value) else None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _errors(model: type[BaseModel], content: Mapping[str, Any]) -> list[Any]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []


def _culprit(
    model: type[BaseModel], content: Mapping[str, Any], place: Place, message: str
) -> Place:
    """The key, or the entry below a key, without which nothing of the kind is said."""

    def errors_without(place: Place) -> float:
        """How many there are then; infinitely many where the same is said, or a key is missing."""
        rest = deepcopy(dict(content))
        _leave_out(rest, place, {})
        errors = _errors(model, rest)
        is_no_better = any(
            _gist(e["msg"]) == _gist(message) or e["type"] == "missing" for e in errors
        )
        return math.inf if is_no_better else len(errors)

    keys = [str(place[0])] if place else list(content)[::-1]
    # First the keys that can be left out as a whole, then the entries of those that cannot.
    whole = [key for key in keys if place or errors_without((key,)) < math.inf]
    for key in [*whole, *(key for key in keys if key not in whole)]:
        found = [(errors_without((key, entry)), entry) for entry in _entries(content.get(key))]
        fewest, entry = min(found, key=lambda one: one[0], default=(math.inf, ""))
        if fewest < math.inf:
            return key, entry
        if key in whole:
            return place or (key,)
    return place


def _gist(message: str) -> str:
    """Without the list of what there is, from which something may have been left out."""
    return re.sub(r"\[.*?\]", "", message)


def _entries(value: Any) -> list[str | int]:
    if isinstance(value, list):
        return list(range(len(value)))
    return list(value) if isinstance(value, dict) else []


def _leave_out(content: dict[str, Any], place: Place, instead: Mapping[str, Any]) -> None:
    """Without a key or an entry of one; a required key gets another value."""
    key, *below = place
    value = content.get(str(key))
    if below and isinstance(value, (list, dict)) and len(value) > 1:
        entries: Any = value
        if below[0] in _entries(value):
            del entries[below[0]]
        return
    content.pop(str(key), None)
    if key in instead:
        content[str(key)] = instead[str(key)]
