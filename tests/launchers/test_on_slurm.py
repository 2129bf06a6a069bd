"""Sweeps on a real Slurm with four emulated nodes: ``tests/slurm/start.sh`` brings it up.

Where Slurm is required (``CARBS_REQUIRE_SLURM=1``, as in ``.ci/run``) its absence is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

Carbs = Callable[..., Any]
WaitUntil = Callable[[Callable[[], bool], str], None]

# Trials are told apart by their seeds. Each says when it starts and when it finishes.
TRAINING = """
import os, sys, time
from pathlib import Path

def note(job, what):
    with open(job.settings["log"], "a") as log:
        log.write(f"{what} {job.seed} {os.environ['SLURMD_NODENAME']}\\n")

def wait_until(condition):
    while not condition():
        time.sleep(0.02)

def wait_for_checkpoint_request(job):
    wait_until(job.should_checkpoint)

def train(params, job):
    note(job, "start")
    go = Path(job.settings["go"])
    BODY
    note(job, "finish")
    x = params["x"]
    return {"output": 1 + x**-0.5, "cost": 1 + x, "metrics": {"job": os.environ["SLURM_JOB_ID"]}}
"""


@pytest.fixture(scope="module")
def slurm() -> None:
    """Slurm answers, or the tests are skipped; the nodes are up afterwards."""
    is_up = shutil.which("scontrol") is not None and "SLURM_CONF" in os.environ
    is_up = is_up and ask("scontrol", "ping").returncode == 0
    if not is_up:
        reason = "no Slurm answers: run tests/slurm/start.sh, and export what it prints"
        assert os.environ.get("CARBS_REQUIRE_SLURM") != "1", reason
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def nodes_up(slurm: None) -> Iterator[None]:
    yield
    ask("scontrol", "update", "nodename=n[1-4]", "state=resume")


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def make_sweep(
    write_module: Callable[[str], str],
    write_sweep: Callable[..., Path],
    tmp_path: Path,
    log: Path,
    request: pytest.FixtureRequest,
) -> Callable[..., Path]:
    def make_sweep(body: str = "pass", **keys: Any) -> Path:
        name = write_module(TRAINING.replace("BODY", body))
        options = {"cpus_per_task": 1, "mem_gb": 0.5, "timeout_min": 10}
        options["setup"] = [f"export PYTHONPATH={request.config.rootpath} OMP_NUM_THREADS=1"]
        settings = {"log": str(log), "go": str(tmp_path / "go")}
        defaults = {
            "executor": "slurm",
            "executor_options": options,
            "settings": settings,
            "poll_s": 0.5,
            "grace_s": 3,
            "health_check": False,
        }
        return write_sweep(**{"function": f"{name}:train", **defaults, **keys})

    return make_sweep


def counts(log: Path) -> tuple[Counter[int], Counter[int]]:
    """How often each trial has started and has finished."""
    found = {"start": Counter[int](), "finish": Counter[int]()}
    for line in log.read_text().splitlines():
        what, seed, _ = line.split()
        found[what][int(seed)] += 1
    return found["start"], found["finish"]


def stored_trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'study.db'}").trials


def queued(folder: Path) -> list[str]:
    """The sweep's jobs in Slurm's queue, without those that have ended and are being cleared up."""
    prefix = (folder / "sweep.id").read_text()
    lines = ask("squeue", "--noheader", "--array", "--format=%j %T").stdout.splitlines()
    jobs = [line.split() for line in lines]
    return [name for name, state in jobs if name.startswith(prefix) and state != "COMPLETING"]


def test_a_sweep_of_job_arrays(
    make_sweep: Callable[..., Path], tmp_path: Path, carbs: Carbs, log: Path
) -> None:
    file = make_sweep(
        batch_size=3,
        max_in_flight=3,
        health_check=True,
        max_slowdown=None,
        tiers={"dear": {"min_cost": 1e9}, "all": {"when": "x > 0", "options": {"mem_gb": 1}}},
    )
    folder = tmp_path / "sweep"
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "6 trials done, 0 failed" in out
    trials = stored_trials(folder)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    jobs = [trial.user_attrs["job"] for trial in trials]
    assert {job["tier"] for job in jobs} == {"all"}
    assert [job["id"].split("_")[1] for job in jobs] == ["0", "1", "2"] * 2
    assert len({job["id"].split("_")[0] for job in jobs}) == 2
    assert counts(log)[1] == dict.fromkeys(range(6), 1)
    # Each job has looked at its node, and both costs are kept.
    for trial in trials:
        speed = trial.user_attrs["speed"]
        assert speed["node"] in ("n1", "n2", "n3", "n4")
        assert speed["speed"] > 0
        assert speed["measured_cost"] == pytest.approx(1 + trial.params["x"])
        assert speed["normalised_cost"] == trial.values[1]
    (script,) = (folder / "jobs" / jobs[0]["name"]).glob("*_submission.sh")
    assert "#SBATCH --array=0-2%3" in script.read_text()
    assert "#SBATCH --mem=1024MB" in script.read_text()
    assert queued(folder) == []


def test_a_killed_controller_loses_and_repeats_nothing(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    """One job ends while no controller lives, one goes on, and of one the record was lost."""
    folder, go = tmp_path / "sweep", tmp_path / "go"
    file = make_sweep("wait_until(lambda: job.seed == 0 or go.exists())", max_trials=4)
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: {0, 1, 2} <= set(counts(log)[0]), "three jobs")
    controller.process.kill()
    controller.process.wait()
    running = [t for t in stored_trials(folder) if t.state == TrialState.RUNNING]
    assert [trial.number for trial in running] == [1, 2]
    # As if it had been killed between sbatch and its record.
    study = optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'study.db'}")
    storage, lost = study._storage, running[1]
    job = lost.user_attrs["job"]
    storage.set_trial_user_attr(lost._trial_id, "job", {**job, "id": None})
    controller = carbs("sweep", file, "--folder", folder)

    def is_found() -> bool:
        return stored_trials(folder)[2].user_attrs["job"]["id"] == job["id"]

    wait_until(is_found, "the job to be found by its name")
    go.touch()
    code, out, err = controller.wait()
    assert code == 0, err
    assert "4 trials done, 0 failed" in out
    starts, finishes = counts(log)
    assert starts == finishes == dict.fromkeys(range(4), 1)
    assert queued(folder) == []


# What happens to each trial, by its seed. The first look of 3 and 5 leaves a checkpoint.
MISHAPS = """
    first = not (job.checkpoint_folder / "seen").exists()
    if job.seed == 2:
        hoard = []
        while True:
            hoard.append(b"x" * 50_000_000)
            time.sleep(0.2)
    if job.seed in (3, 5) and first:
        job.checkpoint_folder.mkdir(parents=True, exist_ok=True)
        (job.checkpoint_folder / "seen").touch()
    if job.seed == 3 and first:
        time.sleep(600)
    if job.seed == 4:
        time.sleep(600)
    if job.seed == 5 and first:
        wait_until(job.should_checkpoint)
        (job.checkpoint_folder / "step-00000001.pt").touch()
        from carbs.launchers.job.protocol import Preempted
        raise Preempted(job.preemption())
    if job.seed == 7:
        (job.folder / "nothing").write_text("OSError: [Errno 28] No space left on device")
        if not (job.folder.parent / "00007-2").exists():
            raise OSError(28, "No space left on device")
    wait_until(go.exists)
"""


def test_whatever_happens_to_a_job_its_trial_is_neither_lost_nor_blamed(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    folder, go = tmp_path / "sweep", tmp_path / "go"
    file = make_sweep(
        MISHAPS.strip(),
        max_trials=8,
        max_in_flight=8,
        # Seeds 3 and 4 run into a time limit of a minute; their parameters do not tell them apart.
        executor_options={
            "cpus_per_task": 1,
            "mem_gb": 0.5,
            "timeout_min": 1,
            "signal_delay_s": 1,
            "setup": [f"export PYTHONPATH={Path.cwd()} OMP_NUM_THREADS=1"],
        },
    )
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: set(range(8)) <= set(counts(log)[0]), "eight jobs")

    def job(number: int) -> str:
        return str(stored_trials(folder)[number].user_attrs["job"]["id"])

    node = next(line.split()[2] for line in log.read_text().splitlines() if " 6 " in line)
    assert ask("scancel", job(0)).returncode == 0
    assert ask("scontrol", "requeue", job(1)).returncode == 0
    assert ask("scancel", "--signal=USR2", job(5)).returncode == 0
    down = ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert down.returncode == 0
    wait_until(lambda: counts(log)[0][6] >= 2, "the job of the node that went down")
    wait_until(lambda: min(counts(log)[0][n] for n in (0, 1, 5)) >= 2, "the others' second start")
    ask("scontrol", "update", f"nodename={node}", "state=resume")
    go.touch()
    code, _, err = controller.wait()
    assert code == 0, err
    trials = stored_trials(folder)
    assert len(trials) == 8  # none was given up, and so none was added
    states = {trial.number: trial.state for trial in trials}
    failed = {n for n, state in states.items() if state == TrialState.FAIL}
    assert failed == {2, 4}
    reasons = {n: trials[n].user_attrs["failure"]["reason"] for n in failed}
    assert "memory" in reasons[2]
    assert "too slow" in reasons[4]
    assert "forgotten" not in trials[2].user_attrs | trials[4].user_attrs
    # What happened is written down, with the log.
    past = {n: [p["reason"] for p in trials[n].user_attrs.get("attempts", [])] for n in states}
    assert past[0] == ["cancelled from outside"]
    assert past[3] == ["time limit"]
    assert "the disk is full" in past[7][0]
    assert any("_log." in path for path in trials[4].user_attrs["evidence"]["log_files"])
    # Slurm requeues some by itself: these are the same attempt, in a folder of its own.
    assert past[1] == past[5] == []
    for number in (1, 5):
        assert (folder / "jobs" / f"{number:05d}-1" / "restart-1" / "start.json").exists()
    finishes = counts(log)[1]
    assert finishes == {number: 1 for number in states if number not in failed}
    assert queued(folder) == []


def test_cancel_leaves_no_orphan(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    folder, go = tmp_path / "sweep", tmp_path / "go"
    file = make_sweep("wait_until(go.exists)", max_trials=3, max_in_flight=3)
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: len(counts(log)[0]) == 3, "three jobs")
    # One of which no controller knows.
    prefix = (folder / "sweep.id").read_text()
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\nsleep 600\n")
    orphan = ("sbatch", f"--job-name={prefix}-00009-1", "--output=/dev/null", str(script))
    assert ask(*orphan).returncode == 0
    code, out, err = carbs("cancel", folder).wait()
    assert code == 0, err
    assert "jobs cancelled" in out
    assert controller.wait()[0] == 130
    wait_until(lambda: not queued(folder), "an empty queue")
    assert [trial.state for trial in stored_trials(folder)] == [TrialState.RUNNING] * 3
    code, out, err = carbs("status", folder, "--json").wait()
    assert [job["is_cancelled"] for job in json.loads(out)["jobs"]] == [True] * 3
    go.touch()
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "3 trials done, 0 failed" in out
    assert counts(log)[1] == dict.fromkeys(range(3), 1)
    assert queued(folder) == []


def test_a_job_on_two_nodes(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    request: pytest.FixtureRequest,
) -> None:
    """The reference job in two tasks, with gloo on the processors, after a health check of both."""
    setup = [f"export PYTHONPATH={request.config.rootpath} OMP_NUM_THREADS=1"]
    options = {"nodes": 2, "tasks_per_node": 1, "mem_gb": 2, "setup": setup}
    file = make_sweep(
        function="carbs.launchers.lm.train:train",
        parameters={
            "tokens": {"space": "log", "min": 8192, "is_integer": True, "search_center": 16384}
        },
        settings={},
        executor_options=options,
        max_trials=1,
        health_check=True,
        max_slowdown=None,
    )
    folder = tmp_path / "sweep"
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "1 trials done, 0 failed" in out
    (trial,) = stored_trials(folder)
    job = trial.user_attrs["job"]
    assert job["attempt"] == 1
    logs = sorted(path.name for path in (folder / job["folder"]).glob("*_log.out"))
    assert logs == [f"{job['id']}_0_log.out", f"{job['id']}_1_log.out"]
    nodes = ask("sacct", "-n", "-X", "-P", "-o", "NodeList", "-j", job["id"]).stdout.strip()
    assert nodes.startswith("n[")
    # The controller has the result of the first task; the other may still be ending.
    wait_until(lambda: not queued(folder), "an empty queue")


def test_the_doctor_knows_the_clusters_partitions(
    make_sweep: Callable[..., Path], run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    options = {"partition": "main", "timeout_min": 10}
    tiers = {"large": {"when": "x > 1", "options": {"partition": "main,gpus"}}}
    code, out, _ = run_cli("doctor", make_sweep(executor_options=options), "--json")
    found = [finding for finding in json.loads(out) if finding["what"] in ("Slurm", "accounting")]
    assert code == 0
    assert [finding["found"] for finding in found] == ["partitions main, urgent", "sacct answers"]
    code, out, _ = run_cli("doctor", make_sweep(executor_options=options, tiers=tiers))
    assert code == 1
    assert "will not work Slurm: there is no partition gpus (tier large)" in out
    assert "name one of main, urgent in executor_options" in out


def test_a_plain_script_is_swept(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    request: pytest.FixtureRequest,
) -> None:
    """It knows nothing of carbs. One crashes, one is killed, one is stopped, one is preempted."""
    source = request.config.rootpath / "tests" / "launchers" / "plain_training.py"
    shutil.copy(source, tmp_path / "plain_training.py")
    numbers = {"space": "log", "search_center": 8, "min": 2, "max": 64, "is_integer": True}
    file = make_sweep(
        function=None,
        settings=None,
        command=f"{sys.executable} plain_training.py --lr {{lr}} --width={{width}} "
        f"--trial {{seed}} --notes {tmp_path}",
        parameters={
            "lr": {"space": "log", "min": 1e-4, "max": 0.3, "search_center": 0.1},
            "width": numbers,
        },
        executor_options={
            "cpus_per_task": 1,
            "mem_gb": 1,
            "timeout_min": 10,
            "setup": [f"export PYTHONPATH={request.config.rootpath} OMP_NUM_THREADS=1"],
        },
        early_stopping={"miss_share": 0.3, "min_progress": 0.1},
        max_trials=6,
        max_in_flight=3,
    )
    for name in ("crash-0", "kill-1", "preempt-2", "hopeless-5"):
        (tmp_path / name).touch()
    folder = tmp_path / "sweep"

    def notes() -> list[str]:
        path = tmp_path / "notes.txt"
        return path.read_text().splitlines() if path.exists() else []

    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: "start 2" in notes(), "trial 2")
    wait_until(lambda: stored_trials(folder)[2].user_attrs["job"]["id"] is not None, "its id")
    controller.process.kill()
    controller.process.wait()
    wait_until(lambda: (tmp_path / "listens-2").exists(), "trial 2 to listen")
    job = str(stored_trials(folder)[2].user_attrs["job"]["id"])
    assert ask("scancel", "--signal=USR2", job).returncode == 0
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "4 trials done, 1 failed, 1 stopped early" in out
    trials = stored_trials(folder)
    assert trials[0].user_attrs["failure"]["reason"] == "exit code 1: ValueError: crash"
    (past,) = trials[1].user_attrs["attempts"]
    assert "SIGKILL" in past["reason"]
    # Slurm has requeued it at its own wish, and it went on from its checkpoint.
    assert trials[2].user_attrs.get("attempts", []) == []
    assert (folder / "jobs" / "00002-1" / "restart-1" / "start.json").exists()
    assert "resumes 2" in notes()
    assert trials[5].state == TrialState.PRUNED
    assert [notes().count(f"end {n}") for n in range(6)] == [0, 1, 1, 1, 1, 0]
    assert queued(folder) == []


def test_jobs_that_wait_for_ever_are_told(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    """One is held while it runs, one asks for more than its partition has time for."""
    folder, go = tmp_path / "sweep", tmp_path / "go"
    file = make_sweep("wait_until(go.exists)", max_trials=1)
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: len(counts(log)[0]) == 1, "the job")
    job = str(stored_trials(folder)[0].user_attrs["job"]["id"])
    assert ask("scontrol", "requeuehold", job).returncode == 0
    wait_until(lambda: f"scontrol release {job}" in controller.output(), "the controller's word")
    out = carbs("status", folder).wait()[1]
    assert f"scontrol release {job}" in " ".join(out.split())
    out = carbs("status", folder, "--json").wait()[1]
    (told,) = json.loads(out)["jobs"]
    assert "held" in told["reason"].lower()
    assert told["advice"].endswith(f"scontrol release {job}")
    go.touch()
    assert ask("scontrol", "release", job).returncode == 0
    assert controller.wait()[0] == 0

    assert ask("scontrol", "update", "partition=main", "maxtime=5").returncode == 0
    try:
        folder = tmp_path / "other"
        controller = carbs("sweep", file, "--folder", folder)
        wait_until(lambda: "timeout_min" in controller.output(), "the controller's word")
        assert "PartitionTimeLimit" in controller.output()
    finally:
        ask("scontrol", "update", "partition=main", "maxtime=infinite")
    assert carbs("cancel", folder).wait()[0] == 0
    controller.wait()


def test_a_job_without_memory_for_its_imports_is_not_the_configurations_fault(
    make_sweep: Callable[..., Path], tmp_path: Path, carbs: Carbs, request: pytest.FixtureRequest
) -> None:
    """The module takes more than the job has, before there is a function to call."""
    file = make_sweep(
        max_trials=1,
        machine_retries=0,
        executor_options={
            "cpus_per_task": 1,
            "mem_gb": 0.3,
            "timeout_min": 10,
            "setup": [f"export PYTHONPATH={request.config.rootpath} OMP_NUM_THREADS=1"],
        },
    )
    (module,) = tmp_path.glob("training_*.py")
    hoard = "hoard = []\nfor _ in range(100):\n    hoard.append(b'x' * 50_000_000)\n"
    wait = "import time\n" + hoard + "    time.sleep(0.1)\n"
    module.write_text(wait + module.read_text())
    folder = tmp_path / "sweep"
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 2
    assert "raise mem_gb" in err
    assert "before the training itself had begun" in out
    trials = stored_trials(folder)
    assert {t.state for t in trials} == {TrialState.FAIL}
    assert all("forgotten" in t.user_attrs and "failure" not in t.user_attrs for t in trials)
    assert queued(folder) == []
