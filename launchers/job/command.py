"""A command line to be filled in: ``python train.py --lr {learning_rate} {overrides}``.

A word in braces stands for a parameter, ``{mix.code}`` for the weight of a mixture's component, and

    {overrides}     key=value for every parameter, in Hydra's grammar, each a word of its own
    {params_file}   a JSON file that holds all parameters
    {seed}          of the trial
    {folder}        of the job, for logs and scratch
    {checkpoints}   the folder that all attempts at the trial share
    {shared}        the folder that all jobs of the sweep share
    {python}        the Python that runs carbs

A parameter of one of these names comes first; ``{{`` and ``}}`` are braces. The line is split into
words as a shell would, before anything is filled in: a value with a blank or a quote stays one
word, and no shell sees it. With ``shell`` it is a script for bash, and what is filled in is quoted.
"""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

EXTRAS = ("overrides", "params_file", "seed", "folder", "checkpoints", "shared", "python")
_ALL_PARAMETERS = {"overrides", "params_file"}
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
# What Hydra reads as a string without quotes; words that it reads as something else are not.
_PLAIN_WORD = re.compile(r"[A-Za-z_][\w/.-]*")
_NO_STRINGS = {"true", "false", "null", "nan", "inf"}


class Command(BaseModel):
    """A command with placeholders.

    Attributes:
        words: of the command; with ``is_shell`` one, the whole script.
        is_shell: whether bash runs it.
        measures_cost: whether seconds count as its cost where it says none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...]
    is_shell: bool = False
    measures_cost: bool = True

    @classmethod
    def of(cls, command: str | Sequence[str], *, is_shell: bool, measures_cost: bool) -> Command:
        """As the sweep file has it: one line, or a list of words.

        Raises:
            ValueError: it is empty, its quotes do not match, or a list is given to a shell.
        """
        if is_shell and not isinstance(command, str):
            raise ValueError("shell: true needs a command in one line, not a list of words")
        if isinstance(command, str) and not is_shell:
            try:
                words = shlex.split(command)
            except ValueError as error:
                raise ValueError(f"the command cannot be split into words: {error}") from None
        else:
            words = [command] if isinstance(command, str) else list(command)
        if not words or not words[0].strip():
            raise ValueError("the command is empty")
        return cls(words=tuple(words), is_shell=is_shell, measures_cost=measures_cost)

    def check(self, parameters: Mapping[str, Sequence[str]]) -> None:
        """Hold the placeholders against the parameters.

        Args:
            parameters: by name, each with the components of a mixture, else without any.

        Raises:
            ValueError: names the placeholders that are unknown and the parameters without one.
        """
        named = self._placeholders()
        known = {*parameters, *EXTRAS}
        known |= {f"{name}.{part}" for name, parts in parameters.items() for part in parts}
        problems = [_unknown(name, known) for name in sorted(named - known)]
        if not (named & _ALL_PARAMETERS) - set(parameters):
            for name, parts in parameters.items():
                missing = [part for part in parts if f"{name}.{part}" not in named]
                # The weights sum to one: without the last of them nothing is lost.
                if name not in named and (not parts or len(missing) > 1):
                    wanted = ", ".join(f"{{{name}.{part}}}" for part in missing) or f"{{{name}}}"
                    problems.append(
                        f"parameter {name!r} is not in the command: add {wanted}, or {{overrides}} "
                        "for all parameters"
                    )
        if not self.is_shell and "overrides" in named and "overrides" not in parameters:
            problems += [
                f"{{overrides}} must be a word of its own, but stands in {word!r}"
                for word in self.words
                if "{overrides}" in word and word != "{overrides}"
            ]
        if problems:
            raise ValueError("; ".join(problems))

    def _placeholders(self) -> set[str]:
        found = set()
        for word in self.words:
            for match in _PLACEHOLDER.finditer(word):
                if match[0] in ("{", "}"):
                    raise ValueError(
                        f"a single {match[0]!r} in {word!r}: write {match[0] * 2!r} for a brace, "
                        "{name} for a parameter"
                    )
                if match[1] is not None:
                    found.add(match[1])
        return found

    def filled(self, params: Mapping[str, Any], extras: Mapping[str, str]) -> list[str]:
        """The words to execute.

        What names a parameter that does not exist in this trial is left out, together with the
        option before it; in a shell's script it is an empty word.

        Args:
            params: of the trial.
            extras: what the other placeholders stand for.
        """
        values = {**extras, **_texts(params)}
        every = [] if "overrides" in params else overrides(params)
        if self.is_shell:
            quoted = {name: shlex.quote(text) for name, text in values.items()}
            if "overrides" not in params:
                quoted["overrides"] = shlex.join(every)
            return ["bash", "-c", _fill(self.words[0], lambda name: quoted.get(name, "''"))]
        words: list[str] = []
        for word in self.words:
            if word == "{overrides}" and "overrides" not in params:
                words += every
                continue
            names = [match[1] for match in _PLACEHOLDER.finditer(word) if match[1] is not None]
            if all(name in values for name in names):
                words.append(_fill(word, values.__getitem__))
            elif words and words[-1].startswith("-") and "=" not in words[-1]:
                words.pop()
        return words


def overrides(params: Mapping[str, Any]) -> list[str]:
    """``key=value`` for each parameter, as Hydra reads it; ``mix.code=0.5`` for each component."""
    words = []
    for name, value in params.items():
        if isinstance(value, Mapping):
            words += [f"{name}.{part}={_hydra(weight)}" for part, weight in value.items()]
        else:
            words.append(f"{name}={_hydra(value)}")
    return words


def _hydra(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    if _PLAIN_WORD.fullmatch(value) and value.lower() not in _NO_STRINGS:
        return value
    # Within quotes a backslash counts as itself, except before a quote.
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
    escaped = re.sub(r"(\\+)$", lambda match: match[1] * 2, escaped)
    return f"'{escaped}'"


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    texts = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            texts[name] = json.dumps(dict(value))
            texts |= {f"{name}.{part}": str(weight) for part, weight in value.items()}
        else:
            texts[name] = str(value)
    return texts


def _fill(word: str, value: Callable[[str], str]) -> str:
    def put(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else value(match[1])

    return _PLACEHOLDER.sub(put, word)


def _unknown(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {{{close[0]}}}?" if close else f"known: {', '.join(sorted(known))}"
    return f"the placeholder {{{name}}} names no parameter, {meant}"
