from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carbs.analysis.front.hyperparameters import Curve
from carbs.analysis.laws.power import ComputeLaw, UndeterminedLawWarning
from carbs.analysis.laws.power_fits import fit_compute_law
from carbs.analysis.report.plots import (
    failed,
    finished,
    front_trials,
    plot_choice,
    plot_convergence,
    plot_curve,
    plot_front,
    plot_mix,
    plot_predictions,
    predicted_trials,
)
from carbs.records import Observation

COSTS = np.geomspace(1.0, 100.0, 5)
CHECK: dict[str, Any] = {
    "cost_factor": 8.0,
    "level": 0.8,
    "params": {"width": 64},
    "predicted_output": 2.1,
    "predicted_output_interval": [2.0, 2.3],
    "predicted_cost": 800.0,
    "predicted_cost_interval": [600.0, 1000.0],
}
MEASURED = {
    "measured_output": 2.2,
    "measured_cost": 900.0,
    "output_inside": True,
    "cost_inside": True,
}


def trials_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    nothing: dict[str, Any] = {"state": "complete", "reason": None, "output": None, "cost": None}
    for name in ("output", "cost"):
        nothing |= {f"predicted_{name}{end}": None for end in ("", "_low", "_high")}
    frame = pd.DataFrame([{**nothing, "number": i, **row} for i, row in enumerate(rows)])
    return frame.astype({name: float for name in nothing if name not in ("state", "reason")})


def predicted(output: float, cost: float) -> dict[str, float]:
    return {
        "predicted_output": output,
        "predicted_output_low": output - 0.5,
        "predicted_output_high": output + 0.5,
        "predicted_cost": cost,
        "predicted_cost_low": cost / 2,
        "predicted_cost_high": cost * 2,
    }


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    return trials_of(
        [
            {"output": 5.0, "cost": 1.0},
            {"output": 4.5, "cost": 10.0, **predicted(4.0, 30.0)},
            {"state": "failed", "cost": 2.0, "reason": "diverged"},
            {"output": 3.0, "cost": 5.0, **predicted(3.2, 4.0)},
            {"state": "failed", "reason": "out of memory"},
            {"output": float("inf"), "cost": 3.0},
            {"output": 2.5, "cost": 50.0, **predicted(4.0, 20.0)},
            {"state": "running", **predicted(2.0, 60.0)},
            {"output": 2.4, "cost": 100.0},
        ]
    )


@pytest.fixture(scope="module")
def law(trials: pd.DataFrame) -> ComputeLaw:
    front = front_trials(trials)
    with pytest.warns(UndeterminedLawWarning, match="4 runs are few"):
        return fit_compute_law(front["cost"], front["output"], n_resamples=20)


def png(ax: Axes) -> bytes:
    buffer = io.BytesIO()
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.savefig(buffer, format="png", dpi=50)
    return buffer.getvalue()


def labels(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def line(ax: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = next(line for line in ax.lines if line.get_label() == label)
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def test_trials_are_sorted_into_finished_and_failed(trials: pd.DataFrame) -> None:
    assert finished(trials)["number"].tolist() == [0, 1, 3, 6, 8]
    assert failed(trials)["number"].tolist() == [2, 4, 5]


def test_the_front_runs_in_the_direction_of_the_study(trials: pd.DataFrame) -> None:
    assert front_trials(trials)["number"].tolist() == [0, 3, 6, 8]
    assert front_trials(trials, "maximize")["number"].tolist() == [0]


def test_a_prediction_is_inside_its_interval_or_not(trials: pd.DataFrame) -> None:
    assert predicted_trials(trials, "output")["inside"].tolist() == [True, True, False]
    assert predicted_trials(trials, "cost")["inside"].tolist() == [False, True, False]


def test_plot_front(trials: pd.DataFrame, law: ComputeLaw) -> None:
    ax = plot_front(trials, law, {**CHECK, **MEASURED}, cost_unit="GPU-h")
    assert ax.get_xscale() == "log"
    assert "GPU-h" in ax.get_xlabel()
    assert "lower is better" in ax.get_ylabel()
    costs, outputs = line(ax, "Pareto front")
    assert costs.tolist() == [1.0, 5.0, 50.0, 100.0]
    assert outputs.tolist() == [5.0, 3.0, 2.5, 2.4]
    # Only the failure whose cost is known has a place on the axis, and the infinite one.
    assert line(ax, "failed trial, at what it spent")[0].tolist() == [2.0, 3.0]
    assert line(ax, "compute law")[0].max() == pytest.approx(law.compute.max())
    assert line(ax, "check run, measured")[0].tolist() == [900.0]
    assert "check run, predicted (80% intervals)" in labels(ax)
    assert len(png(ax)) > 5000


def test_plot_front_draws_only_what_there_is(trials: pd.DataFrame, law: ComputeLaw) -> None:
    with_law = labels(plot_front(trials, law))
    assert "compute law" in with_law
    assert not any("check" in label for label in with_law)
    before_it_ran = labels(plot_front(trials, law, CHECK))
    assert "check run, predicted (80% intervals)" in before_it_ran
    assert "check run, measured" not in before_it_ran
    assert not any("law" in label for label in labels(plot_front(trials, None)))


def test_beyond_the_sweep_the_front_is_as_a_plan_expects_it(
    trials: pd.DataFrame, law: ComputeLaw
) -> None:
    expected = pd.DataFrame(
        {"cost": [100.0, 800.0], "output": [2.4, 2.0], "low": [2.3, 1.8], "high": [2.5, 2.2]}
    )
    ax = plot_front(trials, law, CHECK, expected=expected)
    costs, outputs = line(ax, "best for a budget, and 80% of runs")
    assert costs.tolist() == [100.0, 800.0] and outputs.tolist() == [2.4, 2.0]
    assert line(ax, "compute law")[0].max() == pytest.approx(law.compute.max())


def test_trials_that_all_came_out_alike_have_an_axis() -> None:
    rows = [{"output": 1.0, "cost": float(1 + i)} for i in range(5)]
    expected = pd.DataFrame({"cost": [5.0], "output": [1.0], "low": [0.9], "high": [1.1]})
    low, high = plot_front(trials_of(rows), None, expected=expected).get_ylim()
    assert low < 1.0 < high


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_terrible_trials_do_not_squeeze_the_others(direction: Any) -> None:
    sign = 1.0 if direction == "minimize" else -1.0
    rows = [{"output": sign * (3 - 0.1 * i), "cost": float(1 + i)} for i in range(15)]
    rows.append({"output": sign * 1e6, "cost": 4.5})
    for ax in (
        plot_front(trials_of(rows), None, direction=direction),
        plot_convergence(trials_of(rows), direction=direction),
    ):
        assert max(abs(limit) for limit in ax.get_ylim()) < 10
        assert "finished trial, beyond the axis" in labels(ax)


def test_the_check_run_stays_on_the_axis(trials: pd.DataFrame, law: ComputeLaw) -> None:
    rows = [{"output": 3 - 0.1 * i, "cost": float(1 + i)} for i in range(15)]
    rows.append({"output": 100.0, "cost": 4.5})
    ax = plot_front(trials_of(rows), law, {**CHECK, **MEASURED, "measured_output": 7.0})
    assert 7.0 <= ax.get_ylim()[1] < 100


def test_plot_curve() -> None:
    observations = [Observation(params={"width": 64}, output=3.0, cost=4.0)]
    curve = Curve("width", COSTS, COSTS**0.21, COSTS**0.1, COSTS**0.33, (0.21, -0.1, 0.33))
    ax = plot_curve(curve, observations)
    assert ax.get_title() == "width ~ cost^0.21 [−0.10, 0.33]"
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "cost of one run (s)"
    assert ax.get_ylabel() == "width"
    assert ax.lines[-1].get_xydata().tolist() == [[4.0, 64.0]]


def test_plot_curve_of_a_share() -> None:
    observations = [Observation(params={"mix": {"code": 0.4, "prose": 0.6}}, output=3.0, cost=4.0)]
    curve = Curve("mix.code", COSTS, COSTS / 200, COSTS / 300, COSTS / 101, None)
    ax = plot_curve(curve, observations, is_share=True)
    assert ax.get_yscale() == "linear"
    assert ax.get_ylim() == (0, 1)
    assert "0 to 1" in ax.get_ylabel()
    assert ax.get_title() == "mix.code"
    assert ax.lines[-1].get_xydata().tolist() == [[4.0, 0.4]]


@pytest.mark.parametrize("name", ["$x", "a$b$c", r"$\frac{$", "_hidden", "n" * 300])
def test_names_are_shown_as_they_are(name: str) -> None:
    curve = Curve(name, COSTS, COSTS, COSTS, COSTS, (1.0, 0.9, 1.1))
    assert len(png(plot_curve(curve, []))) > 2000
    ax = plot_choice(name, COSTS, {name: COSTS / 100, "other": 1 - COSTS / 100})
    assert len(png(ax)) > 2000
    assert len(labels(ax)) == 2


def test_lines_differ_without_colour() -> None:
    ax = plot_choice("k", COSTS, {f"c{i}": COSTS / 100 for i in range(32)})
    styles = {(line.get_linestyle(), line.get_marker()) for line in ax.lines}
    assert len(styles) == 32


def test_plot_mix() -> None:
    curves = [
        Curve(f"mix.{name}", COSTS, middle + 0 * COSTS, 0 * COSTS, 0.5 + 0 * COSTS, None)
        for name, middle in (("code", 0.2), ("a.b", 0.3))
    ]
    ax = plot_mix(curves)
    assert labels(ax) == ["code", "a.b"]
    assert "cost" in ax.get_xlabel() and "(s)" in ax.get_xlabel()
    assert "share" in ax.get_ylabel()
    assert len(png(ax)) > 3000


def test_plot_predictions(trials: pd.DataFrame) -> None:
    ax = plot_predictions(trials, "output")
    assert ax.get_title() == "output: 2 of 3 inside their 90% interval"
    assert ax.get_xlim() == ax.get_ylim()
    ax = plot_predictions(trials, "cost", cost_unit="min")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert "(min)" in ax.get_xlabel() and "(min)" in ax.get_ylabel()


def test_plot_convergence(trials: pd.DataFrame) -> None:
    ax = plot_convergence(trials)
    spent, best = line(ax, "best so far")
    assert spent.tolist() == [1, 11, 18, 71, 171]
    assert best.tolist() == [5.0, 4.5, 3.0, 2.5, 2.4]
    assert "(s)" in ax.get_xlabel()
    _, best = line(plot_convergence(trials, direction="maximize"), "best so far")
    assert best.tolist() == [5.0] * 5


@pytest.mark.parametrize("ends", [(3.1, 4.2), (1.0, 1.0), (2.0, 90.0), (1.0, 1e9), (1e-9, 1e-7)])
def test_cost_axes_have_a_few_readable_ticks(ends: tuple[float, float]) -> None:
    costs = np.geomspace(*ends, 5)
    ax = plot_curve(Curve("k", costs, costs, costs, costs, (1.0, 0.9, 1.1)), [])
    png(ax)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = axis.get_view_interval()
        shown = [x for x in axis.get_majorticklocs() if low <= x <= high]
        assert 2 <= len(shown) <= 9


def test_every_plot_draws_on_the_axes_that_it_is_given(
    trials: pd.DataFrame, law: ComputeLaw
) -> None:
    curve = Curve("k", COSTS, COSTS, COSTS, COSTS, None)
    axes = list(Figure().subplots(2, 3).flat)
    assert plot_front(trials, law, ax=axes[0]) is axes[0]
    assert plot_curve(curve, [], ax=axes[1]) is axes[1]
    assert plot_mix([curve], ax=axes[2]) is axes[2]
    assert plot_predictions(trials, ax=axes[3]) is axes[3]
    assert plot_convergence(trials, ax=axes[4]) is axes[4]
    assert plot_choice("k", COSTS, {"a": COSTS}, ax=axes[5]) is axes[5]
