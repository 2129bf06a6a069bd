"""Which configuration to run at a cost: candidates of several ways of planning, and the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from carbs.analysis.front.chart import near_front
from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.growth import growth_of
from carbs.analysis.front.model import COST_TOLERANCE, FrontModel, fit_front, nearby
from carbs.analysis.planning.limits import Limits
from carbs.analysis.planning.reach import Reach
from carbs.records import Failure, Observation
from carbs.search_space import AllowedPoints, SearchSpace
from carbs.spaces import FloatArray

# How a candidate came about.
_SCALED = "a run scaled up"
WAYS = ("the front's lines", "a run carried along them", _SCALED)
# Candidates further than this from the cost, in decades, than others are none.
_SAME_COST = 0.02
# So many of the best candidates are averaged, less those that are worse than the best by more than
# this share of what is at stake.
_N_AVERAGED, _ALIKE = 3, 0.1
# Where it is known how sizes grow, and that the learning rate falls with them, a run scaled up that
# is worse by no more than this share of what is at stake is preferred: the models cannot tell. More
# than a decade beyond the sweep's best run it counts times the decades squared, as does in a bowl
# what a wrong slope costs.
_CANNOT_TELL = 0.2
# A run that is less likely to succeed is moved, by one of these steps at a time, in basic units.
LIKELY = 0.95
_STEPS = (-1.6, -0.8, -0.4, -0.2, -0.1, 0.1, 0.2, 0.4, 0.8, 1.6)
_N_ROUNDS = 8
# A failure takes the budget too: it counts as so many times the loss that is at stake.
_AVERSION = 3.0
# And a run is expected to gain at least so much of what the sweep did.
_LEAST_STAKE = 0.1
# Where a configuration is forbidden: how many near it are looked at, and how many brought to the
# cost.
_N_NEAR, _N_REACHED = 4096, 512


class Candidates(NamedTuple):
    """What several ways of planning name for one cost, all brought to it.

    Attributes:
        ways: of planning: the place of each in ``WAYS``, ``(n,)``.
        Z: basic points, ``(n, d)``.
        is_off: whether the bounds keep one from the cost, ``(n,)``.
        losses: to expect, with the risk of each counted, ``(n,)``.
        stakes: what is lost where one fails, ``(n,)``.
        order: of their places, the best first: those at the cost, with the lowest loss.
    """

    ways: NDArray[np.intp]
    Z: FloatArray
    is_off: NDArray[np.bool_]
    losses: FloatArray
    stakes: FloatArray
    order: NDArray[np.intp]


def candidates(expectation: Expectation, reach: Reach, cost: float) -> Candidates:
    """The front's lines; each run near the front, carried along them, or with its size changed.

    The lines are medians, and may lie where nothing is good.
    """
    front, surface = expectation.front, expectation.front.surface
    c = surface.cost.scale_of(cost)
    near = near_front(surface.Z, surface.c, surface.losses)
    line = front.best_at(math.log10(cost))[None]
    carried = surface.chart.points(np.full(len(near), c), surface.s[near])
    scaled = reach.at(surface.Z[near], cost)
    ways = np.repeat(np.arange(3), [1, len(near), len(near)])
    Z = reach.at(np.concatenate([line, carried, scaled]), cost)
    is_off = _is_off(front, Z, cost)
    losses = expectation.score(Z)
    stakes = _at_stake(expectation, losses)
    losses = losses + stakes * (1 - expectation.success.likeliest(Z))
    return Candidates(ways, Z, is_off, losses, stakes, np.lexsort([losses, is_off]))


def best_at_cost(
    expectation: Expectation, reach: Reach, cost: float, found: Candidates | None = None
) -> FloatArray:
    """The point to run at a predicted cost, shape ``(d,)``, of the candidates for it.

    The few best candidates are averaged, if they are about as good: the very best one is partly a
    mistake of the model, and in a bowl the mean is no worse than what it is of. Then it backs off
    from what may fail, and from what is forbidden.
    """
    front, found = expectation.front, found or candidates(expectation, reach, cost)
    best = _preferred(front, found, cost)[:_N_AVERAGED]
    worse = found.losses[best] - found.losses[best[0]]
    is_alike = found.is_off[best] == found.is_off[best[0]]
    alike = best[is_alike & (worse <= _ALIKE * found.stakes[best[0]])]
    z = np.asarray(reach.at(reach.snap(found.Z[alike].mean(axis=0)[None]), cost)[0])
    z = _safer(expectation, reach, z, cost)
    return z if front.space.allows(front.space.decode(z)) else _allowed(expectation, reach, z, cost)


def _preferred(front: FrontModel, found: Candidates, cost: float) -> NDArray[np.intp]:
    """Their places, the best first, or those of runs scaled up alone: N and D, alike.

    So published studies have them grow; and where the learning rate is searched as well, which has
    to fall with the size, a search that has not tried larger models thinks too little of them.
    """
    first, surface = found.order[0], front.surface
    beyond = surface.cost.scale_of(cost) - float(surface.c[surface.losses.argmin()])
    share = _CANNOT_TELL * max(beyond, 1.0) ** 2
    worst = found.losses[first] + share * found.stakes[first]
    is_alike = (found.is_off == found.is_off[first]) & (found.losses <= worst)
    scaled = found.order[(is_alike & (found.ways == WAYS.index(_SCALED)))[found.order]]
    is_known = bool(growth_of(front.space, front.surface.cost.mean_exponents()))
    is_known &= not np.array_equal(front.surrogate.axes, np.eye(front.space.n_dims))
    return scaled if is_known and len(scaled) else found.order


def recommended(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure],
    cost: float,
) -> FloatArray:
    """The same by what runs have taught, of which outputs are to be minimised, ``(d,)``.

    Raises:
        ValueError: fewer than four runs, or all of one cost.
    """
    front = fit_front(space, observations, failures)
    reach = Reach(front, Limits.of(space, {}, {}))
    return best_at_cost(Expectation.of(front, splits=()), reach, cost)


def _at_stake(expectation: Expectation, losses: FloatArray) -> FloatArray:
    """What is lost where a run fails, ``(n,)``: one is left with the sweep's best run."""
    surface = expectation.front.surface
    return np.maximum(surface.floor - losses, _LEAST_STAKE * surface.unit)


def _is_off(front: FrontModel, Z: FloatArray, cost: float) -> NDArray[np.bool_]:
    off = np.abs(front.surface.cost.scale(Z)[0] - front.surface.cost.scale_of(cost))
    return np.asarray(off > off.min() + _SAME_COST)


def _safer(expectation: Expectation, reach: Reach, z: FloatArray, cost: float) -> FloatArray:
    """Away from what may fail, in the parameter where that costs least, as long as it pays.

    The others make up for the cost: a model that is too large for the memory becomes a smaller one
    that sees more tokens. A loss that is expected to be lower on the way is no reason to go there.
    """
    if expectation.success.likeliest(z[None])[0] >= LIKELY:
        return z
    d = len(z)
    steps = np.concatenate([size * np.eye(d) for size in _STEPS])
    for _ in range(_N_ROUNDS):
        Z = np.concatenate([z[None], reach.at(z + steps, cost, steps != 0)])
        losses = expectation.score(Z)
        dearer = np.maximum(losses - losses[0], 0.0)
        lost = np.where(_is_off(expectation.front, Z, cost), np.inf, dearer)
        fails = 1 - expectation.success.probability(Z)
        best = int(np.argmin(lost + _AVERSION * fails * _at_stake(expectation, losses)))
        if best == 0:
            break
        z = Z[best]
    return z


def _allowed(expectation: Expectation, reach: Reach, z: FloatArray, cost: float) -> FloatArray:
    """The nearest to ``z`` that the constraints allow, of many around it, ``(d,)``.

    At the cost, if any is; and of those one that is likely to succeed, if any is.
    """
    front, rng = expectation.front, np.random.default_rng(0)
    space = front.space
    around = nearby(space, np.tile(z, (_N_NEAR, 1)), rng)
    # Some differ in nothing but what drives the cost; and at the cost exactly, none may be allowed.
    some = around[:: _N_NEAR // _N_REACHED]
    resized = np.where(reach.direction != 0, some, z)
    near = np.concatenate([reach.at(np.concatenate([some, resized]), cost), reach.snap(around)])
    off = np.abs(front.surface.cost.scale(near)[0] - front.surface.cost.scale_of(cost))
    distances = np.linalg.norm(near - z, axis=1) + off / COST_TOLERANCE
    may_fail = expectation.success.likeliest(near) < LIKELY
    order = np.lexsort([distances, may_fail, off > off.min() + COST_TOLERANCE])
    return np.asarray(near[AllowedPoints(space).first(near, order, 1)[0]])
