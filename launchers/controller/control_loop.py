"""The control loop: ask, submit, poll, and tell the study how each trial ended.

The study and the job folders hold all that matters; what the loop keeps in memory it can read from
them again. So a controller may die at any moment: the next one finds the running trials, looks for
their reports, re-attaches to jobs that are alive and resubmits those that are lost.

Several controllers may work on one study, each in a folder of its own. A trial belongs to the
folder in which it was begun, and a folder to whoever holds its lock: so none is submitted twice.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from carbs.launchers.controller.attempts import Attempt, Lost, Run, keep_attempt, kept_attempt
from carbs.launchers.controller.folder import (
    is_cancel_requested,
    last_change,
    take_lock,
    withdraw_cancel,
)
from carbs.launchers.controller.interrupts import Interrupted, Interrupts
from carbs.launchers.controller.outcomes import BadConfiguration, Completed, StoppedRun
from carbs.launchers.controller.suggestions import Suggestions
from carbs.launchers.controller.sweep import Status, Sweep
from carbs.launchers.controller.trial_log import TrialLog
from carbs.launchers.controller.trials import Ended, RunningTrials
from carbs.launchers.errors import FolderError, SweepStoppedError
from carbs.launchers.job.protocol import Result
from carbs.spaces import Params

_POLL_S = 0.05
_REFRESH_S = 30.0
_SHARED_REFRESH_S = 1.0
# Who only looks whether a controller is there holds its lock for a moment.
_LOOK_S = 1.0
# When this many trials have failed and none has finished, something is wrong with all of them.
_HOPELESS_FAILURES = 5


class Controller:
    """The one controller of a sweep, while it is entered.

    Ctrl-C and SIGTERM then end the loop in an orderly way.

    Args:
        sweep: to be run.

    Raises:
        FolderError: on entering: another controller is at work.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._config, self._jobs, self._ledger = sweep.config, sweep.jobs, sweep.ledger
        self._trials = RunningTrials(sweep)
        self._suggestions = Suggestions(sweep.config, sweep.ledger, sweep.sampler, sweep.notify)
        self._interrupts = Interrupts()
        self._exits = ExitStack()
        self._n_lost_in_a_row = 0
        # A database of its own may have other controllers; a file in the folder has this one.
        is_shared = self._config.storage is not None or self._config.storage_file is not None
        self._refresh_s = _SHARED_REFRESH_S if is_shared else _REFRESH_S
        self._refreshed = float("-inf")
        self._changed: float | None = None
        self._told_of: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        folder = self.sweep.folder
        with ExitStack() as exits:
            lock = take_lock(folder, _LOOK_S)
            if lock is None:
                raise FolderError(
                    f"another controller is running the sweep in {folder}: wait for it, or stop it"
                )
            exits.callback(lock.release)
            log = TrialLog(self.sweep)
            exits.callback(log.close)
            exits.enter_context(self._interrupts)
            withdraw_cancel(folder)
            self.sweep.follow_file()
            if self._config.log:
                log.catch_up()
                self._trials.log = log
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exits.close()

    def run(
        self,
        on_change: Callable[[Status], None] = lambda status: None,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> Status:
        """Search until the trials or the budget are used up; call it entered.

        Args:
            on_change: called when a trial was started or has ended.
            on_end: called for each trial that ends.

        Raises:
            Interrupted: by Ctrl-C, or by ``carbs cancel``.
            SweepStoppedError: every trial so far has failed.
        """
        while (pause := self.tick(on_change, on_end)) is not None:
            time.sleep(pause)
        return self.sweep.known_status()

    def tick(
        self,
        on_change: Callable[[Status], None] = lambda status: None,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> float | None:
        """One round: collect what has ended, start what may start.

        Returns:
            Seconds to wait until the next; None once all is done.

        Raises:
            As :meth:`run`.
        """
        trouble = self._jobs.trouble
        self._keep_up_with_others()
        for run, ending in self._jobs.poll(self._trials.runs()):
            self._n_lost_in_a_row = self._n_lost_in_a_row + 1 if isinstance(ending, Lost) else 0
            on_end(self._trials.end(run, ending))
            on_change(self.sweep.known_status())
        self._trials.follow()
        self._raise_if_hopeless()
        self._heed_interrupts(self._trials.runs())
        pause = _POLL_S
        while runs := self._next_batch():
            self._jobs.submit(runs)
            pause = 0.0
            on_change(self.sweep.known_status())
            self._heed_interrupts(self._trials.runs())
            if any(self._jobs.has_report(run) for run in runs):
                break  # a job that ran inside the controller: see first what it has taught
        self._say_what_waits()
        if self._jobs.trouble != trouble:
            on_change(self.sweep.known_status())
        return pause if len(self._trials) else None

    def run_one(self, params: Params, name: str) -> Result | BadConfiguration:
        """Run one configuration outside the search, such as a check run; resumes as trials do.

        Args:
            params: the configuration.
            name: of its folder among the jobs; asked again, the same name gives the same result.

        Raises:
            Interrupted: by Ctrl-C.
        """
        folder, config = self.sweep.folder, self._config

        def save(attempt: Attempt) -> None:
            keep_attempt(folder, name, attempt)

        attempt = kept_attempt(folder, name)
        if attempt is None:
            attempt = self._jobs.first_attempt(name, config.tier(params, None))
        run = Run(name, params, config.seed, save, lambda past: None, attempt)
        while True:
            for _, ending in self._jobs.poll([run]):
                match ending:
                    case Completed(result=result):
                        return result
                    case StoppedRun(spent=spent):
                        return BadConfiguration("the run stopped itself, unasked", spent)
                    case Lost(reason=reason):
                        return BadConfiguration(reason)
                    case BadConfiguration():
                        return ending
            self._heed_interrupts([*self._trials.runs(), run])
            time.sleep(_POLL_S)

    def refresh(self) -> None:
        """Read the study anew, which others may have changed."""
        self._changed, self._refreshed = last_change(self.sweep.folder), time.monotonic()
        self._trials.refresh()

    def _keep_up_with_others(self) -> None:
        """Refresh at first, now and then, and when a command has changed the study."""
        is_due = time.monotonic() - self._refreshed >= self._refresh_s
        if is_due or last_change(self.sweep.folder) != self._changed:
            self.refresh()

    def _next_batch(self) -> list[Run]:
        """New trials that may start now: recorded, but not submitted."""
        config, account = self._config, self._ledger.account()
        left = config.max_trials - account.n_trials
        size = min(config.batch_size, left, config.max_in_flight)
        if len(self._trials) + size > config.max_in_flight:
            return []
        batch: list[Run] = []
        while len(batch) < size and (trial := self._suggestions.begin(account)) is not None:
            batch.append(self._trials.take_on(trial))
            account = self._ledger.account()
        return batch

    def _raise_if_hopeless(self) -> None:
        account = self._ledger.account()
        failures, forgotten = account.records.failures, self._ledger.forgotten
        logs = f"  The logs are in {self.sweep.folder / 'jobs'}."
        if self._n_lost_in_a_row >= _HOPELESS_FAILURES:
            raise SweepStoppedError(
                f"the last {self._n_lost_in_a_row} trials were all spoilt by machines or by what "
                f"is set up there, the last: {forgotten[max(forgotten)]}\n{logs} Mend the cause, "
                "then start the sweep again."
            )
        if len(failures) >= _HOPELESS_FAILURES and not account.records.observations:
            raise SweepStoppedError(
                f"all of the first {len(failures)} trials failed, the last with: "
                f"{failures[-1].reason}\n{logs} Mend the cause, then start the sweep again with "
                "--retry-failed; or move the search_center to what can be trained."
            )

    def _heed_interrupts(self, runs: Sequence[Run]) -> None:
        """Leave off if the user wishes so: once, and jobs go on; twice, and they are cancelled."""
        came, is_cancelled = self._interrupts, is_cancel_requested(self.sweep.folder)
        if not came.have_come() and not is_cancelled:
            return
        if runs and not is_cancelled and not came.is_terminated:
            self.sweep.notify("interrupted; once more within two seconds cancels the running jobs")
            came.wait_for_second()
        if is_cancelled or came.n_ctrl_c > 1:
            self._jobs.cancel(runs)
            is_cancelled = True
        by = signal.SIGTERM if came.is_terminated else signal.SIGINT
        raise Interrupted(is_cancelled, [str(run) for run in runs], by)

    def _say_what_waits(self) -> None:
        """Tell once of each job that will not start by itself."""
        for run in self._trials.runs():
            state = run.state
            if state is None or not state.advice:
                continue
            if (run.key, state.advice) not in self._told_of:
                self._told_of.add((run.key, state.advice))
                self.sweep.notify(f"{run} does not start ({state.reason}): {state.advice}")
