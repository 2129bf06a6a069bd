"""Figures of the plan: what they are given is what they show."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from carbs import LogSpace, Observation, Param, SearchSpace
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
    ax = plots.plot_multiplier(found)
    assert len(ax.lines) == 3  # the multiplier, one, and the crossing
    assert isinstance(ax.figure, Figure)


def test_shares_are_the_curves_at_the_cost(front: FrontModel) -> None:
    curve = hyperparameter_curves(front)[1]
    ax = plots.plot_shares([curve], float(curve.costs[-1]))
    assert ax.patches[0].get_width() == curve.median[-1]  # type: ignore[attr-defined]
