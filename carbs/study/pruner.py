"""Early stopping as an Optuna pruner."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from carbs.early_stopping import MIN_PROGRESS, MISS_SHARE, FinishedRun, forecast, is_off_front
from carbs.records import Direction
from carbs.spaces import FloatArray
from carbs.study.trials import CURVE, STOPPED, known_cost


class FrontPruner(BasePruner):
    """Stops a trial that will end off the front of cost against output, and forecasts its end.

    See :mod:`carbs.early_stopping`. In a study with one objective it is a pruner like any other:
    the trial calls ``trial.report(value, step)`` and asks ``trial.should_prune()``. All trials cost
    the same there, unless ``cost`` names the user attribute in which they say what they cost, as
    for :class:`CarbsSampler`. A trial sets it before each report, to what it has cost so far; it is
    not stopped while it has not.

    Optuna refuses both calls in a study with two objectives. There, keep a trial's reports as its
    attribute ``curve``, rows of (progress, output, cost so far), ask ``pruner.prune(study, trial)``
    and end the trial with :func:`tell_stopped`; ``carbs sweep`` does so.

    Args:
        miss_share: no more than this share of the trials that would be on the front is stopped.
        min_progress: no trial is stopped before this share of it is done.
        n_steps: the last step that a trial reports; only for studies with one objective.
        cost: the user attribute with a trial's cost; only for studies with one objective.
    """

    def __init__(
        self,
        *,
        miss_share: float = MISS_SHARE,
        min_progress: float = MIN_PROGRESS,
        n_steps: int | None = None,
        cost: str | None = None,
    ) -> None:
        self.miss_share = miss_share
        self.min_progress = min_progress
        self.n_steps = n_steps
        self.cost = cost

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial; if so, its attribute ``stopped`` says how it would end.

        Raises:
            ValueError: a trial has reported steps, but ``n_steps`` is not known, or ``cost`` is
                given beside a second objective.
        """
        if self.cost is not None and len(study.directions) > 1:
            raise ValueError(
                f"cost={self.cost!r} names a user attribute, but in study {study.study_name!r} "
                "the cost is the second objective: leave it out"
            )
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finished = [
            FinishedRun(self._curve(other), other.values[0], cost)
            for other in completed
            if np.isfinite(other.values[0]) and (cost := self._cost(other)) is not None
        ]
        is_maximized = study.directions[0] == StudyDirection.MAXIMIZE
        direction: Direction = "maximize" if is_maximized else "minimize"
        curve = self._curve(trial)
        if self.cost is not None and len(curve):
            spent = self._cost(trial)
            if spent is None:
                return False
            curve[-1, 2] = spent
        end = forecast(
            curve,
            finished,
            miss_share=self.miss_share,
            min_progress=self.min_progress,
            direction=direction,
        )
        if end is None or not is_off_front(end, finished, direction=direction):
            return False
        stopped = {**asdict(end), "spent": curve[-1, 2]}
        del stopped["best_output"]
        study._storage.set_trial_user_attr(trial._trial_id, STOPPED, stopped)
        return True

    def _cost(self, trial: FrozenTrial) -> float | None:
        """In all, so far while it runs; None where nobody knows."""
        if self.cost is None and len(trial.values) == 1:
            return 1.0
        try:
            return known_cost(trial, self.cost)
        except ValueError:  # the sampler tells of it
            return None

    def _curve(self, trial: FrozenTrial) -> FloatArray:
        """Shape ``(t, 3)``: progress, output, cost."""
        rows = trial.user_attrs.get(CURVE, [])
        if trial.intermediate_values and not rows:
            if self.n_steps is None:
                raise ValueError(
                    f"trial {trial.number} has reported steps: tell FrontPruner n_steps, the last "
                    "step of a run"
                )
            shares = {step / self.n_steps: y for step, y in trial.intermediate_values.items()}
            rows = [(f, y, f) for f, y in sorted(shares.items()) if 0 < f <= 1 and np.isfinite(y)]
        return np.reshape(np.array(rows, dtype=float), (-1, 3))
