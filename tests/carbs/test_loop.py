"""carbs.minimize: the whole loop in one call, and what it gives back."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import carbs
from carbs import (
    CARBS,
    ChoiceSpace,
    EarlierSweep,
    FunctionFailsError,
    LogSpace,
    MixtureSpace,
    Param,
)
from carbs.analysis.front.trials import frame_records
from carbs.records import Suggestion
from carbs.result import SearchResult

PARAMS = [
    Param("rate", LogSpace(scale=0.5), 1e-2),
    Param("width", LogSpace(min=1, max=512, is_integer=True), 8),
]


def _make_train() -> Callable[[dict[str, Any]], tuple[float, float]]:
    """A function of no module: other processes need not find this one."""

    def train(params: dict[str, Any]) -> tuple[float, float]:
        loss = 1 + params["width"] ** -0.5 + (math.log10(params["rate"]) + 3) ** 2
        return loss, float(params["width"])

    return train


train = _make_train()


def ids(result: SearchResult) -> list[int]:
    return sorted(int(run.id or 0) for run in (*result.observations, *result.failures))


def test_it_is_the_loop_that_one_would_write() -> None:
    result = carbs.minimize(train, PARAMS, max_cost=60, n_trials=9)
    optimizer = CARBS(PARAMS, max_cost=60, n_trials=9)
    for _ in range(9):
        suggestion = optimizer.suggest()
        output, cost = train(suggestion.params)
        optimizer.observe(suggestion, output=output, cost=cost)
    assert result.observations == optimizer.observations
    assert result.pareto_front() == optimizer.pareto_front()
    front = result.pareto_front()
    assert result.best() == front[-1]
    assert result.best(cost=front[0].cost) == front[0]
    with pytest.raises(ValueError, match=f"the cheapest cost {front[0].cost:.4g}"):
        result.best(cost=front[0].cost / 2)
    # The search can go on by hand.
    assert result.optimizer.suggest().id == "9"


def test_a_frame_and_a_figure_of_the_runs() -> None:
    params = [
        *PARAMS,
        Param("optimizer", ChoiceSpace(["adam", "sgd"]), "adam"),
        Param("momentum", LogSpace(max=1), 0.5, when={"optimizer": "sgd"}),
        Param("mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5}),
    ]

    def objective(params: dict[str, Any]) -> tuple[float, float]:
        if params["width"] != 8:
            raise MemoryError("not eight")
        return train(params)

    result = carbs.minimize(objective, params, n_trials=8)
    frame = result.to_frame()
    assert frame["number"].tolist() == list(range(8))
    assert set(frame["state"]) == {"complete", "failed"}
    assert set(frame["reason"].dropna()) == {"MemoryError: not eight"}
    assert frame["momentum"].isna().equals(frame["optimizer"] == "adam")
    assert np.allclose(frame["mix.code"] + frame["mix.prose"], 1)
    # What reads frames of runs, reads this one.
    _, known = frame_records(frame, result.optimizer.space)
    assert [run.params for run in known.observations] == [run.params for run in result.observations]
    assert len(known.failures) == len(result.failures) > 0
    figure = result.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    (axes,) = figure.axes
    labels = axes.get_legend_handles_labels()[1]
    assert {"finished trial", "Pareto front"} <= set(labels)
    assert axes.get_xlabel() == "cost of one run"


def test_a_loss_alone_costs_its_seconds() -> None:
    def objective(params: dict[str, Any]) -> float:
        started = time.perf_counter()
        while time.perf_counter() < started + 1e-3 * params["width"]:
            pass
        return train(params)[0]

    result = carbs.minimize(objective, PARAMS, n_trials=5)
    for run in result.observations:
        assert 1e-3 * run.params["width"] <= run.cost < 1e-3 * run.params["width"] + 0.1


class Ended:
    output, cost = np.float32(2.5), "0.5"


@pytest.mark.parametrize(
    "returned", [(2.5, 0.5), [2.5, 0.5], {"output": 2.5, "cost": 0.5, "metrics": {}}, Ended()]
)
def test_what_a_function_may_return(returned: Any) -> None:
    result = carbs.minimize(lambda params: returned, PARAMS, n_trials=1)
    assert [(run.output, run.cost) for run in result.observations] == [(2.5, 0.5)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "the loss that the function returned is a NoneType .*expected a number"),
        ((1.0, 2.0, 3.0), "returned 3 values, expected loss, cost"),
        ((1.0, -2.0), "returned a cost of -2.0"),
        ((1.0, None), "the cost that the function returned is a NoneType"),
        ({"loss": 1.0}, r"a mapping with \['loss'\], expected 'output' and 'cost'"),
        ((math.nan, 1.0), "a loss of nan"),
    ],
)
def test_a_function_that_returns_something_else_is_told(returned: Any, message: str) -> None:
    with pytest.raises(FunctionFailsError, match=message):
        carbs.minimize(lambda params: returned, PARAMS, n_trials=20)


def test_a_budget_is_used_up() -> None:
    result = carbs.minimize(train, PARAMS, budget=300)
    spent = [run.cost for run in result.observations]
    assert sum(spent[:-1]) < 300 <= sum(spent)
    assert sum(spent) < 400


def test_limits_are_needed() -> None:
    with pytest.raises(ValueError, match="n_trials or budget"):
        carbs.minimize(train, PARAMS)
    with pytest.raises(ValueError, match=r"n_trials is 8.5, expected a whole number"):
        carbs.minimize(train, PARAMS, n_trials=8.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_jobs is 0"):
        carbs.minimize(train, PARAMS, n_trials=1, n_jobs=0)


def test_a_function_that_always_fails_ends_the_search_and_can_be_mended(tmp_path: Path) -> None:
    tried: list[dict[str, Any]] = []

    def wrong(params: dict[str, Any]) -> float:
        tried.append(params)
        return 1 / 0

    path = tmp_path / "search.json"
    with pytest.raises(FunctionFailsError, match=r"(?s)all of the last 5 runs.*return 1 / 0.*Zero"):
        carbs.minimize(wrong, PARAMS, n_trials=30, path=path)
    assert len(tried) == 5
    # None of the five is held against its configuration: they are tried again.
    again: list[dict[str, Any]] = []

    def mended(params: dict[str, Any]) -> tuple[float, float]:
        again.append(params)
        return train(params)

    result = carbs.minimize(mended, PARAMS, n_trials=7, path=path)
    assert again[:5] == tried
    assert ids(result) == list(range(7))
    assert result.failures == ()


def test_a_function_that_breaks_later_ends_the_search_too() -> None:
    n_calls = 0

    def breaks(params: dict[str, Any]) -> tuple[float, float]:
        nonlocal n_calls
        n_calls += 1
        if n_calls > 3:
            raise OSError("the disk is gone")
        return train(params)

    with pytest.raises(FunctionFailsError, match="all of the last 20 runs") as caught:
        carbs.minimize(breaks, PARAMS, budget=1e9)
    assert len(caught.value.result.observations) == 3


def test_an_interrupted_search_goes_on_from_its_file(tmp_path: Path) -> None:
    path, tried = tmp_path / "search.json", []

    def interrupted(params: dict[str, Any]) -> tuple[float, float]:
        tried.append(params)
        if len(tried) == 4:
            raise KeyboardInterrupt
        return train(params)

    with pytest.raises(KeyboardInterrupt):
        carbs.minimize(interrupted, PARAMS, n_trials=6, path=path)
    result = carbs.minimize(interrupted, PARAMS, n_trials=6, path=path)
    assert tried[4] == tried[3]
    assert len(tried) == 7
    assert result.observations == carbs.minimize(train, PARAMS, n_trials=6).observations
    # Limits may be raised; nothing is run that has been run.
    assert len(carbs.minimize(interrupted, PARAMS, n_trials=8, path=path).observations) == 8
    assert len(tried) == 9


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (PARAMS[:1], "there is 'width' as well. Name another path"),
        ([*PARAMS, Param("decay", LogSpace(), 0.1)], "there is no 'decay'. Name another path"),
        (
            [PARAMS[0], Param("width", LogSpace(is_integer=True), 8)],
            r"there 'width' is Param\(.* where this call has Param\('width', [^P]*8\). Name",
        ),
        (PARAMS[::-1], r"in another order, \['rate', 'width'\]"),
    ],
)
def test_a_file_of_other_parameters_is_refused_with_what_differs(
    params: list[Param], message: str, tmp_path: Path
) -> None:
    carbs.minimize(train, PARAMS, n_trials=1, path=tmp_path / "search.json")
    with pytest.raises(ValueError, match=f"holds a search over other parameters: .*{message}"):
        carbs.minimize(train, params, n_trials=8, path=tmp_path / "search.json")


def test_a_search_that_goes_on_takes_earlier_sweeps_and_keeps_its_constraints(
    tmp_path: Path,
) -> None:
    path, old = (
        tmp_path / "search.json",
        EarlierSweep.of(carbs.minimize(train, PARAMS, n_trials=8, seed=1).optimizer),
    )
    carbs.minimize(train, PARAMS, n_trials=1, path=path)
    carbs.minimize(train, PARAMS, n_trials=4, path=path, earlier=[old])
    result = carbs.minimize(train, PARAMS, n_trials=6, path=path)  # it still knows of it
    whole = carbs.minimize(train, PARAMS, n_trials=6, earlier=[old])
    assert result.observations[1:] == whole.observations[1:]
    assert result.observations[2:] != carbs.minimize(train, PARAMS, n_trials=6).observations[2:]
    with pytest.raises(ValueError, match=r"constraints \[\], .* begin another, which learns"):
        carbs.minimize(train, PARAMS, n_trials=8, path=path, constraints=["width < 100"])


def test_several_processes(tmp_path: Path) -> None:
    """Together they hold a meeting that one alone would wait for in vain."""

    def meets(params: dict[str, Any], folder: str = str(tmp_path)) -> tuple[float, float]:
        Path(folder, str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(Path(folder).iterdir())) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return train(params)

    result = carbs.minimize(meets, PARAMS, n_trials=6, n_jobs=2)
    assert ids(result) == list(range(6))
    assert result.failures == ()
    assert len(list(tmp_path.iterdir())) == 2
    assert str(os.getpid()) not in {path.name for path in tmp_path.iterdir()}


def test_a_process_that_dies_is_a_failed_run() -> None:
    def dies(params: dict[str, Any]) -> tuple[float, float]:
        if params["width"] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(params)

    result = carbs.minimize(dies, PARAMS, n_trials=5, n_jobs=2)
    assert result.failures[0].params["width"] == 8
    assert "its process died" in result.failures[0].reason
    assert len(result.observations) > 0
    with pytest.raises(FunctionFailsError, match=r"(?s)ZeroDivisionError.*division by zero"):
        carbs.minimize(lambda params: 1 / 0, PARAMS, n_trials=9, n_jobs=2)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_run_that_exits_is_a_failed_run(n_jobs: int, tmp_path: Path) -> None:
    def exits(params: dict[str, Any]) -> tuple[float, float]:
        if params["width"] == 8:
            sys.exit("no memory left")
        return train(params)

    path = tmp_path / "search.json"
    result = carbs.minimize(exits, PARAMS, n_trials=5, n_jobs=n_jobs, path=path)
    assert result.failures[0].params["width"] == 8
    assert result.failures[0].reason == "SystemExit: no memory left"
    assert len(result.observations) + len(result.failures) == 5
    assert CARBS.load(path).pending == ()


SCRIPT = """
import carbs
from carbs import LogSpace, Param

# Neither a guard of the main module nor a module of its own.
result = carbs.minimize(
    lambda p: (p["x"], 1.0), [Param("x", LogSpace(), 1.0)], n_trials=3, n_jobs=2
)
print(len(result.observations))
"""


def test_a_plain_script_needs_no_guard(tmp_path: Path) -> None:
    (tmp_path / "search.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "search.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("3\n", "")  # no bar where there is no terminal


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    carbs.minimize(train, PARAMS, n_trials=3, budget=500)
    assert "3 of 3 runs, cost" in terminal.getvalue()
    assert "of 500, best " in terminal.getvalue()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    carbs.minimize(train, PARAMS, n_trials=3, progress=False)
    assert terminal.getvalue() == ""


def test_a_run_that_the_optimizer_did_not_suggest_has_no_number() -> None:
    optimizer = CARBS(PARAMS)
    mine = Suggestion(id="mine", params={"rate": 0.1, "width": 2})
    optimizer.observe(optimizer.suggest(), output=1.0, cost=2.0)
    optimizer.observe(mine, output=2.0, cost=3.0)
    numbers = SearchResult(optimizer).to_frame()["number"]
    assert numbers.isna().tolist() == [True, False]
    assert numbers[1] == 0


def test_a_search_without_finished_runs_is_a_figure_too() -> None:
    optimizer = CARBS(PARAMS)
    assert SearchResult(optimizer).plot().axes[0].get_xlabel() == "cost of one run"
    optimizer.observe_failure(optimizer.suggest(), reason="diverged")
    optimizer.observe_failure(optimizer.suggest(), reason="diverged", cost=2.0)
    (ax,) = SearchResult(optimizer).plot().axes
    assert "failed" in ax.get_legend().get_texts()[-1].get_text()


def test_a_result_of_a_loop_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = CARBS(PARAMS)
    optimizer.observe({"rate": 0.1, "width": 2}, output=2.0, cost=3.0)
    result = SearchResult(optimizer)
    assert isinstance(result.to_frame(), pd.DataFrame)
    assert result.best().cost == 3.0
    with pytest.raises(ValueError, match="none of 0 runs has finished"):
        SearchResult(CARBS(PARAMS)).best()
