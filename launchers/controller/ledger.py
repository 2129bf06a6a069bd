"""The study as the control loop needs it: read whole at first, then kept up trial by trial.

Nothing here is a second truth. Whatever is written goes to the study first, and :meth:`refresh`
reads it all again, as other controllers and commands write to it as well. But a look at ten
thousand trials for each one that ends would make a sweep slower and slower.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from carbs.records import Direction, Failure, Observation, Suggestion
from carbs.search_space import SearchSpace
from carbs.study import (
    DROPPED,
    EARLIER_VALUES,
    FORGOTTEN,
    SPENT,
    CarbsSampler,
    Records,
    kept_trials,
    records,
    tell_failure,
    tell_forgotten,
    tell_stopped,
    with_values,
)

# Attributes of a trial.
OWNER = "folder"
JOB = "job"
PAST = "attempts"
EVIDENCE = "evidence"
SPEED = "speed"
METRICS = "metrics"
RETRY_OF = "retry_of"


@dataclass(frozen=True)
class Account:
    """What the ledger knows at one moment.

    Attributes:
        spent: cost of everything that ended, failures and stopped runs included, as measured.
        reserved: predicted cost of what is running.
        cheapest, dearest: cost of a finished run; None before the first.
        n_forgotten: trials that machines have spoilt.
    """

    records: Records
    spent: float
    reserved: float
    cheapest: float | None
    dearest: float | None
    n_forgotten: int

    @property
    def n_trials(self) -> int:
        known = self.records
        return len(known.observations) + len(known.failures) + len(known.pending)


@dataclass
class _Known:
    observations: list[Observation] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    pending: dict[int, Suggestion] = field(default_factory=dict)
    forgotten: dict[int, str] = field(default_factory=dict)
    waiting: list[FrozenTrial] = field(default_factory=list)
    spent: float = 0.0
    cheapest: float | None = None
    dearest: float | None = None
    n_numbers: int = 0


class Ledger:
    """The trials of a study.

    Args:
        study: to read and write.
        space: what it searches.
        owner: of the trials that are begun here: the sweep's folder.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        owner: str,
    ) -> None:
        self.study = study
        self._storage = study._storage
        self._space = space
        self._owner = owner
        self._known = _Known()
        self._ids: dict[int, int] = {}
        self._dropped: set[int] = set()
        self._earlier_values: dict[str, Any] = study.user_attrs.get(EARLIER_VALUES, {})
        maximizes = study.directions[0] == StudyDirection.MAXIMIZE
        self.direction: Direction = "maximize" if maximizes else "minimize"

    def refresh(self) -> list[FrozenTrial]:
        """Read the study anew; returns the trials that are running."""
        trials = kept_trials(self.study)
        attributes = self.study.user_attrs
        self._dropped = set(attributes.get(DROPPED, ()))
        self._earlier_values = attributes.get(EARLIER_VALUES, {})
        self._known = _Known()
        for trial in trials:
            self._enter(trial)
        self._known.n_numbers = 1 + max((trial.number for trial in trials), default=-1)
        return [trial for trial in trials if trial.state == TrialState.RUNNING]

    def account(self) -> Account:
        """What is known now; it does not change any more."""
        known = self._known
        pending = [known.pending[number] for number in sorted(known.pending)]
        # Without a prediction (the first few), a run is taken to cost what the dearest one did.
        dearest = known.dearest or 0.0
        return Account(
            Records(list(known.observations), list(known.failures), pending),
            known.spent,
            sum(suggestion.predicted_cost or dearest for suggestion in pending),
            known.cheapest,
            known.dearest,
            len(known.forgotten),
        )

    @property
    def next_number(self) -> int:
        """That the next trial will have, unless another controller is faster."""
        return self._known.n_numbers

    @property
    def forgotten(self) -> dict[int, str]:
        """Trials that machines have spoilt, with the reasons."""
        return dict(self._known.forgotten)

    def begin(self, sampler: CarbsSampler, suggestion: Suggestion) -> FrozenTrial:
        """A new trial, running from the start, with all its parameters: in one step."""
        template = sampler.template(suggestion, **{OWNER: self._owner})
        study_id = self.study._study_id
        trial_id = self._storage.create_new_trial(study_id, template)
        return self._enter(self._read(trial_id))

    def claim(self, sampler: CarbsSampler, notify: Callable[[str], None]) -> FrozenTrial | None:
        """Begin a trial that was enqueued; None where there is none, or another took it.

        One that asks for what cannot be is told, and ends as failed.
        """
        while self._known.waiting:
            trial_id = self._known.waiting.pop(0)._trial_id
            with suppress(UpdateFinishedTrialError):
                # First the owner: nobody must find it running without one.
                self._set(trial_id, OWNER, self._owner)
                if self._start(trial_id):
                    self._set(trial_id, OWNER, self._owner)
                    try:
                        sampler.before_trial(self.study, self._read(trial_id))
                    except ValueError as error:
                        notify(f"refused: {error}")
                        continue
                    return self._enter(self._read(trial_id))
        return None

    def _start(self, trial_id: int) -> bool:
        return self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)

    def set(self, number: int, key: str, value: Any) -> None:
        """Write an attribute of a trial; one that has ended meanwhile stays as it is."""
        with suppress(UpdateFinishedTrialError):
            self._set(self._id(number), key, value)

    def read(self, number: int) -> FrozenTrial:
        """A trial as it is stored now, with what it used of parameters that were added later."""
        return with_values(self._read(self._id(number)), self._earlier_values)

    def complete(
        self, number: int, output: float, cost: float, spent: float, metrics: dict[str, Any]
    ) -> None:
        """End a trial with its result.

        Args:
            number: of the trial.
            output: the objective.
            cost: that the search is to learn from.
            spent: cost as it was measured.
            metrics: everything else.
        """
        self.set(number, METRICS, metrics)
        if spent != cost:
            self.set(number, SPENT, spent)
        # As study.tell() would, which reads the trial twice before.
        trial_id, state = self._id(number), TrialState.COMPLETE
        self._tell(
            number, lambda: self._storage.set_trial_state_values(trial_id, state, [output, cost])
        )

    def fail(self, number: int, reason: str, cost: float | None) -> None:
        """End a trial as a failure of its configuration."""
        self._tell(number, lambda: tell_failure(self.study, number, reason, cost))

    def stop(self, number: int, spent: float) -> None:
        """End a trial that was to be stopped early."""
        self._tell(number, lambda: tell_stopped(self.study, number, spent))

    def forget(self, number: int, reason: str) -> None:
        """End a trial that teaches nothing."""
        self._tell(number, lambda: tell_forgotten(self.study, number, reason))

    def drop(self, *numbers: int) -> None:
        """Take trials out of everything, whatever they were."""
        dropped = set(self.study.user_attrs.get(DROPPED, ()))
        self.study.set_user_attr(DROPPED, sorted({*dropped, *numbers}))

    def _tell(self, number: int, tell: Callable[[], Any]) -> None:
        try:
            tell()
        except (UpdateFinishedTrialError, ValueError):
            # Told before the connection broke, or dropped by the user.
            if not self.read(number).state.is_finished():
                raise
        self._known.pending.pop(number, None)
        if number not in self._dropped:
            self._enter(self.read(number))

    def _enter(self, trial: FrozenTrial) -> FrozenTrial:
        known = self._known
        self._ids[trial.number] = trial._trial_id
        known.n_numbers = max(known.n_numbers, trial.number + 1)
        if trial.state == TrialState.WAITING:
            known.waiting.append(trial)
        elif FORGOTTEN in trial.user_attrs:
            known.forgotten[trial.number] = str(trial.user_attrs[FORGOTTEN])
        found = records([trial], self._space)
        for observation in found.observations:
            insort(known.observations, observation, key=_number)
            known.spent += observation.cost if observation.spent is None else observation.spent
            cost = observation.cost
            known.cheapest = cost if known.cheapest is None else min(known.cheapest, cost)
            known.dearest = cost if known.dearest is None else max(known.dearest, cost)
        for failure in found.failures:
            insort(known.failures, failure, key=_number)
            known.spent += failure.cost or 0.0
        for suggestion in found.pending:
            known.pending[trial.number] = suggestion
        return trial

    def _id(self, number: int) -> int:
        if number not in self._ids:
            storage, study_id = self._storage, self.study._study_id
            self._ids[number] = storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self._ids[number]

    def _read(self, trial_id: int) -> FrozenTrial:
        return self._storage.get_trial(trial_id)

    def _set(self, trial_id: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial_id, key, value)


def _number(record: Observation | Failure) -> int:
    return int(record.id or 0)
