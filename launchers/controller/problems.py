"""All that is wrong with a file at once, each with its line; what a model's checks say, located.

Pydantic stops at the first check across keys that fails, and does not say where in the file it
looked. So what is at fault is found by leaving out: without it, the same is not said any more.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from carbs.launchers.controller.yaml_lines import Document, Place

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
    document: Document,
    describe: Callable[[Any, Mapping[str, Any]], tuple[Place, str]],
    *,
    instead: Mapping[str, Any],
    stands_for: Mapping[str, str],
    names: str,
) -> list[Problem]:
    """Everything that the model refuses in a file, in the order of its lines.

    Args:
        model: that the content is to meet.
        content: of the file, and maybe of the command line.
        document: the file as it was read, for the lines.
        describe: the place of an error of pydantic's in the file, and what to say.
        instead: for required keys that are missing or wrong, so that the others can be judged.
        stands_for: keys that may stand in place of a required one.
        names: the key whose entries other keys refer to: once one of these is wrong, no more is
            said of how keys go together.
    """
    left = deepcopy(dict(content))
    problems: list[Problem] = []
    removed: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        errors = _errors(model, left)
        if errors and not errors[0]["loc"] and any(p.where.startswith(names) for p in problems):
            break
        before = deepcopy(left)
        places: set[Place] = set()
        for error in errors:
            # What is missing now only because it was wrong before is no news.
            known = _lacking(model, left, error["msg"], instead, removed)
            if known is not None:
                left[known] = instead[known]
                continue
            place, message = describe(error, left)
            if len(place) < 2 and error["type"] != "missing":
                place = _culprit(model, left, place, error["msg"], instead)
            problems.append(Problem(message, ".".join(map(str, place)), document.line(place)))
            if place:
                places.add(place)
                continue
            missing = _lacking(model, left, error["msg"], instead, set(instead))
            if missing is not None:
                left[missing] = instead[missing]
        for place in sorted(places, key=str, reverse=True):  # the last of a list first
            _leave_out(left, place)
            removed |= {stands_for.get(str(place[0]), str(place[0]))} - set(left)
        if left == before or names not in left:
            break
    return sorted(problems, key=lambda problem: problem.line or 0)


def _errors(model: type[BaseModel], content: Mapping[str, Any]) -> list[Any]:
    try:
        model.model_validate(content)
    except ValidationError as error:
        return list(error.errors())
    return []


def _culprit(
    model: type[BaseModel],
    content: Mapping[str, Any],
    place: Place,
    message: str,
    instead: Mapping[str, Any],
) -> Place:
    """The key, or the entry below a key, without which nothing of the kind is said."""

    def errors_without(place: Place) -> float:
        """How many there are then; infinitely many where the same is said, or a key is missing."""
        rest = deepcopy(dict(content))
        _leave_out(rest, place)
        errors = _errors(model, rest)
        is_no_better = any(
            _gist(e["msg"]) == _gist(message) or e["type"] == "missing" for e in errors
        )
        return math.inf if is_no_better else len(errors)

    keys = [str(place[0])] if place else list(content)[::-1]
    counts = {key: 0 if place else errors_without((key,)) for key in keys}
    keys.sort(key=lambda key: key in instead)  # a key that must be there is rather right
    # Keys that can be left out as a whole come before the entries of those that cannot.
    for key in sorted(keys, key=lambda key: counts[key]):
        found = [(errors_without((key, entry)), entry) for entry in _entries(content.get(key))]
        fewest, entry = min(found, key=lambda one: one[0], default=(math.inf, ""))
        if fewest < math.inf:
            return key, entry
        if counts[key] < math.inf:
            return place or (key,)
    return place


def _lacking(
    model: type[BaseModel],
    content: Mapping[str, Any],
    message: str,
    instead: Mapping[str, Any],
    keys: set[str],
) -> str | None:
    """The one of these keys with which the message is not given any more."""
    for key in instead:
        if key in keys and key not in content:
            errors = _errors(model, {**content, key: instead[key]})
            if not any(error["msg"] == message for error in errors):
                return key
    return None


def _gist(message: str) -> str:
    """Without the list of what there is, from which something may have been left out."""
    return re.sub(r"\[.*?\]", "", message)


def _entries(value: Any) -> list[str | int]:
    if isinstance(value, list):
        return list(range(len(value)))
    return list(value) if isinstance(value, dict) else []


def _leave_out(content: dict[str, Any], place: Place) -> None:
    """Without a key, or without an entry of one."""
    key, *below = place
    value = content.get(str(key))
    if below and isinstance(value, (list, dict)) and len(value) > 1:
        entries: Any = value
        if below[0] in _entries(value):
            del entries[below[0]]
        return
    content.pop(str(key), None)
