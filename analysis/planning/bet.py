"""The configuration that a plan would run, for those who do not ask what to expect of it."""

from __future__ import annotations

from collections.abc import Sequence

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.model import fit_front
from carbs.analysis.planning.choice import best_at_cost
from carbs.analysis.planning.limits import Limits
from carbs.analysis.planning.reach import Reach
from carbs.records import Failure, Observation
from carbs.search_space import SearchSpace
from carbs.spaces import FloatArray


def bet_at(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure],
    cost: float,
) -> FloatArray:
    """The point to run at a predicted cost, ``(d,)``, by what all runs have taught.

    Args:
        space: of the configurations.
        observations: at least four, of different cost; outputs are to be minimised.
        failures: configurations that could not be trained.
        cost: as far as the bounds allow.
    """
    front = fit_front(space, observations, failures)
    reach = Reach(front, Limits.of(space, {}, {}))
    return best_at_cost(Expectation.untested(front), reach, cost)
