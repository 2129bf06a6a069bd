"""What the end of a job means: a result, a bad configuration, or a broken machine.

The job's own report is believed first. A job that ended without one is the machine's fault the
first time, and the configuration's the second: what kills its process on two machines is likelier
to be itself (memory) than the machines.
"""

from __future__ import annotations

from dataclasses import dataclass

from launchers.job import Failed, Finished, JobReport, Result, Stopped

MAX_ATTEMPTS = 2


@dataclass(frozen=True)
class Running:
    """Queued or running: look again later."""


@dataclass(frozen=True)
class Completed:
    """A result to learn from."""

    result: Result


@dataclass(frozen=True)
class BadConfiguration:
    """A failure to learn from. ``cost`` is what was spent, where known."""

    reason: str
    cost: float | None = None


@dataclass(frozen=True)
class StoppedRun:
    """Stopped on the controller's wish; its learning curve says how it would have ended."""

    spent: float


@dataclass(frozen=True)
class BadMachine:
    """To be tried again; the search learns nothing."""

    reason: str


Outcome = Running | Completed | BadConfiguration | StoppedRun | BadMachine


def classify(report: JobReport | None, is_alive: bool, attempt: int) -> Outcome:
    """Judge a job.

    Args:
        report: what the job wrote, if anything.
        is_alive: whether it is queued or running; asked *before* the report was looked for, so
            that a job which ends in between is not taken for lost.
        attempt: which attempt at the trial this job was, from 1.
    """
    match report:
        case Finished(result=result):
            return Completed(result)
        case Failed(reason=reason, cost=cost):
            return BadConfiguration(reason, cost)
        case Stopped(cost=cost):
            return StoppedRun(cost)
    if is_alive:
        return Running()
    if attempt < MAX_ATTEMPTS:
        return BadMachine("the job ended without a report")
    return BadConfiguration(f"the job ended without a report, {attempt} times in a row")
