"""Which trial comes next: what the sampler suggests, and the rest of the budget pays for."""

from __future__ import annotations

import math
from collections.abc import Callable

from optuna.trial import FrozenTrial

from carbs.allowance import Allowance
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.ledger import Account, Ledger
from carbs.records import Suggestion
from carbs.study import CarbsSampler

# How often the sampler is asked for a trial that the rest of the budget pays for, and by what its
# cap is lowered at least when it proposes a dearer one.
_N_SUGGESTIONS = 4
_LOWERED = 0.9


class Suggestions:
    """New trials for a study, within the limits of its sweep.

    Args:
        config: says the limits.
        ledger: of the study.
        sampler: makes the suggestions.
        notify: told of an enqueued trial that cannot be.
    """

    def __init__(
        self,
        config: SweepConfig,
        ledger: Ledger,
        sampler: CarbsSampler,
        notify: Callable[[str], None],
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._sampler = sampler
        sampler.allowance = Allowance(config.max_trials, config.budget)
        self._notify = notify
        self._declined: tuple[float, float, int] | None = None

    def begin(self, account: Account) -> FrozenTrial | None:
        """A new trial, running from now on; None where the budget pays for none now.

        Those that the user has enqueued come first.
        """
        moment = (account.spent, account.reserved, account.n_trials)
        if self._declined == moment:
            return None
        if account.cheapest is not None and self._room(account) < account.cheapest:
            return None
        claimed = self._ledger.claim(self._sampler, self._notify)
        if claimed is not None:
            return claimed
        suggestion = self._affordable(account)
        if suggestion is None:
            # Until something ends the answer would be the same.
            self._declined = moment
            return None
        return self._ledger.begin(self._sampler, suggestion)

    def preview(self, n: int) -> list[Suggestion]:
        """The next ones, so many at the most, if nothing ended meanwhile; none is begun."""
        account = self._ledger.account()
        known, number = account.records, self._ledger.next_number
        suggestions = []
        self._sampler.max_cost = self._config.max_cost
        for i in range(min(n, self._config.max_trials - account.n_trials)):
            suggestion = self._sampler.suggest(known, number + i, self._ledger.direction)
            known.pending.append(suggestion)  # of our own copy
            suggestions.append(suggestion)
        return suggestions

    def _affordable(self, account: Account) -> Suggestion | None:
        """A suggestion for which there is room: the sampler prefers those, but does not promise."""
        self._sampler.max_cost = self._config.max_cost
        number, cap = self._ledger.next_number, self._config.max_cost_in_flight
        room = self._room(account)
        for _ in range(_N_SUGGESTIONS):
            suggestion = self._sampler.suggest(account.records, number, self._ledger.direction)
            cost = suggestion.predicted_cost or account.dearest or 0.0
            if cap is not None and account.reserved > 0 and account.reserved + cost > cap:
                return None
            if cost <= room:
                return suggestion
            self._sampler.max_cost = room * min(room / cost, _LOWERED)
        return None

    def _room(self, account: Account) -> float:
        """What is left of the budget once all that runs is paid for."""
        budget = self._config.budget
        return math.inf if budget is None else budget - account.spent - account.reserved
