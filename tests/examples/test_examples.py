"""The examples run, in small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
CARBS = [sys.executable, "-c", "from carbs.launchers.cli.app import main; main()"]


def run(*command: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_pytorch_script_is_swept_as_it_is(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "pytorch_script", tmp_path / "script")
    text = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(text.replace("max_trials: 60", "max_trials: 2"))
    said = run(*CARBS, "sweep", "sweep.yaml", folder=folder)
    assert "2 trials done, 0 failed" in said
    reports = list((folder / "sweeps" / "digits-script" / "jobs").rglob("report.json"))
    for report in reports:
        result = json.loads(report.read_text())["result"]
        assert 0 < result["output"] < 3 and 0 < result["cost"] < 60
        assert 0.5 < result["metrics"]["accuracy"] <= 1
    assert len(reports) == 2


def test_a_classifier_of_scikit_learn_with_its_seconds_as_cost(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "scikit_learn" / "digits.py"), "--trials"]
    run(*command, "5", folder=tmp_path)
    saved = json.loads((tmp_path / "digits.json").read_text())
    runs = saved["observations"]
    assert len(runs) == 5 and all(0 < each["cost"] < 20 for each in runs)
    assert " s  loss 0." in run(*command, "5", folder=tmp_path)  # nothing is run again
    assert json.loads((tmp_path / "digits.json").read_text())["observations"] == runs


def test_an_agent_learns_and_is_swept(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES / "reinforcement_learning", tmp_path / "agent")
    said = run(sys.executable, "reinforce.py", "--updates", "30", "--lr", "0.02", folder=folder)
    points = [json.loads(line) for line in said.splitlines()]
    assert points[-1]["output"] > 2 * points[0]["output"] > 40  # at random, some 20 steps
    assert [point["cost"] for point in points] == sorted(point["cost"] for point in points)
    text = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(text.replace("max_trials: 60", "max_trials: 2"))
    said = run(*CARBS, "sweep", "sweep.yaml", folder=folder)
    assert "2 trials done, 0 failed" in said
