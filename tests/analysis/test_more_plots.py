"""Figures of the plan: what they are given is what they show."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from carbs import LogSpace, Observation, Param, SearchSpace
from carbs.analysis import (
    BestMix,
    backtest,
    fit_accuracy_law,
    fit_compute_law,
    fit_optimum_law,
    plan,
)
from carbs.analysis.front.expectation import SweepBacktest
from carbs.analysis.front.hyperparameters import hyperparameter_curves, loss_around
from carbs.analysis.front.model import FrontModel, fit_front
from carbs.analysis.laws.multiplier import compute_multiplier
from carbs.analysis.report import plots


@pytest.fixture(scope="module")
def front() -> FrontModel:
    space = SearchSpace([Param("size", LogSpace(), 1.0), Param("rate", LogSpace(), 1.0)])
    rng = np.random.default_rng(0)
    known = []
    for _ in range(60):
        size, rate = 10 ** rng.uniform(-0.5, 2), 10 ** (0.4 * rng.standard_normal())
        output = 1 + size**-0.3 + 0.2 * np.log10(rate) ** 2 + 0.003 * rng.standard_normal()
        known.append(Observation(params={"size": size, "rate": rate}, output=output, cost=size))
    return fit_front(space, known)


def test_the_contour_is_least_at_the_optimum(front: FrontModel) -> None:
    costs, values, excess = loss_around(front, "rate")
    assert np.all(excess >= 0)
    best = values[np.argmin(excess, axis=0)]
    assert np.median(best) == pytest.approx(1.0, rel=0.25)
    ax = plots.plot_contour(front, "rate")
    assert ax.get_xscale() == ax.get_yscale() == "log" and ax.get_ylabel() == "rate"
    assert ax.get_xlim()[0] == pytest.approx(costs[0], rel=0.01)
    with pytest.raises(ValueError, match="follows from the cost"):
        loss_around(front, "size")


def test_residuals_are_in_percent() -> None:
    ax = plots.plot_residuals(np.array([1.0, 10.0]), np.array([2.02, 2.0]), np.array([2.0, 2.0]))
    assert ax.lines[1].get_ydata() == pytest.approx([0.995, 0.0], abs=1e-3)
    assert "%" in ax.get_ylabel()


def test_a_calibrated_forecast_lies_on_the_diagonal() -> None:
    ax = plots.plot_calibration(np.random.default_rng(0).standard_normal(4000))
    levels, inside = (np.asarray(data) for data in ax.lines[1].get_data())
    np.testing.assert_allclose(inside, levels, atol=0.03)


def test_backtest_and_multiplier_show_factors(front: FrontModel) -> None:
    ones = np.ones(3)
    test = SweepBacktest(0.3, 2 * ones, ones, 1.1 * ones, ones, 1.2 * ones, ones, np.zeros(2))
    ax = plots.plot_backtest([test], output_unit="nats")
    assert "nats" in ax.get_ylabel() and ax.get_legend().get_texts()[0].get_text().endswith("cost")
    C = np.geomspace(1, 100, 10)
    found = compute_multiplier(C, 1 + 2 * C**-0.3, C, 1.2 + 1.6 * C**-0.3, n_resamples=20)
    ax = plots.plot_multiplier(found, names=("ours", "theirs"), data_end=100.0)
    solid, dashed = ax.lines[:2]
    assert np.asarray(solid.get_xdata()).max() <= 100 < np.asarray(dashed.get_xdata()).max()
    assert "theirs" in ax.get_ylabel()
    assert {text.get_text().strip() for text in ax.texts} == {
        "ours needs less",
        "theirs needs less",
        "the runs end here",
    }
    low, high = ax.get_ylim()
    assert low < 1 < high  # so that it can be seen on which side of one the line lies


def test_a_notebook_shows_a_figure_without_pyplot() -> None:
    ax = plots.plot_calibration(np.zeros(3))
    for shown in (ax, ax.figure):
        assert shown._repr_png_().startswith(b"\x89PNG")  # type: ignore[union-attr]


def test_figures_of_laws_show_runs_and_bands() -> None:
    C = np.geomspace(1e15, 1e18, 12)
    loss = 1 + 30 * C**-0.1
    law = fit_compute_law(C[:9], loss[:9], n_resamples=20)
    ax = plots.plot_compute_law(law, C, loss)
    _, dear, inside, beyond = ax.lines
    assert list(dear.get_xdata()) == list(C[9:])
    assert np.asarray(inside.get_xdata()).max() == pytest.approx(C[8])
    assert np.asarray(beyond.get_xdata()).max() == pytest.approx(10 * C[8])
    tests = backtest(fit_compute_law, C, loss=loss, factors=[10])
    ax = plots.plot_backtest(tests)
    assert ax.get_legend().get_texts()[0].get_text() == "fitted up to 1/10 of the compute"
    accuracy = 0.25 + 0.5 / (1 + np.exp((loss - 2) / 0.2))
    ax = plots.plot_accuracy(fit_accuracy_law(loss, accuracy, chance=0.25), loss, accuracy)
    assert ax.xaxis_inverted() and ax.texts[0].get_text().strip() == "chance"
    weights = np.array([0.1, 0.9, 0.0])
    best = BestMix(weights, 0.9 * weights, weights + 0.05, 1.0, (1.0, 1.0), ("a", "b", "c"))
    ax = plots.plot_best_mix(best)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a", "c"]


def test_the_optimum_over_scale_goes_through_its_cells() -> None:
    runs = pd.DataFrame(
        [
            {"n": n, "lr": rate, "loss": 2 + 0.1 * np.log(rate * n**0.5) ** 2}
            for n in (1e2, 1e4, 1e6)
            for rate in n**-0.5 * 2.0 ** np.arange(-3, 4)
        ]
    )
    law = fit_optimum_law(runs, ["lr"], ["n"])
    ax = plots.plot_optimum(law, "lr", "n")
    line, cells = ax.lines
    assert list(cells.get_xdata()) == pytest.approx([1e2, 1e4, 1e6])
    at = np.interp(np.log(1e4), np.log(line.get_xdata()), np.log(line.get_ydata()))
    assert np.exp(at) == pytest.approx(1e-2, rel=0.1)


def test_cells_lie_on_the_optimum_over_one_of_two_scales() -> None:
    runs = pd.DataFrame(
        [
            {"n": n, "d": d, "lr": rate, "loss": 2 + 0.1 * np.log(rate * n**0.5 / d**0.4) ** 2}
            for n in (1e2, 1e4, 1e6)
            for d in (1e3, 1e5)
            for rate in n**-0.5 * d**0.4 * 2.0 ** np.arange(-3, 4)
        ]
    )
    ax = plots.plot_optimum(fit_optimum_law(runs, ["lr"], ["n", "d"]), "lr", "n")
    line, cells = ax.lines
    curve = np.log(np.asarray(line.get_xdata())), np.log(np.asarray(line.get_ydata()))
    at = np.exp(np.interp(np.log(np.asarray(cells.get_xdata())), *curve))
    np.testing.assert_allclose(cells.get_ydata(), at, rtol=0.1)
    assert ax.get_ylabel() == "best lr at d of 1e+04"


def test_families_and_scales_of_one_run_each_have_an_optimum_to_draw() -> None:
    rng = np.random.default_rng(0)
    n, off = 10 ** rng.uniform(2, 6, 60), rng.uniform(-1.5, 1.5, 60)
    kind = np.where(np.arange(60) % 2, "sparse", "dense")
    rate = n**-0.5 * np.where(kind == "sparse", 3.0, 1.0) * np.exp(off)
    loss = 2 * np.exp(0.05 * off**2 + 1e-4 * rng.standard_normal(60))
    runs = pd.DataFrame({"n": n, "lr": rate, "kind": kind, "loss": loss})
    ax = plots.plot_optimum(fit_optimum_law(runs, ["lr"], ["n"], family="kind"), "lr", "n")
    dense, sparse = ax.lines  # no scale has runs enough for a point
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dense", "sparse"]
    ratio = np.asarray(sparse.get_ydata()) / np.asarray(dense.get_ydata())
    assert ratio == pytest.approx(np.full(len(ratio), 3.0), rel=0.1)


def test_the_legend_of_a_backtest_covers_no_error_bar() -> None:
    C = np.geomspace(1e15, 1e18, 20)
    loss = (1 + 30 * C**-0.1) * np.exp(0.03 * np.random.default_rng(0).standard_normal(20))
    ax = plots.plot_backtest(backtest(fit_compute_law, C, loss=loss, factors=[3, 10, 30]))
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1


def test_labels_of_a_contour_lie_on_logarithmic_axes(front: FrontModel) -> None:
    """Placed before the axes are logarithmic, they float beside their lines."""
    ax = plots.plot_contour(front, "rate")
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    places = np.array([text.get_position() for text in ax.texts])
    assert len(places) >= 3
    shares = np.log(places / [low, bottom]) / np.log([high / low, top / bottom])
    assert np.all((shares > -1e-9) & (shares < 1 + 1e-9))
    assert shares[:, 0].max() - shares[:, 0].min() < 1 and np.median(shares[:, 0]) > 0.2


def test_shares_are_the_curves_at_the_cost(front: FrontModel) -> None:
    curve = hyperparameter_curves(front)[1]
    ax = plots.plot_shares([curve], float(curve.costs[-1]))
    assert ax.patches[0].get_width() == curve.median[-1]  # type: ignore[attr-defined]


def test_a_notebook_shows_a_plan_as_a_table(front: FrontModel) -> None:
    planned = plan(front, cost=20 * front.dearest)
    assert repr(planned).startswith("Plan(size=") and len(repr(planned)) < 200
    shown = planned._repr_html_()
    assert shown.startswith("<p>size=") and "<td>output</td>" in shown
    assert "check on the way there" in shown  # what to worry about


def test_a_notebook_shows_a_front_and_its_curves_as_tables(front: FrontModel) -> None:
    assert repr(front).startswith("FrontModel(") and len(repr(front)) < 200
    assert front._repr_html_().count("<tr>") == 6  # five costs and their head
    curve = hyperparameter_curves(front)[0]
    assert repr(curve).startswith(f"Curve({curve.name} at costs from") and len(repr(curve)) < 200
    assert "exponent" in repr(curve) and "<td>exponent</td>" in curve._repr_html_()


def test_a_notebook_shows_laws_as_tables() -> None:
    C = np.geomspace(1, 1000, 12)
    law = fit_compute_law(C, 1 + 2 * C**-0.3, n_resamples=20)
    shown = law._repr_html_()
    assert shown.startswith("<p>ComputeLaw, 12 runs from 1 to")
    assert shown.count("<tr") == 4  # E, k, g and their head
    found = compute_multiplier(C, 1 + 2 * C**-0.3, C, 1.2 + 1.6 * C**-0.3, n_resamples=20)
    assert len(repr(found)) < 100 and "<td>" in found._repr_html_()
