"""What the loggers of a sweep are given: its trials as they go on, and in the end a summary."""

from __future__ import annotations

import json

from optuna.trial import FrozenTrial

from carbs.launchers.controller.ledger import OWNER
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.loggers.loggers import Loggers
from carbs.launchers.loggers.runs import Summary, TrialRun
from carbs.study import kept_trials

_FACTS = {
    "name",
    "function",
    "command",
    "parameters",
    "constraints",
    "direction",
    "output_unit",
    "max_trials",
    "max_cost",
    "budget",
    "cost_unit",
    "seed",
}


class TrialLog:
    """The loggers that a sweep file names, started; to be closed.

    Args:
        sweep: of which they write.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        config = sweep.config
        self._loggers = Loggers(config.log, sweep.jobs.id, config.name, sweep.folder, sweep.notify)

    def catch_up(self) -> None:
        """Write what was not written of this folder's trials before."""
        self._loggers.log(self._trial_runs({None, self._sweep.jobs.id}))

    def write(self, trial: FrozenTrial) -> None:
        """Write what is new of a trial."""
        self._loggers.log([TrialRun.of(trial, self._sweep.space)])

    def close(self) -> None:
        """Write the summary, and wait for what is still to be written, but not for ever."""
        self._loggers.close(self._summary)

    def _trial_runs(self, owners: set[str | None] | None = None) -> list[TrialRun]:
        """The trials; those of other controllers too by default."""
        found = [
            TrialRun.of(trial, self._sweep.space)
            for trial in kept_trials(self._sweep.study)
            if owners is None or trial.user_attrs.get(OWNER) in owners
        ]
        return [run for run in found if run is not None]

    def _summary(self) -> Summary:
        sweep = self._sweep
        check = sweep.folder / "check.json"
        return Summary.of(
            [run for run in self._trial_runs() if run.has_ended],
            sweep.ledger.direction,
            sweep.config.model_dump(mode="json", include=_FACTS),
            json.loads(check.read_text()) if check.exists() else None,
            sweep.folder / "report.html",
        )
