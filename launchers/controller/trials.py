"""The trials in flight: each a run of its jobs, whose every step is written into the study.

A trial goes through these steps, each written down before the next is taken:

    asked                 RUNNING, with its parameters and the sweep's id
    ``job.json``          what the job has to do
    attribute ``job``     the attempt: its folder, tier, and the name under which it is submitted
    attribute ``job``     the same with the scheduler's id
    ``curve.jsonl``       where the function reports its progress
    attribute ``stopped`` if it is to be stopped early, the forecast of its end; then ``stop.json``
    ``report.json``       written by the job, in one step
    told                  COMPLETE, PRUNED or FAIL, after its curve and metrics

What the study has of a trial is also written beside its jobs (see
:mod:`carbs.launchers.controller.backup`).
"""

from __future__ import annotations

from dataclasses import dataclass

from optuna.trial import FrozenTrial

from carbs.launchers.controller.attempts import Attempt, Ending, Lost, PastAttempt, Run
from carbs.launchers.controller.changes import changed_data, data_versions
from carbs.launchers.controller.ledger import EVIDENCE, JOB, OWNER, PAST, SPEED
from carbs.launchers.controller.outcomes import BadConfiguration, Completed, StoppedRun
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.controller.trial_log import TrialLog
from carbs.launchers.job.protocol import Result
from carbs.spaces import Params
from carbs.study import CURVE, PREDICTED, STOPPED, FrontPruner, unflatten

DATA = "data"  # attribute of the study: the versions of the data that its trials were trained on


@dataclass(frozen=True)
class Ended:
    """A trial that just ended: ``result``, or ``reason`` where it failed or was stopped early."""

    number: int
    params: Params
    result: Result | None
    reason: str | None
    is_stopped: bool = False
    is_lost: bool = False


class RunningTrials:
    """The running trials of a sweep's folder, as runs of its jobs.

    Args:
        sweep: whose they are. None is known before :meth:`refresh`.

    Attributes:
        log: told what is new of them; None where the sweep has no loggers.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._study, self._ledger, self._jobs = sweep.study, sweep.ledger, sweep.jobs
        self._runs: dict[int, Run] = {}
        self._is_first_look = True
        self.log: TrialLog | None = None

    def __len__(self) -> int:
        return len(self._runs)

    def runs(self) -> list[Run]:
        return list(self._runs.values())

    def refresh(self) -> None:
        """Read the study anew: give up what others have ended, take on what nobody looks after."""
        running = self._ledger.refresh()
        self._sweep.nodes.refresh()
        numbers = {trial.number for trial in running}
        for number in [number for number in self._runs if number not in numbers]:
            self._jobs.give_up(self._runs.pop(number))
        for trial in running:
            owner = trial.user_attrs.get(OWNER)
            is_ours = owner == self._jobs.id or (owner is None and self._is_first_look)
            if trial.number in self._runs or not is_ours:
                continue
            if unflatten(self._sweep.space, trial.params) is None:
                # The controller died while it asked: there is nothing to run.
                self._ledger.forget(trial.number, "the controller died while asking")
                continue
            run = self.take_on(trial)
            if run.is_stopped:
                self._jobs.stop(run)
        self._is_first_look = False

    def take_on(self, trial: FrozenTrial) -> Run:
        """Look after a trial from now on; its job may have been submitted already, or not."""
        run = self._runs[trial.number] = self._run_of(trial)
        return run

    def follow(self) -> None:
        """Write down what is new in the jobs' learning curves; stop those that are hopeless."""
        for number, run in self._runs.items():
            self._follow(number, run)

    def end(self, run: Run, ending: Ending) -> Ended:
        """End a trial in the study."""
        number = int(run.key)
        del self._runs[number]
        ended = self._tell(number, run, ending)
        self._sweep.backup.keep_ended(self._ledger.read(number), self._ledger.next_number)
        self._log(number)
        return ended

    def collect(self) -> None:
        """Take the results of jobs that have finished; nothing is started."""
        self.refresh()
        finished = [run for run in self.runs() if self._jobs.has_result(run)]
        for run, ending in self._jobs.poll(finished):
            self.end(run, ending)

    def _run_of(self, trial: FrozenTrial) -> Run:
        config, ledger = self._sweep.config, self._ledger
        params = unflatten(self._sweep.space, trial.params)
        assert params is not None
        number, attributes = trial.number, trial.user_attrs
        predicted = attributes.get(PREDICTED, {}).get("predicted_cost")
        key = f"{number:05d}"
        if JOB in attributes:
            attempt = Attempt.model_validate(attributes[JOB])
        else:
            attempt = self._jobs.first_attempt(key, config.tier(params, predicted))

        def save(attempt: Attempt) -> None:
            ledger.set(number, JOB, attempt.model_dump(mode="json"))
            self._sweep.backup.keep(ledger.read(number))

        return Run(
            key=key,
            params=params,
            seed=config.seed + number,
            save=save,
            save_past=lambda past: ledger.set(
                number, PAST, [attempt.model_dump(mode="json") for attempt in past]
            ),
            attempt=attempt,
            past=[PastAttempt.model_validate(past) for past in attributes.get(PAST, [])],
            is_stopped=STOPPED in attributes,
            curve=attributes.get(CURVE, []),
        )

    def _follow(self, number: int, run: Run) -> None:
        if run.curve == run.kept_curve:
            return
        self._ledger.set(number, CURVE, run.curve)
        run.kept_curve = run.curve
        self._log(number)
        early = self._sweep.config.early_stopping
        if early is not None and not run.is_stopped and run.curve[-1][0] < 1:
            pruner = FrontPruner(miss_share=early.miss_share, min_progress=early.min_progress)
            if pruner.prune(self._study, self._ledger.read(number)):
                self._jobs.stop(run)

    def _tell(self, number: int, run: Run, ending: Ending) -> Ended:
        ledger = self._ledger
        self._follow(number, run)
        if run.evidence is not None:
            ledger.set(number, EVIDENCE, run.evidence.model_dump(mode="json"))
        match ending:
            case Completed(result=result):
                cost, speeds = self._sweep.nodes.normalised(self._jobs.start(run), result.cost)
                if speeds is not None:
                    ledger.set(number, SPEED, speeds)
                ledger.complete(number, result.output, cost, result.cost, result.metrics)
                self._say_changed_data(number, data_versions(result.metrics))
                return Ended(number, run.params, result, None)
            case StoppedRun(spent=spent) if run.is_stopped:
                forecast = ledger.read(number).user_attrs[STOPPED]["output"]
                ledger.stop(number, spent)
                reason = f"forecast {forecast:.4f}, spent {spent:.3f}"
                return Ended(number, run.params, None, reason, is_stopped=True)
            case StoppedRun(spent=spent):
                reason = "the run stopped itself, unasked"
                ledger.fail(number, reason, spent)
                return Ended(number, run.params, None, reason)
            case BadConfiguration(reason=reason, cost=cost):
                ledger.fail(number, reason, cost)
                return Ended(number, run.params, None, reason)
            case Lost(reason=reason):
                ledger.forget(number, reason)
                return Ended(number, run.params, None, reason, is_lost=True)

    def _log(self, number: int) -> None:
        if self.log is not None:
            self.log.write(self._ledger.read(number))

    def _say_changed_data(self, number: int, versions: dict[str, str]) -> None:
        """Whether a run's data were others than those of the runs before it."""
        before = dict(self._study.user_attrs.get(DATA, {})) if versions else {}
        for line in changed_data(before, versions):
            self._sweep.notify(f"warning: trial {number}: {line}")
        if before | versions != before:
            self._study.set_user_attr(DATA, before | versions)
