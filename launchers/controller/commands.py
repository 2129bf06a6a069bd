"""What a user may do to a sweep's trials, whether or not a controller is at work on it."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from carbs.launchers.cluster.executors import SlurmExecutor
from carbs.launchers.controller.attempts import Attempt
from carbs.launchers.controller.folder import (
    note_change,
    request_cancel,
    take_lock,
    withdraw_cancel,
)
from carbs.launchers.controller.ledger import JOB, RETRY_OF
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.controller.trials import RunningTrials
from carbs.launchers.errors import FolderError
from carbs.study import DROPPED, FORGOTTEN, flatten, unflatten

# How long a controller may take to cancel its jobs.
_ENDING_S = 60.0


def retry(sweep: Sweep, number: int) -> str:
    """Try a trial again: one that runs on another machine, one that has ended as a new trial.

    Returns:
        What was done.

    Raises:
        FolderError: there is no such trial.
    """
    trial = sweep.trial(number)
    if trial.state == TrialState.RUNNING:
        _cancel_job(sweep, trial)
        return f"trial {number} is running: its job was cancelled, and is started anew"
    _enqueue(sweep, [number])
    return f"trial {number} no longer counts; its configuration is tried again as a new trial"


def retry_failed(sweep: Sweep) -> int:
    """Try the configurations of all failed trials again, as new trials.

    Returns:
        How many there are.
    """
    dropped = set(sweep.study.user_attrs.get(DROPPED, ()))
    numbers = [
        trial.number
        for trial in sweep.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if FORGOTTEN not in trial.user_attrs and trial.number not in dropped
    ]
    _enqueue(sweep, numbers)
    return len(numbers)


def drop(sweep: Sweep, number: int) -> str:
    """Take a trial out: the search forgets it, and its job is cancelled.

    Returns:
        What was done.

    Raises:
        FolderError: there is no such trial.
    """
    trial = sweep.trial(number)
    sweep.ledger.drop(number)
    if trial.state == TrialState.RUNNING:
        _cancel_job(sweep, trial)
        sweep.ledger.forget(number, "dropped by the user")
    sweep.backup.keep(sweep.ledger.read(number))
    sweep.backup.copy()
    note_change(sweep.folder)
    return f"trial {number} is dropped: it teaches nothing and counts for nothing"


def cancel(sweep: Sweep) -> int:
    """Cancel the sweep's jobs, also those that no controller knows of; and its controller.

    When the sweep is continued, its running trials start anew.

    Returns:
        How many jobs there were.

    Raises:
        FolderError: the controller does not end.
        SchedulerDownError: the scheduler does not answer.
    """
    folder, jobs = sweep.folder, sweep.jobs
    lock = take_lock(folder)
    if lock is None:
        request_cancel(folder)
        lock = take_lock(folder, _ENDING_S)
    if lock is None:
        raise FolderError(
            f"the controller of {folder} does not heed the request to end: stop it, then "
            "cancel again"
        )
    try:
        trials = RunningTrials(sweep)
        trials.refresh()
        runs = trials.runs()
        jobs.cancel(runs)
        n_jobs = len([run for run in runs if run.attempt.id is not None])
        if isinstance(jobs.executor, SlurmExecutor):
            n_jobs = max(n_jobs, len(jobs.executor.cancel_named(f"{jobs.id}-")))
        withdraw_cancel(folder)
        return n_jobs
    finally:
        lock.release()


def _cancel_job(sweep: Sweep, trial: FrozenTrial) -> None:
    if JOB in trial.user_attrs:
        attempt = Attempt.model_validate(trial.user_attrs[JOB])
        sweep.jobs.executor.cancel([sweep.jobs.handle(attempt)])


def _enqueue(sweep: Sweep, numbers: Sequence[int]) -> None:
    """Enqueue the configurations of ended trials, which no longer count."""
    waiting = sweep.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    enqueued = {trial.user_attrs.get(RETRY_OF) for trial in waiting}
    for number in numbers:
        params = unflatten(sweep.space, sweep.trial(number).params)
        if params is None:
            raise FolderError(
                f"trial {number} cannot be tried again: it lacks parameters of the sweep file"
            )
        if number not in enqueued:  # by a command that did not come to its end
            sweep.study.enqueue_trial(flatten(params), user_attrs={RETRY_OF: number})
    sweep.ledger.drop(*numbers)
    sweep.backup.copy()
    note_change(sweep.folder)
