"""JSON Schema of the sweep file, for editors: from the models that read it.

In the file a parameter is a mapping of its own, ``width: {space: log, min: 16, ...}``; the models
hold a list of parameters whose space is a model within. What the models' docstrings say of a key is
what the editor shows beside it.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any, get_args

from pydantic import BaseModel

from carbs.launchers.controller.config import SweepConfig
from carbs.search_space import Param
from carbs.spaces import Space


def sweep_schema() -> dict[str, Any]:
    """Of a sweep file, in JSON Schema 2020-12."""
    schema = SweepConfig.model_json_schema()
    schema |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "carbs sweep"}
    schema["properties"]["parameters"] = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"minLength": 1},
        "additionalProperties": {"oneOf": [_parameter(space) for space in _spaces()]},
    }
    _describe(schema, SweepConfig)
    del schema["properties"]["was"]  # stands with its parameter
    schema["oneOf"] = [{"required": ["function"]}, {"required": ["command"]}]
    for model in _models(SweepConfig):
        if model.__name__ in schema["$defs"]:
            _describe(schema["$defs"][model.__name__], model)
    for unused in ("Param", *(space.__name__ for space in _spaces())):
        schema["$defs"].pop(unused, None)
    finite: dict[str, Any] = _finite(schema)
    return finite


def _spaces() -> tuple[type[BaseModel], ...]:
    union = get_args(Space)[0]  # Annotated[A | B | ..., discriminator]
    return get_args(union)


def _parameter(space: type[BaseModel]) -> dict[str, Any]:
    """A parameter with this space, as it stands in the file."""
    own = Param.model_json_schema()["properties"]
    fields = space.model_json_schema()
    _describe(fields, space)
    kind = fields["properties"].pop("kind")
    values = {key: own[key] for key in ("search_center", "when", "role")}
    # One value, or a list of them.
    entry = values["when"]["additionalProperties"]
    values["when"]["additionalProperties"] = {"anyOf": [entry, entry["items"]]}
    described: dict[str, Any] = {"properties": values}
    _describe(described, Param)
    values["fixed"] = {"description": "The one value that new trials have."}
    values["was"] = {"description": "The value in trials from before it was added."}
    return {
        "type": "object",
        "title": f"space: {kind['const']}",
        "description": _summary(space),
        "properties": {"space": {"const": kind["const"]}, **fields["properties"], **values},
        "required": ["space", *fields.get("required", [])],
        "anyOf": [{"required": ["search_center"]}, {"required": ["fixed"]}],
        "additionalProperties": False,
    }


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The models of a model's fields, and theirs."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        waiting = [field.annotation]
        while waiting:
            kind = waiting.pop()
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                found += [kind, *_models(kind)]
            else:
                waiting += [arg for arg in get_args(kind) if arg is not kind]
    return found


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Each key's description from its line in the model's docstring."""
    docs = inspect.getdoc(model) or ""
    if "description" in schema:
        schema["description"] = _summary(model)
    for names, text in re.findall(
        r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", docs.partition("s:\n")[2], re.MULTILINE
    ):
        for name in names.split(", "):
            if name in schema["properties"]:
                said = re.sub(r":\w+:`(\w+)`", r"`\1`", " ".join(text.split())).replace("``", "`")
                schema["properties"][name]["description"] = said[0].upper() + said[1:]
                schema["properties"][name].pop("title", None)


def _summary(model: type[BaseModel]) -> str:
    return (inspect.getdoc(model) or "").splitlines()[0]


def _finite(value: Any) -> Any:
    """Without defaults that JSON has no words for: bounds that are not there."""
    if isinstance(value, dict):
        return {
            key: _finite(entry)
            for key, entry in value.items()
            if not (key == "default" and isinstance(entry, float) and not math.isfinite(entry))
        }
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
