"""Which configuration to run at a cost: candidates of several ways of planning, and the choice."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.model import COST_TOLERANCE, FrontModel, nearby
from carbs.analysis.planning.reach import Reach
from carbs.search_space import AllowedPoints
from carbs.spaces import FloatArray

# How a candidate came about.
WAYS = ("the front's lines", "a run carried along them", "a run scaled up")
# Candidates further than this from the cost, in decades, than others are none.
_SAME_COST = 0.02
# So many of the best candidates are averaged.
_N_AVERAGED = 3
# A run that is less likely to succeed is planned only if all are.
_LEAST_SUCCESS = 0.95
# Where a configuration is forbidden, or likely to fail: how many near it are looked at,
# and how many brought to the cost.
_N_NEAR, _N_REACHED = 4096, 512


class Candidates(NamedTuple):
    """What several ways of planning name for one cost, all brought to it.

    Attributes:
        ways: of planning: the place of each in ``WAYS``, ``(n,)``.
        Z: basic points, ``(n, d)``.
        order: of their places, the best first: those that are likely to succeed, at the cost, with
            the lowest loss to expect.
        groups: how alike two are in the first two respects, ``(n,)``: the same number or not.
    """

    ways: NDArray[np.intp]
    Z: FloatArray
    order: NDArray[np.intp]
    groups: NDArray[np.intp]


def candidates(expectation: Expectation, reach: Reach, cost: float) -> Candidates:
    """The front's lines; each run near the front, carried along them, or with its size changed.

    The lines are medians, and may lie where nothing is good.
    """
    front, surface = expectation.front, expectation.front.surface
    c = surface.cost.scale_of(cost)
    near = surface.near_front(surface.c)
    line = front.best_at(math.log10(cost))[None]
    carried = surface.chart.points(np.full(len(near), c), surface.s[near])
    scaled = reach.at(surface.Z[near], cost)
    ways = np.repeat(np.arange(3), [1, len(near), len(near)])
    Z = reach.at(np.concatenate([line, carried, scaled]), cost)
    off = np.abs(surface.cost.scale(Z)[0] - c)
    is_off = off > off.min() + _SAME_COST
    is_unlikely = front.surrogate.success_probability(Z) < _LEAST_SUCCESS
    order = np.lexsort([expectation.middle(Z), is_off, is_unlikely])
    return Candidates(ways, Z, order, 2 * is_unlikely + is_off)


def best_at_cost(expectation: Expectation, reach: Reach, cost: float) -> FloatArray:
    """The point to run at a predicted cost, shape ``(d,)``.

    The few best candidates are averaged: the very best one is partly a mistake of the model, and in
    a bowl the mean is no worse than what it is of. Where that is forbidden, or likely to fail, the
    nearest is taken that is not.
    """
    front, found = expectation.front, candidates(expectation, reach, cost)
    best = found.order[:_N_AVERAGED]
    alike = best[found.groups[best] == found.groups[best[0]]]
    z = np.asarray(reach.at(reach.snap(found.Z[alike].mean(axis=0)[None]), cost)[0])
    is_likely = front.surrogate.success_probability(z[None])[0] >= _LEAST_SUCCESS
    is_allowed = front.space.allows(front.space.decode(z))
    return z if is_likely and is_allowed else _nearest(front, reach, z, cost)


def _nearest(front: FrontModel, reach: Reach, z: FloatArray, cost: float) -> FloatArray:
    """The nearest to ``z`` that is allowed and likely to succeed, of many around it, ``(d,)``.

    What lowers the risk is paid for by whatever else drives the cost: a model that is too large for
    the memory becomes a smaller one that sees more tokens. If none is likely, the likeliest.
    """
    space, model, rng = front.space, front.surface.cost, np.random.default_rng(0)
    around = nearby(space, np.tile(z, (_N_NEAR, 1)), rng)
    # Some differ in nothing but what drives the cost; and at the cost exactly, none may be allowed.
    some = around[:: _N_NEAR // _N_REACHED]
    resized = np.where(reach.direction != 0, some, z)
    at_cost = reach.at(np.concatenate([z[None], some, resized]), cost)
    near = np.concatenate([at_cost, reach.snap(around)])
    off = np.abs(model.scale(near)[0] - model.scale_of(cost))
    risk = np.maximum(_LEAST_SUCCESS - front.surrogate.success_probability(near), 0.0).round(2)
    distances = np.linalg.norm(near - z, axis=1) + off / COST_TOLERANCE
    order = np.lexsort([distances, risk, off > off.min() + COST_TOLERANCE])
    return np.asarray(near[AllowedPoints(space).first(near, order, 1)[0]])
