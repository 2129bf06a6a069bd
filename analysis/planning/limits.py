"""What the user wants of a plan: values that are given, and bounds other than the sweep's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from carbs.search_space import Param, SearchSpace
from carbs.spaces import FloatArray, NumericSpace

Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Limits:
    """Where a planned configuration may lie.

    Attributes:
        space: wide enough for the bounds that were asked for.
        low, high: basic coordinates, ``(d,)``; infinite where the space alone is the limit.
    """

    space: SearchSpace
    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, space: SearchSpace, bounds: Bounds, fixed: Mapping[str, Any]) -> Limits:
        """The space with other bounds, and with values that are fixed.

        Raises:
            ValueError: a parameter that there is not, that has no bounds, or whose bounds are no
                pair or leave nothing; a value that its space does not have.
        """
        params = {param.name: param for param in space.params}
        for name in (*bounds, *fixed):
            if name not in params:
                raise ValueError(f"no parameter {name!r}: there are {', '.join(params)}")
        if both := set(bounds) & set(fixed):
            raise ValueError(f"give a value or bounds of {', '.join(sorted(both))}, not both")
        ends: dict[str, tuple[float, float]] = {}
        for name, pair in bounds.items():
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(
                    f"bounds of {name!r} are {pair!r}, expected (low, high), None for an open end; "
                    f"a value that is given is fixed={{{name!r}: ...}}"
                )
            low, high = pair
            if not isinstance(params[name].space, NumericSpace):
                raise ValueError(f"{name!r} has no bounds: it is a {params[name].space.kind}")
            ends[name] = -math.inf if low is None else low, math.inf if high is None else high
            if not ends[name][0] <= ends[name][1]:
                raise ValueError(f"bounds of {name!r}: {low} is above {high}")
        wider = [_widened(param, ends, fixed) for param in space.params]
        if any(new is not old for new, old in zip(wider, space.params, strict=True)):
            cost = None if space.cost is None else space.cost.saved
            space = SearchSpace(wider, space.constraints, cost)
        least, most = np.full(space.n_dims, -np.inf), np.full(space.n_dims, np.inf)
        for param in space.params:
            own = space.slices[param.name]
            if param.name in fixed:
                least[own] = most[own] = _basic(param, fixed[param.name])
            for value, side in zip(ends.get(param.name, ()), (least, most), strict=False):
                if math.isfinite(value) and not (value <= 0 and param.space.kind == "log"):
                    side[own] = param.space.encode_all([value], param.search_center)[0]
        return cls(space, least, most)

    def snap(self, Z: FloatArray) -> FloatArray:
        """The nearest points that a planned configuration can have, ``(n, d)`` in and out."""
        return self.space.snap(np.clip(Z, self.low, self.high))


def _widened(
    param: Param, ends: Mapping[str, tuple[float, float]], fixed: Mapping[str, Any]
) -> Param:
    """The parameter itself where the space is wide enough."""
    space = param.space
    if not isinstance(space, NumericSpace):
        return param
    wanted = list(ends.get(param.name, ()))
    if isinstance(fixed.get(param.name), (int, float)):
        wanted.append(fixed[param.name])
    # An open end leaves the sweep's.
    low = min([space.min, *(x for x in wanted if math.isfinite(x))])
    high = max([space.max, *(x for x in wanted if math.isfinite(x))])
    if (low, high) == (space.min, space.max):
        return param
    least = max(low, 0.0) if space.kind == "log" else low
    return param.model_copy(update={"space": space.model_copy(update={"min": least, "max": high})})


def _basic(param: Param, value: Any) -> FloatArray:
    """Of a value that the parameter can have, ``(n_dims,)``."""
    space = param.space
    try:
        z = space.encode_all([space.check(value)], param.search_center)
    except ValueError as error:
        raise ValueError(f"{param.name} = {value}: {error}") from None
    taken = space.decode(space.snap(z, param.search_center)[0], param.search_center)
    if isinstance(space, NumericSpace) and not math.isclose(float(taken), float(value)):  # type: ignore[arg-type]  # both are numbers
        raise ValueError(f"{param.name} = {value} is none of its values: the nearest is {taken}")
    return np.asarray(z[0])
