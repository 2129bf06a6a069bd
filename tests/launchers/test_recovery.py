"""Nothing that can be rebuilt is lost: studies, job folders, and a controller that is to end."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from carbs.launchers.controller.commands import drop
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.recovery import recover_study
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.errors import FolderError

WriteSweep = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool], str], None]
Carbs = Callable[..., Any]
RunCli = Callable[..., tuple[int, str, str]]

TRAINING = """
import time
from pathlib import Path
def train(params, job):
    here = Path(__file__).parent
    with open(here / "log.txt", "a") as log:
        log.write(f"start {job.folder.name}\\n")
    while (here / f"wait-{int(job.folder.name[:5])}").exists():
        time.sleep(0.02)
    if job.folder.name.startswith("00002"):
        raise ValueError("odd")
    x = params["x"]
    return {"output": 1 + x**-0.5, "cost": 1 + x, "metrics": {"tokens": 7}}
"""


@pytest.fixture
def sweep_file(write_module: Callable[[str], str], write_sweep: WriteSweep) -> Path:
    return write_sweep(
        function=f"{write_module(TRAINING)}:train",
        executor="debug",
        max_trials=12,
        max_in_flight=1,
        parameters={
            "x": {"space": "log", "scale": 0.5, "search_center": 1.0},
            "mix": {
                "space": "mixture",
                "components": ["a", "b"],
                "search_center": {"a": 0.5, "b": 0.5},
            },
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sweep"


def run(file: Path, folder: Path, **overrides: Any) -> Sweep:
    sweep = Sweep(load_sweep(file, **overrides), folder, (str(file.parent),))
    with Controller(sweep) as controller:
        controller.run()
    return sweep


def trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'study.db'}").trials


def told(trials: list[FrozenTrial]) -> list[Any]:
    return [(t.number, t.state, t.values, t.params, t.user_attrs) for t in trials]


def damage(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[: len(content) // 2] = b"\x00" * (len(content) // 2)
    database.write_bytes(bytes(content))


def starts(folder: Path) -> list[str]:
    log = folder.parent / "log.txt"
    return log.read_text().split("\n")[:-1] if log.exists() else []


@pytest.mark.parametrize("what", ["damaged", "gone", "damaged, and so is its copy"])
def test_a_study_is_made_anew(sweep_file: Path, folder: Path, run_cli: RunCli, what: str) -> None:
    run(sweep_file, folder)
    drop(Sweep.open(folder), 4)
    before = told(trials(folder))
    assert (folder / "study-copy.db").exists()
    if what == "gone":
        (folder / "study.db").unlink()
    else:
        damage(folder / "study.db")
        code, _, err = run_cli("sweep", sweep_file, "--folder", folder)
        assert code == 2
        assert "its copy of" in err
        assert f"carbs recover {folder}" in err
    if "copy" in what:
        damage(folder / "study-copy.db")
    code, out, err = run_cli("recover", folder)
    assert code == 0, err
    assert "12 trials recovered" in out
    assert told(trials(folder)) == before
    assert (folder / "study.db.damaged-1").exists() == (what != "gone")
    if "copy" in what:
        assert "which trials were dropped" in out
    else:
        assert Sweep.open(folder).study.user_attrs["dropped"] == [4]
    # And it goes on, where it was, without doing anything again.
    n_before = len(starts(folder))
    code, out, err = run_cli("sweep", sweep_file, "--folder", folder, "--max-trials", "13")
    assert code == 0, err
    assert len(starts(folder)) - n_before == (1 if "copy" in what else 2)


@pytest.mark.parametrize("place", ["the folder", "a local disk"])
@pytest.mark.parametrize("what", ["gone", "empty"])
def test_a_study_that_is_gone_is_not_begun_again(
    sweep_file: Path, folder: Path, run_cli: RunCli, place: str, what: str
) -> None:
    """As on another login node, where the same path holds nothing."""
    database = folder / "study.db"
    if place == "a local disk":
        database = folder.parent / "local.db"
        sweep_file.write_text(sweep_file.read_text() + f"storage: sqlite:///{database}\n")
    run(sweep_file, folder, max_trials=3)
    kept = {file: file.read_bytes() for file in (folder / "jobs").glob("*.json")}
    database.rename(folder.parent / "elsewhere.db")
    if what == "empty":
        optuna.create_study(study_name="small", storage=f"sqlite:///{database}")
    for command in (("sweep", sweep_file, "--folder", folder), ("status", folder)):
        code, _, err = run_cli(*command)
        assert code == 2
        assert "the study 'small' is not in sqlite:///" in err
        assert f"carbs recover {folder}" in err
    assert database.exists() == (what == "empty")
    assert {file: file.read_bytes() for file in (folder / "jobs").glob("*.json")} == kept
    code, out, err = run_cli("recover", folder)
    assert code == 0, err
    assert "3 trials recovered" in out
    assert run_cli("sweep", sweep_file, "--folder", folder, "--max-trials", "4")[0] == 0
    assert len(starts(folder)) == 4


def test_looking_makes_no_study(sweep_file: Path, folder: Path, run_cli: RunCli) -> None:
    """Where nothing was run yet, `carbs sweep` may begin it all the same."""
    Sweep(load_sweep(sweep_file), folder)
    (folder / "study.db").unlink()
    for command in ("status", "cancel", "export"):
        code, _, err = run_cli(command, folder)
        assert code == 2
        assert "`carbs sweep` with its sweep file begins it" in err
    assert not (folder / "study.db").exists()
    assert run_cli("sweep", sweep_file, "--folder", folder, "--max-trials", "1")[0] == 0


def test_of_a_trial_only_its_job_is_left(sweep_file: Path, folder: Path, run_cli: RunCli) -> None:
    """As of a sweep of an earlier release, which wrote no more than that."""
    run(sweep_file, folder, max_trials=6)
    before = trials(folder)
    for file in (folder / "jobs").glob("0*.json"):
        file.unlink()
    shutil.rmtree(folder / "jobs" / "00003-1")
    (folder / "study.db").unlink()
    code, out, err = run_cli("recover", folder)
    assert code == 0, err
    assert "trial 3: nothing of it is left" in out
    assert "4 with a result, 0 failed, 1 that the next" in out
    after = trials(folder)
    for number in (0, 1, 4, 5):
        assert (after[number].values, after[number].params) == (
            pytest.approx(before[number].values),
            before[number].params,
        )
        assert after[number].user_attrs["metrics"] == {"tokens": 7}
    n_before = len(starts(folder))
    run(sweep_file, folder, max_trials=6)
    # The failure was reported and is judged; the trial of which nothing is left is made up for.
    assert trials(folder)[2].user_attrs["failure"]["reason"] == "ValueError: odd"
    assert len(starts(folder)) - n_before == 1


def test_a_study_that_can_be_read_is_left_alone(
    sweep_file: Path, folder: Path, run_cli: RunCli
) -> None:
    run(sweep_file, folder, max_trials=2)
    code, _, err = run_cli("recover", folder)
    assert code == 2
    assert "holds 2 trials: nothing is lost" in err
    with (
        Controller(Sweep.open(folder)),
        pytest.raises(FolderError, match="a controller is running"),
    ):
        recover_study(folder)


def test_the_copy_is_consistent_and_a_new_trial_takes_no_old_report(
    sweep_file: Path, folder: Path
) -> None:
    """Somebody puts the copy in place by hand: some jobs have folders, but no trials."""
    run(sweep_file, folder)
    copied = sqlite3.connect(folder / "study-copy.db")
    assert copied.execute("pragma integrity_check").fetchone() == ("ok",)
    assert copied.execute("select count(*) from trials").fetchone()[0] in (10, 11)
    copied.close()
    before = trials(folder)
    shutil.copy(folder / "study-copy.db", folder / "study.db")
    for side in folder.glob("study.db-*"):
        side.unlink()
    run(sweep_file, folder)
    after = trials(folder)
    assert told(after[:10]) == told(before[:10])
    assert after[11].user_attrs["job"]["folder"] == "jobs/00011-2"


def test_a_job_folder_that_is_gone_costs_the_attempt(
    sweep_file: Path, folder: Path, carbs: Carbs, wait_until: WaitUntil
) -> None:
    for number in (0, 1):
        (folder.parent / f"wait-{number}").touch()
    command = ("sweep", sweep_file, "--folder", folder, "--executor", "local", "--max-trials", "4")
    controller = carbs(*command)
    wait_until(lambda: "start 00000-1" in starts(folder), "trial 0")
    shutil.rmtree(folder / "jobs" / "00000-1")
    wait_until(lambda: "start 00000-2" in starts(folder), "its second attempt")
    # Likewise while no controller is there.
    controller.process.send_signal(signal.SIGKILL)
    controller.process.wait()
    shutil.rmtree(folder / "jobs" / "00000-2")
    for number in (0, 1):
        (folder.parent / f"wait-{number}").unlink()
    code, out, err = carbs(*command).wait()
    assert code == 0, err
    assert "3 trials done, 1 failed" in out
    past = [attempt["reason"] for attempt in trials(folder)[0].user_attrs["attempts"]]
    assert past == ["its job's folder is gone"] * 2


def test_the_controller_says_goodbye(
    sweep_file: Path, folder: Path, carbs: Carbs, wait_until: WaitUntil
) -> None:
    """On SIGTERM; what it says on Ctrl-C is in ``test_sweep``."""
    (folder.parent / "wait-0").touch()
    command = ("sweep", sweep_file, "--folder", folder, "--executor", "local", "--max-trials", "2")
    controller = carbs(*command)
    wait_until(lambda: "start 00000-1" in starts(folder), "trial 0")
    controller.process.send_signal(signal.SIGTERM)
    ended, out, err = controller.wait()
    assert (ended, err) == (143, "")
    assert "terminated: " in out
    (job,) = [t.user_attrs["job"]["id"] for t in trials(folder)]
    assert f"running jobs go on (trial 0: job {job})" in out
    assert f"carbs sweep {sweep_file} --folder {folder}" in out
    assert f"carbs cancel {folder}" in out
    (folder.parent / "wait-0").unlink()
    wait_until(lambda: (folder / "jobs/00000-1/report.json").exists(), "the job to end")
    assert carbs(*command).wait()[0] == 0
    assert starts(folder).count("start 00000-1") == 1


def test_a_trial_is_kept_beside_its_jobs(sweep_file: Path, folder: Path) -> None:
    run(sweep_file, folder, max_trials=3)
    kept = json.loads((folder / "jobs" / "00002.json").read_text())
    assert kept["state"] == TrialState.FAIL.name
    assert kept["attributes"]["failure"]["reason"] == "ValueError: odd"
