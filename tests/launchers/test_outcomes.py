"""What a job's end means: the whole table."""

from __future__ import annotations

import pytest

from launchers.job import Failed, Finished, Result, Stopped
from launchers.outcomes import (
    MAX_ATTEMPTS,
    BadConfiguration,
    BadMachine,
    Completed,
    Running,
    StoppedRun,
    classify,
)

RESULT = Result(output=1.5, cost=2.0, metrics={"steps": 3})
FINISHED = Finished(result=RESULT)
FAILED = Failed(reason="diverged", cost=0.5, traceback="...")


@pytest.mark.parametrize("is_alive", [True, False])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_report_is_believed_whatever_the_process_does(is_alive: bool, attempt: int) -> None:
    assert classify(FINISHED, is_alive, attempt) == Completed(RESULT)
    assert classify(FAILED, is_alive, attempt) == BadConfiguration("diverged", 0.5)
    assert classify(Stopped(cost=0.3), is_alive, attempt) == StoppedRun(0.3)


@pytest.mark.parametrize("attempt", [1, 2])
def test_no_report_yet(attempt: int) -> None:
    assert classify(None, True, attempt) == Running()


def test_no_report_and_no_process_is_the_machines_fault_once() -> None:
    assert MAX_ATTEMPTS == 2
    assert isinstance(classify(None, False, 1), BadMachine)
    outcome = classify(None, False, 2)
    assert isinstance(outcome, BadConfiguration)
    assert "without a report, 2 times" in outcome.reason
    assert outcome.cost is None
