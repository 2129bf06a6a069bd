"""Which configuration to run at a cost: candidates of several ways of planning, and the choice."""

from __future__ import annotations

import math

import numpy as np

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.model import COST_TOLERANCE, FrontModel, nearby
from carbs.analysis.planning.reach import Reach
from carbs.search_space import AllowedPoints
from carbs.spaces import FloatArray

# Candidates further than this from the cost, in decades, than others are none.
_SAME_COST = 0.02
# So many of the best candidates are averaged.
_N_AVERAGED = 3
# A run that is less likely to succeed is planned only if all are.
_LEAST_SUCCESS = 0.95
# Where a configuration is forbidden, or likely to fail: how many near it are looked at,
# and how many brought to the cost.
_N_NEAR, _N_REACHED = 4096, 512


def best_at_cost(expectation: Expectation, reach: Reach, cost: float) -> FloatArray:
    """The point to run at a predicted cost, shape ``(d,)``.

    Several ways of planning name candidates: the lines of the front, whose median may lie where
    nothing is good; each run near the front, carried along these lines; and each of them with only
    its size changed. All are brought to the cost. Of those that are likely to succeed, the few that
    are expected to do best are averaged: the very best one is partly a mistake of the model, and in
    a bowl the mean is no worse than what it is of. Where the constraints forbid that, the nearest
    that they allow is taken.
    """
    front, space, surface = expectation.front, expectation.front.space, expectation.front.surface
    c = surface.cost.scale_of(cost)
    near = surface.near_front(surface.c)
    line = front.best_at(math.log10(cost))[None]
    carried = surface.chart.points(np.full(len(near), c), surface.s[near])
    scaled = reach.at(surface.Z[near], cost)
    candidates = reach.at(np.concatenate([line, carried, scaled]), cost)
    off = np.abs(surface.cost.scale(candidates)[0] - c)
    unlikely = front.surrogate.success_probability(candidates) < _LEAST_SUCCESS
    order = np.lexsort([expectation.middle(candidates), off > off.min() + _SAME_COST, unlikely])
    best = order[:_N_AVERAGED]
    alike = best[(unlikely[best] == unlikely[best[0]]) & (off[best] < off[best[0]] + _SAME_COST)]
    z = np.asarray(reach.at(reach.snap(candidates[alike].mean(axis=0)[None]), cost)[0])
    is_likely = front.surrogate.success_probability(z[None])[0] >= _LEAST_SUCCESS
    return z if is_likely and space.allows(space.decode(z)) else _nearest(front, reach, z, cost)


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
