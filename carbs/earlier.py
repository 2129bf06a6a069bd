"""Earlier sweeps: records of another search, as data for a new one.

The other search may have had other parameters. Seen from the new space,

    a parameter that the earlier sweep lacked  has the value that the sweep's ``defaults`` give,
                                               else the new search centre's
    one that the new space lacks               is dropped
    a value beyond the new bounds              is data like any other
    a mixture's component that it lacked       has weight zero
    anything else that the new space           leaves the run out, such as an unknown choice
    cannot express

and what is believed of the new task is corrected by the earlier one as far as the two agree.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from carbs.records import Direction, Failure, Observation
from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, MixtureSpace, Params, Space, Value


class Search(Protocol):
    """What is learnt from a search, such as :class:`carbs.CARBS`."""

    @property
    def direction(self) -> Direction: ...
    @property
    def observations(self) -> tuple[Observation, ...]: ...
    @property
    def failures(self) -> tuple[Failure, ...]: ...


@dataclass(frozen=True)
class EarlierRuns:
    """An earlier sweep's runs in the basic coordinates of a new space.

    Attributes:
        Z: of runs that finished, shape ``(n, d)``; some lie outside the new bounds.
        outputs: to be minimised, shape ``(n,)``.
        deviations: of outputs that are forecasts of runs stopped early; else zero, shape ``(n,)``.
        log_costs: shape ``(n,)``.
        failed_points: of runs that could not be trained, shape ``(m, d)``.
        left_out: how many runs the new space cannot express, by the reason.
    """

    Z: FloatArray
    outputs: FloatArray
    deviations: FloatArray
    log_costs: FloatArray
    failed_points: FloatArray
    left_out: Mapping[str, int]


class EarlierSweep(BaseModel):
    """The records of another search, which may have had other parameters and other units.

    Args:
        direction: whether a low or a high output was good.
        observations, failures: its runs.
        defaults: what it used of parameters that it did not search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    direction: Direction = "minimize"
    observations: tuple[Observation, ...] = ()
    failures: tuple[Failure, ...] = ()
    defaults: Params = {}

    @classmethod
    def of(cls, optimizer: Search, defaults: Mapping[str, Any] | None = None) -> Self:
        """What an optimizer has observed itself."""
        return cls(
            direction=optimizer.direction,
            observations=optimizer.observations,
            failures=optimizer.failures,
            defaults=dict(defaults or {}),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], defaults: Mapping[str, Any] | None = None) -> Self:
        """What an optimizer had observed when ``CARBS.save`` wrote this file.

        Raises:
            ValueError: the file is no saved optimizer.
        """
        try:
            saved = _Saved.model_validate_json(Path(path).read_bytes())
        except ValueError as error:  # pydantic's ValidationError is one
            raise ValueError(f"{path} is no saved optimizer: {error}") from None
        return cls(**dict(saved), defaults=dict(defaults or {}))

    def seen_from(self, space: SearchSpace, direction: str) -> EarlierRuns:
        """The runs in the basic coordinates of a new space.

        Raises:
            ValueError: the sweep sought the other direction, or a default names no parameter or
                has a value that the parameter cannot have.
        """
        if self.direction != direction:
            raise ValueError(
                f"an earlier sweep was to {self.direction} its output, but this search is to "
                f"{direction}: turn the sign of one of the two around"
            )
        defaults = self._checked_defaults(space)
        left_out: Counter[str] = Counter()

        def encode(record: Observation | Failure) -> FloatArray | None:
            try:
                return _encode(space, record.params, defaults)
            except ValueError as error:
                left_out[str(error)] += 1
                return None

        runs = [(z, run) for run in self.observations if (z := encode(run)) is not None]
        failed = [z for failure in self.failures if (z := encode(failure)) is not None]
        sign = 1.0 if direction == "minimize" else -1.0
        return EarlierRuns(
            np.array([z for z, _ in runs]).reshape(-1, space.n_dims),
            np.array([sign * run.output for _, run in runs]),
            np.array([run.output_deviation for _, run in runs]),
            np.log([run.cost for _, run in runs]),
            np.array(failed).reshape(-1, space.n_dims),
            dict(left_out),
        )

    def _checked_defaults(self, space: SearchSpace) -> Params:
        params = {param.name: param for param in space.params}
        unknown = sorted(set(self.defaults) - set(params))
        if unknown:
            raise ValueError(
                f"an earlier sweep's defaults name {unknown}, no parameter; the parameters are "
                f"{sorted(params)}"
            )
        try:
            return {name: _as_data(params[name], value) for name, value in self.defaults.items()}
        except ValueError as error:
            raise ValueError(f"an earlier sweep's defaults: {error}") from None


class _Saved(BaseModel):
    """Of a saved optimizer's JSON what its successor needs."""

    direction: Direction
    observations: tuple[Observation, ...]
    failures: tuple[Failure, ...]


def _encode(space: SearchSpace, values: Mapping[str, Any], defaults: Params) -> FloatArray:
    """Basic coordinates, shape ``(d,)``; ``ValueError`` where the space cannot express a value."""
    centers = {param.name: param.search_center for param in space.params}
    known = centers | defaults | _of_the_run(space, values)
    return space.encode({param.name: _as_data(param, known[param.name]) for param in space.params})


def _of_the_run(space: SearchSpace, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of its values that the space has; a study's trial has each component's by itself."""
    found = {param.name: values[param.name] for param in space.params if param.name in values}
    for param in space.params:
        of_it = f"{param.name}."
        parts = {n.removeprefix(of_it): w for n, w in values.items() if n.startswith(of_it)}
        if isinstance(param.space, MixtureSpace) and parts:
            found[param.name] = parts
    return found


def _as_data(param: Param, value: Any) -> Value:
    """A value that need not respect the parameter's bounds, in its plain type."""
    space: Space = param.space
    if isinstance(space, MixtureSpace):
        if isinstance(value, Mapping):
            value = {**dict.fromkeys(space.components, 0.0), **value}
            value = {k: w for k, w in value.items() if k in space.components or w != 0}
        space = MixtureSpace(space.components)
    elif not isinstance(space, ChoiceSpace):
        space = type(space)()
    try:
        return space.check(value)
    except ValueError as error:
        raise ValueError(f"parameter {param.name!r}: {error}") from None
