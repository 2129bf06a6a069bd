"""The control loop against a scripted Slurm: what it does at every turn of a job's life."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from carbs.launchers.cli.status import read_status
from carbs.launchers.cluster.executors import SlurmExecutor
from carbs.launchers.cluster.slurm import Slurm, SlurmState, sbatch_script
from carbs.launchers.controller.commands import drop, retry
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.interrupts import Interrupted
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.controller.trials import Ended
from carbs.launchers.errors import SchedulerDownError, SweepStoppedError
from carbs.launchers.job.files import (
    Failed,
    Finished,
    Start,
    Unhealthy,
    mark_begun,
    write_report,
    write_start,
)
from carbs.launchers.job.process import JobRun
from carbs.launchers.job.protocol import Result

WriteSweep = Callable[..., Path]
GRACE_S = 10.0


class ScriptedSlurm(Slurm):
    """A Slurm that does what the test says.

    Attributes:
        states: of the jobs in the queue, by id; a job that is not there is gone.
        accounts: what the database says of jobs.
        is_down: whether the controller gives no answer; ``has_no_database`` likewise.
    """

    def __init__(self) -> None:
        self.states: dict[str, SlurmState] = {}
        self.accounts: dict[str, SlurmState] = {}
        self.named: dict[str, list[str]] = {}
        self.folders: dict[str, Path] = {}
        self.options: dict[str, Mapping[str, Any]] = {}
        self.cancelled: list[str] = []
        self.n_submissions = 0
        self.is_down = False
        self.has_no_database = False
        self.loses_answer = False

    def submit(
        self, folder: Path, name: str, options: Mapping[str, Any], runs: Sequence[JobRun]
    ) -> list[str]:
        if self.is_down:
            raise SchedulerDownError("sbatch: Unable to contact slurm controller")
        self.n_submissions += 1
        main = str(100 + self.n_submissions)
        ids = [main] if len(runs) == 1 else [f"{main}_{i}" for i in range(len(runs))]
        for job_id, run in zip(ids, runs, strict=True):
            self.states[job_id] = SlurmState("PENDING")
            self.folders[job_id] = Path(run.folder)
            self.options[job_id] = options
        self.named[name] = ids
        if self.loses_answer:
            self.loses_answer = False
            raise SchedulerDownError("sbatch: Socket timed out")
        return ids

    def queue(self) -> dict[str, SlurmState] | None:
        return None if self.is_down else dict(self.states)

    def accounting(self, ids: Any) -> dict[str, SlurmState] | None:
        if self.has_no_database:
            return None
        return {job_id: self.accounts[job_id] for job_id in ids if job_id in self.accounts}

    def find(self, name: str, since: float) -> list[str] | None:
        return None if self.is_down else self.named.get(name, [])

    def cancel(self, ids: Any) -> bool:
        self.cancelled += ids
        return not self.is_down

    def runs(self, job_id: str, node: str = "n1", has_begun: bool = True) -> None:
        self.states[job_id] = SlurmState("RUNNING", node)
        write_start(self.folders[job_id], Start(node=node, started=0.0))
        if has_begun:
            mark_begun(self.folders[job_id])

    def ends(self, job_id: str, state: str, node: str = "n1") -> None:
        del self.states[job_id]
        self.accounts[job_id] = SlurmState(state, node)

    def reports(self, job_id: str, output: float = 1.0) -> None:
        finished = Finished(result=Result(output=output, cost=2.0))
        write_report(self.folders[job_id], finished)
        self.states.pop(job_id, None)


class Bench:
    """A sweep with a scripted Slurm and a clock that the test moves."""

    def __init__(self, file: Path, slurm: ScriptedSlurm | None = None) -> None:
        self.slurm = slurm or ScriptedSlurm()
        self.now = 1_000_000.0
        self.ended: list[Ended] = []
        executor = SlurmExecutor(self.slurm, poll_s=1.0, grace_s=GRACE_S)
        self.sweep = Sweep(
            load_sweep(file), file.parent / "sweep", executor=executor, clock=lambda: self.now
        )
        self.controller = Controller(self.sweep)

    def ticks(self, n: int = 1, seconds: float = 2.0) -> None:
        for _ in range(n):
            self.now += seconds
            self.controller.tick(on_end=self.ended.append)

    def until_believed(self) -> None:
        """As long as it takes until a job that is gone counts as gone, and a round more."""
        self.ticks(int(GRACE_S / 2) + 2)

    def job(self, number: int = 0) -> dict[str, Any]:
        return dict(self.sweep.trial(number).user_attrs["job"])

    def reasons(self, number: int = 0) -> list[str]:
        past = self.sweep.trial(number).user_attrs.get("attempts", [])
        return [attempt["reason"] for attempt in past]


@pytest.fixture
def bench(write_sweep: WriteSweep) -> Callable[..., Bench]:
    def bench(slurm: ScriptedSlurm | None = None, **keys: Any) -> Bench:
        defaults = {"executor": "slurm", "max_trials": 1, "max_in_flight": 1}
        return Bench(write_sweep(**{**defaults, **keys}), slurm)

    return bench


def test_a_job_from_submission_to_result(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.ticks()
    job = b.job()
    assert (job["id"], job["attempt"], job["folder"]) == ("101", 1, "jobs/00000-1")
    assert job["name"].startswith(b.sweep.jobs.id)
    b.slurm.runs("101")
    b.ticks(3)
    assert b.ended == []
    b.slurm.reports("101", 1.5)
    b.ticks()
    assert [ended.number for ended in b.ended] == [0]
    assert b.sweep.trial(0).values == [1.5, 2.0]
    assert b.controller.tick() is None


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED", "FAILED", "COMPLETED"])
def test_an_end_is_not_believed_at_once(bench: Callable[..., Bench], state: str) -> None:
    """Slurm requeues, files are late, and the queue forgets a job before its report is seen."""
    b = bench()
    b.ticks()
    b.slurm.states["101"] = SlurmState(state, "n1")
    b.ticks(3)
    b.slurm.states["101"] = SlurmState("PENDING")
    b.ticks(20)
    b.slurm.ends("101", state)
    b.ticks(3)
    b.slurm.reports("101")
    b.ticks()
    assert b.slurm.n_submissions == 1
    assert b.sweep.trial(0).state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("OUT_OF_MEMORY", "out of memory, before the training itself had begun: raise mem_gb"),
        ("TIMEOUT", "time limit, before the training itself had begun: raise timeout_min"),
        ("FAILED", "the job ended, before the training itself had begun: see its log"),
    ],
)
def test_what_ends_before_the_training_begins_teaches_nothing(
    bench: Callable[..., Bench], state: str, said: str
) -> None:
    b = bench()
    b.ticks()
    for job_id in ("101", "102"):
        b.slurm.runs(job_id, has_begun=False)
        b.ticks()
        b.slurm.ends(job_id, state)
        b.until_believed()
    (ended,) = b.ended
    assert ended.is_lost
    assert said in str(ended.reason)
    assert b.sweep.status().records.failures == []
    assert b.sweep.nodes.excluded() == []


@pytest.mark.parametrize(
    ("state", "reason", "is_node_avoided"),
    [
        ("NODE_FAIL", "the node failed", True),
        ("CANCELLED by 0", "cancelled from outside", True),
        ("PREEMPTED", "preempted", False),
        ("FAILED", "the job ended without a report", True),
    ],
)
def test_a_machines_fault_is_tried_elsewhere_and_teaches_nothing(
    bench: Callable[..., Bench], state: str, reason: str, is_node_avoided: bool
) -> None:
    b = bench()
    b.ticks()
    b.slurm.runs("101")
    b.ticks()
    b.slurm.ends("101", state)
    b.until_believed()
    assert b.slurm.n_submissions == 2
    assert b.reasons() == [reason]
    assert b.slurm.options["102"].get("exclude") == ("n1" if is_node_avoided else None)
    # What may still be of the first one is ended.
    assert b.slurm.cancelled == ["101"]
    b.slurm.reports("102")
    b.ticks()
    known = b.sweep.status().records
    assert (len(known.observations), len(known.failures)) == (1, 0)


def test_a_job_that_nobody_knows_is_lost_only_if_the_database_answers(
    bench: Callable[..., Bench],
) -> None:
    b = bench()
    b.ticks()
    b.slurm.has_no_database = True
    del b.slurm.states["101"]
    b.ticks(50)
    assert b.slurm.n_submissions == 1
    assert b.sweep.status().trouble == "the scheduler does not answer"
    b.slurm.has_no_database = False
    b.until_believed()
    assert b.slurm.n_submissions == 2


def test_a_controller_that_is_down_says_nothing(bench: Callable[..., Bench]) -> None:
    b = bench(max_trials=2, max_in_flight=2)
    b.ticks()
    b.slurm.is_down = True
    b.ticks(50)
    b.slurm.reports("101")  # results arrive all the same
    b.ticks()
    assert [ended.number for ended in b.ended] == [0]
    b.slurm.is_down = False
    b.ticks(2)
    assert b.slurm.n_submissions == 2


def test_a_submission_whose_answer_was_lost_is_not_repeated(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.slurm.loses_answer = True
    b.ticks()
    assert b.job()["id"] is None
    b.ticks()
    assert b.job()["id"] == "101"
    assert b.slurm.n_submissions == 1


def test_what_could_not_be_submitted_is_submitted_later(bench: Callable[..., Bench]) -> None:
    b = bench(max_trials=3, max_in_flight=3, batch_size=3)
    b.slurm.is_down = True
    b.ticks(5)
    assert [b.job(number)["id"] for number in range(3)] == [None] * 3
    b.slurm.is_down = False
    b.ticks(2)
    assert len({b.job(number)["id"] for number in range(3)}) == 3


def test_a_new_controller_finds_jobs_by_their_names(bench: Callable[..., Bench]) -> None:
    b = bench(max_trials=4, max_in_flight=4, batch_size=2)
    b.ticks()
    jobs = [b.job(number) for number in range(4)]
    assert [job["id"] for job in jobs] == ["101_0", "101_1", "102_0", "102_1"]
    for number in (1, 2):  # as if the first one had died before it wrote these down
        b.sweep.ledger.set(number, "job", {**jobs[number], "id": None})
    after = bench(b.slurm, max_trials=4, max_in_flight=4, batch_size=2)
    after.ticks()
    assert [after.job(number)["id"] for number in range(4)] == [job["id"] for job in jobs]
    assert b.slurm.n_submissions == 2


def test_a_failure_is_the_configurations_unless_its_words_are_a_machines(
    bench: Callable[..., Bench],
) -> None:
    words = [
        ("RuntimeError: NCCL error: unhandled system error", 2),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", 3),
        ("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 3),
    ]
    b = bench()
    b.ticks()
    for i, (reason, n_submissions) in enumerate(words):
        job_id = b.job()["id"]
        b.slurm.runs(job_id, f"n{i}")
        b.ticks()
        failed = Failed(reason=reason, traceback=reason, exception="RuntimeError")
        write_report(b.slurm.folders[job_id], failed)
        b.ticks(2)
        assert b.slurm.n_submissions == n_submissions
    (failure,) = b.sweep.status().records.failures
    assert failure.reason.startswith("out of GPU memory: ")
    # The broken GPU's node is left alone by the whole sweep, the other only by the next attempt.
    assert set(b.sweep.nodes.all()) == {"n1"}


def test_patterns_of_the_sweep_file_come_first(bench: Callable[..., Bench]) -> None:
    rule = {"pattern": "license", "verdict": "bad_machine", "reason": "no licence free"}
    b = bench(outcomes=[rule])
    b.ticks()
    reason = "RuntimeError: CUDA out of memory for the LICENSE server"
    failed = Failed(reason=reason, traceback=reason, exception="RuntimeError")
    write_report(b.slurm.folders["101"], failed)
    b.ticks(2)
    assert b.reasons()[0].startswith("no licence free")
    # What the function itself calls a bad configuration is one, whatever its words.
    write_report(b.slurm.folders["102"], Failed(reason="license denied", traceback=""))
    b.ticks()
    assert [failure.reason for failure in b.sweep.status().records.failures] == ["license denied"]


def test_an_unfit_node_is_left_alone_for_a_while(bench: Callable[..., Bench]) -> None:
    b = bench(exclude_node_for_s=1000, max_trials=2, max_in_flight=1)
    b.ticks()
    b.slurm.runs("101", "n3")
    unhealthy = Unhealthy(node="n3", problems=["speed: 1 TFLOP/s, expected at least 5"])
    write_report(b.slurm.folders["101"], unhealthy)
    b.ticks(2)
    assert b.slurm.options["102"]["exclude"] == "n3"
    (node,) = read_status(b.sweep).excluded_nodes
    assert node.node == "n3"
    assert "expected at least 5" in node.reason
    # A full disk is no node's fault: it is the same from all of them.
    b.slurm.runs("102", "n2")
    full = "disk: cannot write: [Errno 28] No space left on device, expected to write a file"
    write_report(b.slurm.folders["102"], Unhealthy(node="n2", problems=[full]))
    b.ticks(2)
    assert set(b.sweep.nodes.all()) == {"n3"}
    b.now += 2000
    b.slurm.reports("103")
    b.ticks(2)
    assert "exclude" not in b.slurm.options["104"]
    # Broken again: for longer.
    b.slurm.runs("104", "n3")
    write_report(b.slurm.folders["104"], unhealthy)
    b.ticks(2)
    assert b.sweep.nodes.all()["n3"]["until"] - b.now > 1900


def test_after_too_many_machines_a_trial_is_given_up_and_another_asked(
    bench: Callable[..., Bench],
) -> None:
    b = bench(machine_retries=2)
    for attempt in (1, 2, 3):
        b.ticks(2)
        b.slurm.ends(str(100 + attempt), "NODE_FAIL", f"n{attempt}")
        b.until_believed()
    assert [ended.is_lost for ended in b.ended] == [True]
    assert "3 attempts were spoilt by machines" in str(b.sweep.trial(0).user_attrs["forgotten"])
    known = b.sweep.status().records
    assert (len(known.observations), len(known.failures), len(known.pending)) == (0, 0, 1)


def test_a_sweep_in_which_every_machine_fails_stops(bench: Callable[..., Bench]) -> None:
    b = bench(machine_retries=0, max_trials=60)
    with pytest.raises(SweepStoppedError, match="all spoilt by machines"):
        for number in range(10):
            b.ticks()
            b.slurm.ends(str(101 + number), "NODE_FAIL", "n1")
            b.until_believed()


def test_a_time_limit_is_no_failure_while_there_is_progress(bench: Callable[..., Bench]) -> None:
    b = bench(machine_retries=0)
    b.ticks()
    checkpoints = b.sweep.folder / "checkpoints" / "00000"
    checkpoints.mkdir()
    for attempt in (1, 2, 3):
        (checkpoints / f"step-0000{attempt}.pt").touch()
        b.slurm.runs(str(100 + attempt))
        b.slurm.ends(str(100 + attempt), "TIMEOUT")
        b.until_believed()
        assert b.slurm.n_submissions == attempt + 1
    b.slurm.runs("104")
    b.slurm.ends("104", "TIMEOUT")
    b.until_believed()
    (failure,) = b.sweep.status().records.failures
    assert failure.reason.startswith("too slow")
    assert not checkpoints.exists()


def test_of_an_orphan_and_its_copy_exactly_one_counts(bench: Callable[..., Bench]) -> None:
    b = bench()
    b.ticks()
    b.slurm.runs("101")
    b.ticks()
    b.slurm.ends("101", "NODE_FAIL")
    b.until_believed()
    b.slurm.runs("102", "n2")
    b.ticks()
    b.slurm.folders["orphan"] = b.slurm.folders["101"]
    b.slurm.reports("orphan", 1.25)
    b.ticks()
    assert b.sweep.trial(0).values == [1.25, 2.0]
    assert "102" in b.slurm.cancelled
    b.slurm.reports("102", 1.75)
    b.ticks()
    assert b.sweep.trial(0).values == [1.25, 2.0]
    assert len(b.ended) == 1


def test_what_is_cancelled_by_the_user_starts_anew_and_is_no_fault(
    bench: Callable[..., Bench],
) -> None:
    b = bench(machine_retries=0)
    b.ticks()
    b.slurm.runs("101")
    (b.sweep.folder / "cancel").touch()
    with pytest.raises(Interrupted) as interrupted:
        b.ticks()
    assert interrupted.value.is_cancelled
    assert b.slurm.cancelled == ["101"]
    (b.sweep.folder / "cancel").unlink()
    after = bench(b.slurm, machine_retries=0)
    after.ticks()
    assert after.job()["attempt"] == 2
    b.slurm.reports("102")
    after.ticks()
    assert after.sweep.trial(0).state == TrialState.COMPLETE


def test_drop_and_retry_reach_a_controller_at_work(bench: Callable[..., Bench]) -> None:
    b = bench(max_trials=2, max_in_flight=2)
    b.ticks()
    user = bench(b.slurm, max_trials=2, max_in_flight=2)
    assert "dropped" in drop(user.sweep, 0)
    b.ticks()
    assert "101" in b.slurm.cancelled
    assert b.slurm.n_submissions == 3  # another in its place
    b.slurm.reports("101")  # too late
    b.slurm.reports("102")
    b.ticks()
    assert [o.id for o in b.sweep.status().records.observations] == ["1"]
    retry(user.sweep, 1)
    b.ticks(2)
    again = b.sweep.trial(3)
    assert again.params == b.sweep.trial(1).params
    assert again.user_attrs["retry_of"] == 1
    assert b.sweep.status().records.observations == []
    assert read_status(b.sweep).trials["dropped"] == 2


def test_two_folders_on_one_study_share_its_trials_but_no_job(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    file = write_sweep(
        executor="slurm", max_trials=5, max_in_flight=2, storage=f"sqlite:///{tmp_path}/s.db"
    )
    config, slurms = load_sweep(file), [ScriptedSlurm(), ScriptedSlurm()]
    sweeps = [
        Sweep(config, tmp_path / f"host{i}", executor=SlurmExecutor(slurm, 0.0, 0.0))
        for i, slurm in enumerate(slurms)
    ]
    controllers = [Controller(sweep) for sweep in sweeps]
    for _ in range(6):
        for controller, slurm in zip(controllers, slurms, strict=True):
            controller.refresh()
            controller.tick()
            for job_id in list(slurm.states):
                slurm.reports(job_id)
    trials = sweeps[0].study.get_trials()
    assert len(trials) == 5
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert sum(slurm.n_submissions for slurm in slurms) == 5
    assert min(slurm.n_submissions for slurm in slurms) > 0


def test_the_cost_in_flight_is_capped(bench: Callable[..., Bench]) -> None:
    b = bench(max_trials=20, max_in_flight=10, max_cost_in_flight=4.5)
    b.ticks()
    while len(b.ended) < 3:
        b.slurm.reports(next(iter(b.slurm.states)))
        b.ticks()
    for _ in range(5):
        b.ticks()
        status = b.sweep.status()
        assert status.reserved <= 4.5 or len(status.records.pending) > 0
        b.slurm.reports(next(iter(b.slurm.states)))
    b.ticks()
    # Each costs 2: so two at a time.
    assert len(b.slurm.states) == 2


def test_the_script_is_what_it_was(tmp_path: Path) -> None:
    """Golden: what sbatch is given, with an option of each kind."""
    options = {
        "partition": "gpu",
        "account": "lab",
        "qos": "high",
        "timeout_min": 240,
        "nodes": 2,
        "tasks_per_node": 4,
        "gpus_per_node": 4,
        "cpus_per_task": 8,
        "mem_gb": 64,
        "constraint": "a100",
        "exclude": "n7",
        "setup": ["source /shared/venv/bin/activate"],
        "additional_parameters": {"mail-type": "FAIL"},
        "python": "/shared/venv/bin/python",
    }
    script = sbatch_script(Path("/shared/sweep/jobs/00007-1"), "sweep-00007-1", options)
    assert script == (Path(__file__).parent / "sbatch.txt").read_text()
