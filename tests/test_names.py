"""What is installed is one name, ``carbs``, which neither shadows nor is shadowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
PACKAGES = ("carbs", "analysis", "launchers")
# Names of our folders and files; and what a job loads before it comes to the user's function.
THEIRS = ("analysis/__init__.py", "launchers.py", "job.py", "config.py")
NOT_OURS = ("submitit.py", "queue.py")
TRAIN = """
import analysis, config, job, launchers
from carbs.launchers.job import Result

def train(params, job_):
    assert {module.WHOSE for module in (analysis, config, job, launchers)} == {"the user's"}
    return Result(output=(params["x"] - 2) ** 2, cost=1.0)
"""
SWEEP = """
name: theirs
function: train_here:train
parameters:
  x: {space: linear, min: 0, max: 4, search_center: 1}
max_trials: 2
poll_s: 0.05
"""
NOTEBOOK = """
import analysis, config
from carbs.analysis import trials_frame
from carbs.launchers.controller.sweep import Sweep

assert analysis.WHOSE == config.WHOSE == "the user's"
print(len(trials_frame(Sweep.open("sweeps/theirs").study)), "trials")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder, with modules of names that are ours, submitit's and Python's."""
    (tmp_path / "analysis").mkdir()
    for name in (*THEIRS, *NOT_OURS):
        (tmp_path / name).write_text('WHOSE = "the user\'s"\n')
    (tmp_path / "train_here.py").write_text(TRAIN)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def carbs(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "carbs"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_sweep_and_a_notebook_beside_the_users_modules(project: Path) -> None:
    done = carbs("sweep", "sweep.yaml", folder=project)
    assert "2 trials done, 0 failed" in done.stdout, done.stdout + done.stderr

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    for name in NOT_OURS:  # with these the kernel itself does not start
        (project / name).unlink()
    place = {"metadata": {"path": str(project)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    printed = [out.text for out in notebook.cells[0].outputs if out.name == "stdout"]
    assert printed == ["2 trials\n"]


def test_a_wheel_holds_one_package_and_all_of_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "build", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *build, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("carbs_search-")

    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
        archive.extractall(tmp_path / "installed")
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"carbs"}
    expected = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            is_ours = path.suffix in (".py", ".pyi", ".yaml", ".csv") or path.name == "py.typed"
            if is_ours and not path.parent.is_symlink():
                inside = path.relative_to(ROOT)
                expected.add(inside if package == "carbs" else Path("carbs", inside))
    assert expected <= names

    code = "import carbs, carbs.analysis; print(carbs.__file__); carbs.CARBS; carbs.analysis.plan"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(str(tmp_path / "installed")), done.stderr
