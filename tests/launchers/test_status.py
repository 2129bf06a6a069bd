"""Looking at a sweep and setting it right, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunCli = Callable[..., tuple[int, str, str]]

TRAINING = """
import os, threading
def train(params, job):
    for _ in range(3000):
        if not os.path.exists("wait"): break
        threading.Event().wait(0.01)
    print("hello from", job.seed)
    if job.seed == 1: raise ValueError("odd")
    return {"output": 1.0, "cost": 2.0}
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def file(write_module: Callable[[str], str], write_sweep: Callable[..., Path]) -> Path:
    return write_sweep(
        function=f"{write_module(TRAINING)}:train", executor="debug", max_trials=3, budget=20
    )


def test_status_in_tables_and_as_json(run_cli: RunCli, file: Path, tmp_path: Path) -> None:
    run_cli("sweep", file)
    places: list[tuple[str | Path, ...]] = [(), ("small",), (file,), (Path("sweeps") / "small",)]
    for where in places:
        code, out, err = run_cli("status", *where, "--json")
        assert code == 0, err
        status = json.loads(out)
        assert status["trials"]["finished"] == 2
        assert status["trials"]["failed"] == 1
        costs = (status["spent"], status["reserved"], status["left"])
        assert costs == pytest.approx((4.0, 0.0, 16.0), abs=0.1)  # the failure took its time
        (failure,) = status["failures"]
        assert (failure["trial"], failure["reason"]) == (1, "ValueError: odd")
    code, out, err = run_cli("status")
    assert code == 0, err
    assert "4.0 s spent, 0.0 reserved, 16.0 left of 20" in out
    assert "ValueError: odd" in out
    code, _, err = run_cli("status", "elsewhere")
    assert code == 2
    assert "neither a sweep's folder" in err and "--folder" in err


def test_status_tells_whether_a_controller_is_at_work(
    run_cli: RunCli, file: Path, tmp_path: Path, carbs: Callable[..., Any], wait_until: Any
) -> None:
    run_cli("sweep", file)
    out = run_cli("status")[1]
    assert "trials: 3 of 3; best: 1.0000 in trial 0, cost 2 s" in out
    assert "no controller" not in out, "all is done"
    (tmp_path / "wait").touch()
    more = ("--max-trials", "5", "--executor", "local")
    controller = carbs("sweep", file, *more)
    wait_until(lambda: (tmp_path / "sweeps/small/jobs/00003-1/begun").exists(), "trial 3")
    assert "a controller is at work" in run_cli("status")[1]
    assert json.loads(run_cli("status", "--json")[1])["has_controller"] is True
    controller.process.kill()
    controller.process.wait()
    out = run_cli("status")[1]
    assert "no controller is at work" in out
    assert f"cd {tmp_path} && carbs sweep {file} {' '.join(more)}" in out
    (tmp_path / "wait").unlink()
    assert carbs("sweep", file, *more).wait()[0] == 0
    assert "trials: 5 of 5" in run_cli("status")[1]


def test_retry_and_drop(run_cli: RunCli, file: Path) -> None:
    run_cli("sweep", file)
    assert "no longer counts" in run_cli("retry", 1, "small")[1]
    _, out, _ = run_cli("sweep", file)
    assert "3 trials done, 0 failed" in out
    assert "trial 0 is dropped" in run_cli("drop", 0, "small")[1]
    trials = json.loads(run_cli("status", "--json")[1])["trials"]
    assert (trials["finished"], trials["failed"], trials["dropped"]) == (2, 0, 2)
    # What was dropped is made good for.
    _, out, _ = run_cli("sweep", file)
    assert "3 trials done, 0 failed" in out
    code, _, err = run_cli("drop", 77, "small")
    assert code == 2
    assert "has no trial 77: `carbs export` lists all" in err


def test_logs(run_cli: RunCli, file: Path) -> None:
    code, out, err = run_cli("sweep", file, "--executor", "local")
    assert code == 0, err
    code, out, err = run_cli("logs", 2)
    assert code == 0, err
    assert "hello from 2" in out
    assert "_log.err" in out
    assert run_cli("logs", 2, "--attempt", 5)[0] == 2


def test_a_dry_run_shows_the_script_and_leaves_nothing(
    run_cli: RunCli, file: Path, tmp_path: Path
) -> None:
    text = file.read_text() + "tiers: {big: {when: 'x >= 1', options: {partition: gpu}}}\n"
    file.write_text(text)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run_cli("sweep", file, "--executor", "slurm", "--dry-run")
    assert code == 0, err
    assert "trial 0: x=1\n  tier: big\n  predicted cost: unknown" in out
    assert "#SBATCH --partition=gpu" in out
    assert f"{tmp_path / 'sweeps/small/jobs/00000-1'}" in out
    assert "nothing was submitted" in out
    assert sorted(tmp_path.rglob("*")) == before
