"""The site's figures, made when it is built: a function each, on the data that come along.

The gallery shows each beside its code.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from scipy.special import ndtri

from carbs import LogSpace, MixtureSpace, Param, SearchSpace, minimize
from carbs.analysis import (
    FrontModel,
    backtest,
    backtest_sweep,
    compute_multiplier,
    datasets,
    fit_accuracy_law,
    fit_compute_law,
    fit_front_law,
    fit_loss_law,
    fit_mixing_law,
    fit_optimum_law,
    hyperparameter_curves,
    plan,
)
from carbs.analysis.front.model import as_front
from carbs.analysis.report import plots, style

# What several figures are of.


@cache
def sweep() -> tuple[pd.DataFrame, FrontModel]:
    """A sweep of the small language model: its trials, and the model of its front."""
    trials = datasets.load("small_lm_sweep").iloc[:-1]
    size = LogSpace(min=16, max=512, is_integer=True, rounding_factor=16, scale=0.5)
    mix = {"code": 0.34, "prose": 0.33, "exercises": 0.33}
    space = SearchSpace(
        [
            Param("width", size, 32),
            Param("depth", LogSpace(min=1, max=16, is_integer=True, scale=0.5), 1),
            Param("learning_rate", LogSpace(scale=0.5), 0.02),
            Param("batch_size", LogSpace(min=2, max=256, is_integer=True, scale=0.5), 4),
            Param("tokens", LogSpace(min=8192, is_integer=True, scale=0.5), 16384),
            Param("mix", MixtureSpace(list(mix)), mix),
        ]
    )
    return trials, as_front(trials, space=space)


@cache
def curves() -> dict[str, object]:
    return {curve.name: curve for curve in hyperparameter_curves(sweep()[1])}


@cache
def isoflop_runs(least_ratio: float = 10) -> pd.DataFrame:
    """Runs of Porian et al. on RefinedWeb; with fewer tokens a parameter they have hardly begun."""
    return datasets.load("porian").query(
        "dataset == 'rw' and hparams == 'tuned' and warmup == 'short' and decay == 'const'"
        f" and param_count == 'standard' and n_tokens >= {least_ratio} * n_params"
    )


# Of a search and a sweep.


def searching() -> Axes:
    """A search whose best front is known: the darker a run, the later it was proposed."""

    def loss(width: float, rate: float) -> float:
        return 1.5 + 4 * width**-0.5 + 0.3 * np.log10(rate / (0.02 * 64 / width)) ** 2

    def train(config: dict[str, float]) -> tuple[float, float]:
        width = config["width"]
        return loss(width, config["learning_rate"]), (width / 64) ** 2

    params = [
        Param("width", LogSpace(min=16, scale=0.5), search_center=32),
        Param("learning_rate", LogSpace(scale=0.5), search_center=0.2),
    ]
    result = minimize(train, params, max_cost=400, n_trials=40)
    ax = style.axes(None, style.WIDE)
    width = np.geomspace(16, 1280, 100)
    best = loss(width, 0.02 * 64 / width)
    ax.plot((width / 64) ** 2, best, color=style.BLUE, lw=1.8, label="best that is possible")
    runs = result.to_frame()
    greys = ListedColormap(colormaps["Greys"](np.linspace(0.25, 1, 64)))
    dots = ax.scatter(runs["cost"], runs["output"], c=runs["number"], cmap=greys, s=26, zorder=3)
    ax.figure.colorbar(dots, label="trial", pad=0.02)
    style.cost_axis(ax, "")
    ax.set_ylabel("output (lower is better)")
    ax.legend(loc="upper right")
    return style.finish(ax)


def front() -> Axes:
    trials, model = sweep()
    return plots.plot_front(
        trials, fit_front_law(model), cost_unit="FLOPs", output_unit="nats per byte"
    )


def curve() -> Axes:
    _, model = sweep()
    return plots.plot_curve(curves()["tokens"], model.observations, cost_unit="FLOPs")


def contour() -> Axes:
    _, model = sweep()
    return plots.plot_contour(model, "learning_rate", cost_unit="FLOPs")


def mix() -> Axes:
    parts = [curve for name, curve in curves().items() if name.startswith("mix.")]
    return plots.plot_mix(parts, cost_unit="FLOPs")


def shares() -> Axes:
    _, model = sweep()
    parts = [curve for name, curve in curves().items() if name.startswith("mix.")]
    return plots.plot_shares(parts, cost=model.dearest)


def choice() -> Axes:
    costs = np.geomspace(1, 1000, 12)
    adam = 1 / (1 + (costs / 30) ** -1.2)
    return plots.plot_choice("optimizer", costs, {"adamw": adam, "sgd": 1 - adam})


def predictions() -> Axes:
    trials, _ = sweep()
    return plots.plot_predictions(trials, "output", output_unit="nats per byte")


def convergence() -> Axes:
    trials, _ = sweep()
    return plots.plot_convergence(trials, cost_unit="FLOPs", output_unit="nats per byte")


def parallel() -> Axes:
    trials, _ = sweep()
    return plots.plot_parallel(trials, ["width", "depth", "learning_rate", "batch_size", "tokens"])


def sweep_backtest() -> Axes:
    _, model = sweep()
    return plots.plot_backtest(backtest_sweep(model), output_unit="nats per byte")


def planned() -> Axes:
    _, model = sweep()
    large = plan(model, cost=100 * model.dearest)
    return large.figure(cost_unit="FLOPs", output_unit="nats per byte").axes[0]


# Of laws.


def compute_law() -> Axes:
    runs = isoflop_runs()
    best = runs.loc[runs.groupby("flops")["loss"].idxmin()].sort_values("flops")
    cheap = best[best["flops"] <= best["flops"].max() / 30]
    law = fit_compute_law(cheap["flops"], cheap["loss"])
    return plots.plot_compute_law(law, best["flops"], best["loss"], beyond=30)


def isoflop() -> Axes:
    runs = isoflop_runs(least_ratio=1)  # an optimum is told by runs on both of its sides
    law = fit_loss_law(runs["n_params"], runs["n_tokens"], runs["loss"], groups=runs["n_params"])
    return plots.plot_isoflop(law, [1e17, 1.6e18, 2.56e19], runs)


def law_backtest() -> Axes:
    runs = isoflop_runs()
    tests = backtest(
        fit_loss_law,
        runs["n_params"],
        runs["n_tokens"],
        loss=runs["loss"],
        groups=runs["n_params"],
        factors=[10, 30],
    )
    return plots.plot_backtest(tests, output_unit="nats per token")


def residuals() -> Axes:
    runs = isoflop_runs()
    law = fit_loss_law(runs["n_params"], runs["n_tokens"], runs["loss"], groups=runs["n_params"])
    return plots.plot_residuals(
        runs["flops"],
        runs["loss"],
        law.curve(runs["n_params"], runs["n_tokens"]),
        scale_label="training compute (FLOPs)",
    )


def calibration() -> Axes:
    trials, _ = sweep()
    told = trials[trials["predicted_output"].notna()]
    deviation = (told["predicted_output_high"] - told["predicted_output_low"]) / 2 / ndtri(0.95)
    return plots.plot_calibration((told["output"] - told["predicted_output"]) / deviation)


def multiplier() -> Axes:
    runs = datasets.load("gadre").query("flops <= 4.1e19")
    ours, theirs = (runs[runs["dataset"] == name] for name in ("rpj", "rw_original"))
    judge = "loss_paloma_ptb"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few runs leave the irreducible loss open
        found = compute_multiplier(
            ours["flops"],
            ours[judge],
            theirs["flops"],
            theirs[judge],
            at=np.geomspace(1e18, 4e20, 25),
        )
    return plots.plot_multiplier(found, names=("RedPajama", "RefinedWeb"), data_end=4.1e19)


def accuracy() -> Axes:
    runs = datasets.load("gadre").query("dataset == 'c4_original' and chinchilla_multiplier >= 1")
    law = fit_accuracy_law(runs["loss_c4_val"], 1 - runs["err_avg46"], chance=0.24)
    return plots.plot_accuracy(law, runs["loss_c4_val"], 1 - runs["err_avg46"])


def best_mix() -> Axes:
    runs = datasets.load("regmix")
    weights = runs.filter(regex="^w_").rename(columns=lambda name: name.removeprefix("w_"))
    law = fit_mixing_law(weights.div(weights.sum(axis=1), axis=0), runs["loss_pile_cc"])
    return plots.plot_best_mix(law.best_mix())


def optimum() -> Axes:
    random = np.random.default_rng(0)
    grid = [
        {"n_params": n, "lr": rate, "loss": 2 + n**-0.1 + 0.1 * np.log(rate / (30 * n**-0.5)) ** 2}
        for n in (1e6, 4e6, 1.6e7, 6.4e7)
        for rate in 30 * n**-0.5 * 2.0 ** np.arange(-3, 4)
    ]
    runs = pd.DataFrame(grid)
    runs["loss"] *= 1 + 0.004 * random.standard_normal(len(runs))
    return plots.plot_optimum(fit_optimum_law(runs, ["lr"], ["n_params"]), "lr", "n_params")


FIGURES: tuple[Callable[[], Axes], ...] = (
    searching,
    front,
    curve,
    contour,
    mix,
    shares,
    choice,
    predictions,
    convergence,
    parallel,
    sweep_backtest,
    planned,
    compute_law,
    isoflop,
    law_backtest,
    residuals,
    calibration,
    multiplier,
    accuracy,
    best_mix,
    optimum,
)


def write(folder: Path) -> None:
    """Write each figure, unless one is there that is newer than all that it is made by."""
    folder.mkdir(exist_ok=True)
    root = Path(__file__).parent.parent
    code = [Path(__file__), *(root / "analysis").rglob("*.py"), *(root / "carbs").glob("*.py")]
    newest = max(path.stat().st_mtime for path in code)
    for draw in FIGURES:
        file = folder / f"{draw.__name__}.svg"
        if not file.exists() or file.stat().st_mtime < newest:
            axes = draw()
            axes.figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    write(Path(__file__).parent / "figures")
