"""``carbs export`` and ``carbs dashboard``: a sweep's trials, in other hands."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]
RunCli = Callable[..., tuple[int, str, str]]
WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture
def swept(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> Path:
    """The folder of a sweep of six trials, of which one has failed."""
    source = (
        "def train(params, job):\n"
        "    if job.folder.name.startswith('00002'): raise ValueError('odd')\n"
        "    metrics = {'accuracy': 0.5, 'tags': ['a'], 'mixed': params['kind']}\n"
        "    return {'output': 1 + params['x'] ** 2, 'cost': 1.0, 'metrics': metrics}\n"
    )
    kinds = {"space": "choice", "choices": ["fast", 2, True], "search_center": "fast"}
    file = write_sweep(
        function=f"{write_module(source)}:train",
        parameters={"x": {"space": "log", "search_center": 1.0}, "kind": kinds},
        executor="debug",
    )
    assert run_cli("sweep", file, "--folder", tmp_path / "sweep")[0] == 0
    return tmp_path / "sweep"


def test_export(run_cli: RunCli, swept: Path, tmp_path: Path) -> None:
    code, out, err = run_cli("export", swept)
    assert (code, err) == (0, "")
    printed = pd.read_csv(io.StringIO(out))
    assert list(printed["state"]) == ["complete", "complete", "failed", *["complete"] * 3]
    assert printed["reason"][2] == "ValueError: odd"
    for name in ("trials.csv", "trials.parquet"):
        code, out, _ = run_cli("export", swept, "-o", tmp_path / name)
        assert (code, out) == (0, f"6 trials: {tmp_path / name}\n")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "trials.csv"), printed)
    parquet = pd.read_parquet(tmp_path / "trials.parquet")
    assert list(parquet.columns) == list(printed.columns)
    pd.testing.assert_series_equal(parquet["x"], printed["x"])
    assert list(parquet["kind"]) == list(printed["kind"])  # words and numbers: all words


def test_a_terminal_is_told_what_takes_its_time(swept: Path) -> None:
    """On the standard error: the standard output is the table's alone."""
    terminal, side = pty.openpty()
    command = [sys.executable, "-c", "from carbs.launchers.cli.app import main; main()"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, "export", str(swept)], stdout=subprocess.PIPE, stderr=side, env=environment
    )
    os.close(side)
    assert done.returncode == 0
    assert "reading the trials" in os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert len(pd.read_csv(io.BytesIO(done.stdout))) == 6


def test_status_names_the_report(run_cli: RunCli, swept: Path) -> None:
    (swept / "report.html").unlink(missing_ok=True)
    assert f"report: none yet; carbs report {swept}" in run_cli("status", swept)[1]
    (swept / "report.html").touch()
    assert f"report: {swept / 'report.html'}" in run_cli("status", swept)[1].splitlines()
    assert json.loads(run_cli("status", swept, "--json")[1])["report"].endswith("report.html")


def test_export_says_what_it_cannot_write(
    run_cli: RunCli, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run_cli("export", swept, "-o", tmp_path / "trials.xlsx")
    assert code == 2 and ".csv or" in err
    code, _, err = run_cli("export", swept, "-o", tmp_path / "no" / "trials.csv")
    assert code == 2 and "error: cannot write" in err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "fastparquet", None)
    code, _, err = run_cli("export", swept, "-o", tmp_path / "trials.parquet")
    assert code == 2 and "pip install 'carbs-search[parquet]'" in err
    assert not list(tmp_path.glob("*trials.*"))


def test_the_dashboard_serves_a_sweep_that_runs(
    carbs: Callable[..., Any],
    write_module: WriteModule,
    write_sweep: WriteSweep,
    tmp_path: Path,
    wait_until: WaitUntil,
    browser: Chrome,
) -> None:
    source = (
        "import time\n"
        "from pathlib import Path\n"
        "def train(params, job):\n"
        f"    while params['x'] != 1.0 and not Path({str(tmp_path / 'go')!r}).exists():\n"
        "        time.sleep(0.01)\n"
        "    return {'output': params['x'], 'cost': 1.0}\n"
    )
    file = write_sweep(function=f"{write_module(source)}:train", poll_s=0.05, max_trials=3)
    sweep = carbs("sweep", file, "--folder", tmp_path / "sweep")
    wait_until(lambda: "trial    0" in sweep.output(), "the first trial")
    dashboard = carbs("dashboard", tmp_path / "sweep", "--port", "0")
    wait_until(lambda: "dashboard: http" in dashboard.output(), "the dashboard")
    address = dashboard.output().split()[1]
    assert address.startswith("http://127.0.0.1:")
    browser.get(address + "/trials")
    wait_until(lambda: "Trial 1" in browser.page_source, "the trials on the page")
    shown = browser.find_element(By.TAG_NAME, "body").text
    assert "Complete" in shown and "Running" in shown and "small" in shown
    (tmp_path / "go").touch()
    assert sweep.wait()[0] == 0
    dashboard.process.send_signal(signal.SIGINT)
    code, _, err = dashboard.wait()
    assert (code, err) == (0, "")


def test_a_port_that_is_taken_and_a_package_that_is_missing(
    run_cli: RunCli, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run_cli("dashboard", swept, "--port", str(taken.getsockname()[1]))
    assert code == 2 and "--port" in err
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    code, _, err = run_cli("dashboard", swept)
    assert code == 2 and "pip install 'carbs-search[dashboard]'" in err
