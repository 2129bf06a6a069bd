"""Configurations moved to a cost: all that drives the cost moves, each within its bounds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from carbs.analysis.front.growth import growth_of
from carbs.analysis.front.model import FrontModel
from carbs.analysis.laws.usual import GROWTH
from carbs.analysis.planning.limits import Limits
from carbs.roles import COST_EXPONENTS, role_of
from carbs.search_space import SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, LogSpace, MixtureSpace, NumericSpace

# A dimension drives the cost if a decade of it is at least so many of the cost.
_LEAST_EXPONENT = 0.3
_N_BISECTIONS = 30
_FAR = 12.0
# A step of an integer of this size hardly shows in the cost.
_FINE = 200.0


class Reach:
    """Moves configurations of a sweep along what drives its cost.

    Args:
        front: of the sweep.
        limits: where a configuration may lie.

    Attributes:
        snap: to where one may lie, ``(n, d)`` in and out.
        direction: basic units a decade of cost, ``(d,)``; zero for what does not drive it.
    """

    def __init__(self, front: FrontModel, limits: Limits) -> None:
        self.cost, self.snap = front.surface.cost, limits.snap
        is_free = limits.low < limits.high
        self.direction = np.where(is_free, _direction(front), 0.0)
        self._is_fine = _fine(front.space) & (self.direction != 0)

    def at(self, Z: FloatArray, cost: float, held: NDArray[np.bool_] | bool = False) -> FloatArray:
        """The points ``(n, d)`` moved until their predicted cost is ``cost``, where bounds allow.

        Whole numbers are rounded, and what drives the cost in finer steps makes up for that. What
        is ``held``, ``(n, d)``, stays where it is.
        """
        direction = np.where(held, 0.0, self.direction)
        Z = self._moved(Z, direction, cost)
        return self._moved(Z, np.where(self._is_fine, direction, 0.0), cost)

    def _moved(self, Z: FloatArray, direction: FloatArray, cost: float) -> FloatArray:
        c = self.cost.scale_of(cost)
        low, high = np.full(len(Z), -_FAR), np.full(len(Z), _FAR)
        for _ in range(_N_BISECTIONS):
            middle = (low + high) / 2
            is_above = self.cost.scale(self._along(Z, direction, middle))[0] > c
            low, high = np.where(is_above, low, middle), np.where(is_above, middle, high)
        return self._along(Z, direction, (low + high) / 2)

    def _along(self, Z: FloatArray, direction: FloatArray, t: FloatArray) -> FloatArray:
        return self.snap(Z + t[:, None] * direction)


def _direction(front: FrontModel) -> FloatArray:
    """Alike for what has a known role, along the front for whatever else drives the cost.

    A learning rate stays where it is beside the best one for the size.
    """
    space, cost = front.space, front.surface.cost
    exponents, slopes = cost.mean_exponents(), np.median(front.slopes, axis=0)
    known, found = growth_of(space, exponents), np.zeros(space.n_dims)
    for param in space.params:
        if isinstance(param.space, (ChoiceSpace, MixtureSpace)) or param.when:
            continue
        i, role = space.slices[param.name].start, role_of(param)
        if role in COST_EXPONENTS and isinstance(param.space, LogSpace):
            share, _ = known.get(param.name, GROWTH[role])
            found[i] = share / param.space.scale
        elif abs(exponents[i]) > _LEAST_EXPONENT and slopes[i] * exponents[i] > 0:
            found[i] = slopes[i]
    if not found.any():
        driver = front.surface.chart.driver
        found[driver] = math.copysign(1.0, exponents[driver])
    return found - found @ (front.surrogate.axes - np.eye(space.n_dims))


def _fine(space: SearchSpace) -> NDArray[np.bool_]:
    """Which dimensions can take nearly any value."""
    fine = np.zeros(space.n_dims, dtype=bool)
    for param in space.params:
        if isinstance(param.space, NumericSpace):
            steps = param.space.rounding_factor if param.space.is_integer else 0
            fine[space.slices[param.name]] = param.search_center >= _FINE * steps
    return fine
