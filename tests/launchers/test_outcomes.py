"""What a job's end means: the whole table."""

from __future__ import annotations

import pytest

from carbs.launchers.controller.outcomes import (
    MAX_ATTEMPTS,
    BadConfiguration,
    BadMachine,
    Completed,
    OutOfTime,
    StoppedRun,
    classify,
)
from carbs.launchers.job.files import Failed, Finished, Stopped
from carbs.launchers.job.protocol import Result

RESULT = Result(output=1.5, cost=2.0, metrics={"steps": 3})
FINISHED = Finished(result=RESULT)
FAILED = Failed(reason="diverged", cost=0.5, traceback="...")


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_report_is_believed(attempt: int) -> None:
    assert classify(FINISHED, attempt) == Completed(RESULT)
    assert classify(FAILED, attempt) == BadConfiguration("diverged", 0.5)
    assert classify(Stopped(cost=0.3), attempt) == StoppedRun(0.3)


def test_no_report_and_no_process_is_the_machines_fault_once() -> None:
    assert MAX_ATTEMPTS == 2
    assert isinstance(classify(None, 1), BadMachine)
    outcome = classify(None, 2)
    assert isinstance(outcome, BadConfiguration)
    assert "without a report, 2 times" in outcome.reason
    assert outcome.cost is None


@pytest.mark.parametrize("name", ["TimeoutError", "CancelledError", "PreemptedError"])
def test_an_exception_is_not_taken_for_a_state_of_slurms(name: str) -> None:
    report = Failed(reason=f"{name}: no data", traceback=f"{name}: no data", exception=name)
    assert classify(report, 1) == BadConfiguration(f"{name}: no data")


@pytest.mark.parametrize(
    ("evidence", "kind", "reason"),
    [
        ("OUT_OF_MEMORY", BadConfiguration, "out of memory"),
        ("FAILED\nslurmstepd: error: Step 3.0 exceeded memory limit", BadConfiguration, "memory"),
        ("FAILED\ntorch.OutOfMemoryError: CUDA out of memory.", BadConfiguration, "GPU memory"),
        ("TIMEOUT", BadConfiguration, "too slow"),
        ("FAILED\n*** STEP 3.0 CANCELLED AT 1 DUE TO TIME LIMIT ***", BadConfiguration, "too slow"),
        ("NODE_FAIL", BadMachine, "the node failed"),
        ("PREEMPTED", BadMachine, "preempted"),
        ("FAILED\n*** JOB 3 CANCELLED AT 1 DUE TO PREEMPTION ***", BadMachine, "preempted"),
        ("CANCELLED by 1000", BadMachine, "cancelled from outside"),
        ("FAILED\nNCCL WARN Timeout waiting for", BadMachine, "NCCL"),
        ("FAILED\nNVRM: Xid (PCI:0000:3b:00): 79", BadMachine, "Xid"),
        ("FAILED\nOSError: [Errno 28] No space left on device", BadMachine, "disk is full"),
        ("FAILED\nOSError: [Errno 116] Stale file handle", BadMachine, "file system"),
    ],
)
def test_an_end_without_a_report_is_explained_by_the_table(
    evidence: str, kind: type, reason: str
) -> None:
    outcome = classify(None, 1, evidence=evidence)
    assert isinstance(outcome, kind)
    assert reason in outcome.reason  # type: ignore[attr-defined]
    if kind is BadMachine:
        assert outcome.is_explained  # type: ignore[attr-defined]


def test_a_time_limit_with_progress_goes_on() -> None:
    assert classify(None, 1, evidence="TIMEOUT", made_progress=True) == OutOfTime()
