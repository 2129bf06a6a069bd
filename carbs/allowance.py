"""What all runs of a search together may take, and so how much the cost of one counts.

A score is divided by ``cost ** exponent`` (:mod:`carbs.acquisition`): with an exponent of 1 only
the total cost matters, with 0 only the number of trials.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from carbs.records import as_number, as_whole_number

# How much cost counts in the end, and after how many runs it has come half the way there from 1:
# cheap runs teach the law, dear ones prove it.
_COST_EXPONENT = 0.3
_HALF_LIFE = 10.0
# The share of a known number of trials that proves what the others have taught.
_LAST_SHARE = 0.2


@dataclass(frozen=True)
class Allowance:
    """Limits of a search as a whole: either, both, or none.

    Attributes:
        n_trials: how many runs there will be, failed ones too.
        budget: the cost of all runs together.

    Raises:
        ValueError: a limit is not positive, or ``n_trials`` no whole number.
    """

    n_trials: int | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        check_limit("n_trials", self.n_trials)
        check_limit("budget", self.budget)
        if self.n_trials is not None:
            as_whole_number("n_trials", self.n_trials)

    def most(
        self, max_cost: float | None, spent: float, cheapest: float | None = None
    ) -> float | None:
        """The most that the next run may cost, of what is left; None for no limit.

        Where what is left pays for no run at all, it is a run as cheap as the ``cheapest`` so far.
        When the budget is spent, and the search goes on all the same, ``max_cost`` is what holds.
        """
        left = None if self.budget is None else self.budget - spent
        if left is None or left <= 0:
            return max_cost
        left = max(left, cheapest or 0.0)
        return left if max_cost is None else min(left, max_cost)

    def is_ending(self, n_started: int) -> bool:
        """Whether the last fifth of a known number of trials has begun."""
        return self.n_trials is not None and n_started >= (1 - _LAST_SHARE) * self.n_trials

    def is_last_at(self, max_cost: float, n_started: int, spent: float, next_cost: float) -> bool:
        """Whether the next run is the last one that may cost ``max_cost``.

        It is the last trial, or what a run of ``next_cost`` leaves of the budget pays for no such
        run any more.
        """
        if self.most(max_cost, spent) != max_cost:
            return False
        left = math.inf if self.budget is None else self.budget - spent
        return n_started + 1 == self.n_trials or max_cost <= left < max_cost + next_cost

    def cost_exponent(
        self, n_started: int, spent: float, low: float | None, high: float | None
    ) -> float:
        """How much cost counts for the next run.

        With both limits it counts the less, the more the budget has left for each trial: trials
        spread evenly over the logarithm of cost would cost ``(high - low) / log(high / low)`` on
        average, and where the budget pays for that, the number of trials is what is scarce.
        Otherwise it counts fully at first, and ever less. In the last fifth of a known number of
        trials, where there is a cap, it counts no more: what cheap runs have taught is taken there.

        Args:
            n_started: runs so far, failed and pending ones too.
            spent: cost of these.
            low, high: costs of the cheapest runs wanted and of the dearest, where they are known.
        """
        if self.n_trials is not None and self.budget is not None and low and high and low < high:
            affordable = (self.budget - spent) / max(self.n_trials - n_started, 1)
            return min(max(1 - affordable * math.log(high / low) / (high - low), 0.0), 1.0)
        if high is not None and self.is_ending(n_started):
            return 0.0
        return float(_COST_EXPONENT + (1 - _COST_EXPONENT) * 0.5 ** (n_started / _HALF_LIFE))


def check_limit(name: str, limit: float | None) -> None:
    """
    Raises:
        ValueError: it is neither a positive number nor None.
    """
    if limit is not None and not as_number(name, limit) > 0:
        raise ValueError(f"{name} is {limit}, expected a positive number or None")
