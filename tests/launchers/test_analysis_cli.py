"""``carbs plan`` and ``carbs fit`` from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carbs.analysis import datasets
from carbs.launchers.controller.config import load_sweep

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]
RunCli = Callable[..., tuple[int, str, str]]


def test_plan_says_what_to_run_and_writes_a_job_that_runs(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    source = (
        "def train(params, job):\n"
        "    x = params['x']\n"
        "    metrics = {'flops': 1e12 * x}\n"
        "    return {'output': 1 + x**-0.5, 'cost': 2.0 * x, 'metrics': metrics}\n"
    )
    file = write_sweep(function=f"{write_module(source)}:train", executor="debug", max_trials=12)
    folder = tmp_path / "sweep"
    assert run_cli("sweep", file, "--folder", folder)[0] == 0
    job_file = file.parent / "large.yaml"
    budget = ("--flops", "3e14", "--price", "2", "--n-gpus", "64")
    code, out, err = run_cli("plan", folder, *budget, "--job-file", job_file)
    assert code == 0 and err == ""
    for said in ("configuration: x=", "loss: ", "cost: ", "3e+14 FLOPs", "lost to failures"):
        assert said in out
    assert load_sweep(job_file).max_trials == 1
    said = run_cli("plan", folder, "--cost", "500", "--set", "x=40")
    assert said[0] == 0 and "configuration: x=40" in said[1] and "on its bound" not in said[1]
    said = run_cli("plan", folder, "--cost", "500", "--bound", "x=..3e1")
    assert said[0] == 0 and "configuration: x=30" in said[1] and "on its bound" in said[1]
    code, out, _ = run_cli("plan", folder, "--cost", "500", "--set", "x=40", "--json")
    planned = json.loads(out)
    assert code == 0 and planned["params"]["x"] == pytest.approx(40) and planned["cost_unit"] == "s"
    low, high = planned["cost_interval"]
    assert low <= planned["cost"] <= high
    assert planned["decisions"][0]["name"] == "x"
    code, out, _ = run_cli("sweep", job_file, "--folder", tmp_path / "large")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("trial"))
    assert float(line.split("cost")[1].split()[0]) == pytest.approx(600.0, rel=0.3)


def test_errors_are_told_in_plain_words(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    source = "def train(params, job):\n    return {'output': 1.0, 'cost': params['x']}\n"
    file = write_sweep(function=f"{write_module(source)}:train", executor="debug", max_trials=5)
    run_cli("sweep", file, "--folder", tmp_path / "sweep")
    code, _, err = run_cli("plan", tmp_path / "sweep")
    assert code == 2 and "give one of flops, gpu_hours and money" in err
    code, _, err = run_cli("plan", tmp_path / "sweep", "--money", "10")
    assert code == 2 and "price" in err
    for option, value, problem in (
        ("--set", "x", "expected a name and a value"),
        ("--set", "x={", "is no value in YAML"),
        ("--set", "y=1", "no parameter 'y': there are x"),
        ("--bound", "x=3", "expected such as depth=4..32"),
        ("--bound", "x=a..3", "expected such as depth=4..32"),
    ):
        code, _, err = run_cli("plan", tmp_path / "sweep", "--cost", "10", option, value)
        assert code == 2 and problem in err
    code, _, err = run_cli("fit", tmp_path / "absent.csv")
    assert code == 2 and "absent.csv" in err


def test_fit_says_which_columns_it_took(run_cli: RunCli, tmp_path: Path) -> None:
    flops = np.geomspace(1e18, 1e21, 12)
    frame = pd.DataFrame({"flops": flops, "eval_loss": 1.7 + 2 * (flops / 1e18) ** -0.15})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    code, out, _ = run_cli("fit", tmp_path / "runs.csv", "--flops", "1e22")
    assert code == 0
    assert "loss from 'eval_loss' (guessed)" in out and "at 1e+22: loss" in out
    said = json.loads(run_cli("fit", tmp_path / "runs.csv", "--flops", "1e22", "--json")[1])
    assert said["columns"]["loss"] == "eval_loss" and said["guessed"] == ["loss", "compute"]
    assert said["coefficients"]["E"]["estimate"] == pytest.approx(1.7, abs=0.01)
    assert said["best"]["loss"]["low"] <= said["best"]["loss"]["high"]
    code, out, _ = run_cli("fit", tmp_path / "runs.csv", "--loss", "eval_loss")
    assert code == 0 and "'eval_loss'," in out
    code, _, err = run_cli("fit", tmp_path / "runs.csv", "--loss", "odd")
    assert code == 2 and "no column 'odd'" in err
    for as_json in ([], ["--json"]):
        code, _, err = run_cli("fit", tmp_path / "runs.csv", "--flops", "-1", *as_json)
        assert code == 2 and "compute must be finite and positive" in err


def test_fit_warns_in_words(run_cli: RunCli, tmp_path: Path) -> None:
    n_params = np.geomspace(1e7, 1e9, 12)
    noise = np.exp(0.002 * np.random.default_rng(1).standard_normal(12))
    loss = (1.7 + 400 * n_params**-0.34 + 1500 * (20 * n_params) ** -0.36) * noise
    frame = pd.DataFrame({"n_params": n_params, "n_tokens": 20 * n_params, "loss": loss})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    code, out, err = run_cli("fit", tmp_path / "runs.csv", "--flops", "1e24")
    assert code == 0 and err == ""
    assert "warning: the runs do not tell how to divide a budget" in out
    assert "warning: asked at" in out


def test_fit_knows_of_tokens_that_repeat(run_cli: RunCli, tmp_path: Path) -> None:
    runs = datasets.load("muennighoff")
    runs = runs[(runs["n_params"] > 1e8) & (runs["n_tokens"] >= 5 * runs["n_params"])]
    runs.rename(columns={"unique_tokens": "new"}).to_csv(tmp_path / "runs.csv", index=False)
    asked = ("fit", tmp_path / "runs.csv", "--unique", "new", "--flops", "1e22")
    code, out, _ = run_cli(*asked)
    assert code == 0 and "unique_tokens from 'new'" in out and "epochs [" in out
    losses = [
        json.loads(run_cli(*asked, *few, "--json")[1])["best"]["loss"]["estimate"]
        for few in ((), ("--unique-tokens", "1e9"))
    ]
    assert losses[0] < losses[1]
    runs.assign(flops=6.0 * runs["n_params"] * runs["n_tokens"])[["flops", "loss"]].to_csv(
        tmp_path / "compute.csv", index=False
    )
    code, _, err = run_cli(
        "fit", tmp_path / "compute.csv", "--flops", "1e22", "--unique-tokens", "1e9"
    )
    assert code == 2 and "knows of no tokens that are repeated" in err


def test_fit_finds_the_lower_edge_of_untuned_runs(run_cli: RunCli, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    N = 10 ** rng.uniform(7.5, 9.5, 60)
    lr = 10 ** rng.uniform(-3.5, -1.5, 60)
    loss = (1.7 + 400 * N**-0.34 + 1500 * (20 * N) ** -0.36) * np.exp(0.02 * np.log(lr / 5e-3) ** 2)
    frame = pd.DataFrame({"n_params": N, "n_tokens": 20 * N, "loss": loss, "lr": lr})
    frame.to_csv(tmp_path / "runs.csv", index=False)
    code, out, _ = run_cli("fit", tmp_path / "runs.csv", "--untuned")
    assert code == 0 and "by a one-sided error" in out
    code, out, _ = run_cli("fit", tmp_path / "runs.csv", "--hyperparameter", "lr")
    assert code == 0 and "a bowl in lr around an optimum" in out
    code, _, err = run_cli("fit", tmp_path / "runs.csv", "--hyperparameter", "batch")
    assert code == 2 and "no column 'batch'" in err
    frame.assign(flops=1e20).drop(columns="n_params").rename(columns={"n_tokens": "x"}).to_csv(
        tmp_path / "compute.csv", index=False
    )
    code, _, err = run_cli("fit", tmp_path / "compute.csv", "--untuned")
    assert code == 2 and "name their columns with --params and --tokens" in err
