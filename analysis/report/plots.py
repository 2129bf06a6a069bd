"""One function a figure: from data to matplotlib Axes.

Every function draws on the ``ax`` that it is given, or makes a figure of its own (``ax.figure``);
no pyplot state is touched. Trials come as the data frame of
:func:`carbs.analysis.front.trials.trials_frame`.
Lines differ in style and marker, not only in colour, so that a figure survives a grey printer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from carbs.analysis.front.hyperparameters import Curve, loss_around
from carbs.analysis.front.model import FrontModel
from carbs.analysis.laws.power import ComputeLaw
from carbs.analysis.report import style
from carbs.analysis.report.law_plots import (
    plot_accuracy,
    plot_backtest,
    plot_best_mix,
    plot_calibration,
    plot_compute_law,
    plot_isoflop,
    plot_multiplier,
    plot_optimum,
    plot_residuals,
)
from carbs.pareto import pareto_front
from carbs.records import Direction, Observation
from carbs.spaces import FloatArray
from carbs.study import flatten
from carbs.threads import on_one_thread

__all__ = [
    "MOST_BANDS",
    "edge_of",
    "failed",
    "finished",
    "front_trials",
    "plot_accuracy",
    "plot_backtest",
    "plot_best_mix",
    "plot_calibration",
    "plot_choice",
    "plot_compute_law",
    "plot_contour",
    "plot_convergence",
    "plot_curve",
    "plot_front",
    "plot_isoflop",
    "plot_mix",
    "plot_multiplier",
    "plot_optimum",
    "plot_parallel",
    "plot_predictions",
    "plot_residuals",
    "plot_shares",
    "predicted_trials",
]

Quantity = Literal["output", "cost"]
MOST_BANDS = 5


# The order of the front's legend, by what stands before a comma.
_LEGEND = (
    "finished trial",
    "failed trial",
    "Pareto front",
    "compute law",
    "band",
    "best for a budget",
    "check run",
)


def finished(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with a finite output and cost, in the order of their numbers."""
    is_finite = np.isfinite(trials["output"]) & np.isfinite(trials["cost"])
    done: pd.DataFrame = trials[(trials["state"] == "complete") & is_finite]
    return done.sort_values("number")


def failed(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials whose configuration could not be trained, or whose output is infinite."""
    is_infinite = (trials["state"] == "complete") & ~np.isfinite(trials["output"])
    some: pd.DataFrame = trials[(trials["state"] == "failed") | is_infinite]
    return some.sort_values("number")


def front_trials(trials: pd.DataFrame, direction: Direction = "minimize") -> pd.DataFrame:
    """The finished trials that no other beats in both cost and output, cheapest first."""
    done = finished(trials)
    sign = 1.0 if direction == "minimize" else -1.0
    return done.iloc[pareto_front(done["cost"].to_numpy(), sign * done["output"].to_numpy())]


def predicted_trials(trials: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """The finished trials that were predicted, with ``inside``: whether the interval held."""
    done = finished(trials)
    done = done[done[f"predicted_{quantity}"].notna()]
    low, high = done[f"predicted_{quantity}_low"], done[f"predicted_{quantity}_high"]
    return done.assign(inside=done[quantity].between(low, high))


def plot_front(
    trials: pd.DataFrame,
    law: ComputeLaw | None,
    check: Mapping[str, Any] | None = None,
    *,
    expected: pd.DataFrame | None = None,
    level: float = 0.9,
    direction: Direction = "minimize",
    cost_unit: str = "s",
    output_unit: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Every trial in cost and output, the Pareto front, the law, and the check run.

    Args:
        trials: of the study.
        law: fitted to the front; None draws none.
        check: the check run's prediction and, once it has run, its measurement.
        expected: of dearer runs, as :meth:`carbs.analysis.Plan.table` has it; the law is drawn as
            far as its runs go.
        level: of the bands; the check run's, where there is one.
        direction: whether a low or a high output is good.
        cost_unit: for the axis.
        output_unit: likewise; empty for none.
        ax: to draw on.
    """
    ax = style.axes(ax, style.FRONT)
    done, front = finished(trials), front_trials(trials, direction)
    if len(done):
        ax.plot(done["cost"], done["output"], label="finished trial", **style.RUNS)
        ax.plot(front["cost"], front["output"], label="Pareto front", **style.STEPS)
    level = level if check is None else float(check["level"])
    if law is not None:
        _law(ax, law, level)
    if expected is not None:
        style.budgets(ax, expected, level)
    if check is not None:
        _check(ax, check)
    keep = [] if check is None else list(check["predicted_output_interval"])
    if check is not None and check.get("measured_output") is not None:
        keep.append(check["measured_output"])
    if len(done):
        _cut_off(ax, done["cost"], done["output"], direction, keep)
    costs = failed(trials)["cost"]
    if (costs > 0).any():
        ax.plot(
            costs[costs > 0],
            np.full(int((costs > 0).sum()), 0.02),
            "|",
            color=style.RED,
            ms=11,
            mew=1.6,
            transform=ax.get_xaxis_transform(),
            label="failed trial, at what it spent",
        )
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("cost of one run" + (f" ({cost_unit})" if cost_unit else ""))
    ax.set_ylabel(style.output_label(direction, output_unit))
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: _LEGEND.index(labels[i].split(",")[0]))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    return style.finish(ax)


def _law(ax: Axes, law: ComputeLaw, level: float) -> None:
    costs = np.geomspace(law.compute.min(), law.compute.max(), 100)
    low, high = law.interval(costs, level)
    ax.plot(costs, law.predict(costs), color=style.BLUE, lw=1.8, label="compute law")
    ax.fill_between(
        costs, low, high, color=style.BLUE, label=f"band, {level:.0%} of new runs", **style.BAND
    )


def _check(ax: Axes, check: Mapping[str, Any]) -> None:
    x, y = check["predicted_cost"], check["predicted_output"]
    ax.errorbar(
        x,
        y,
        xerr=style.error_bars(x, *check["predicted_cost_interval"]),
        yerr=style.error_bars(y, *check["predicted_output_interval"]),
        fmt="s",
        color=style.RED,
        mfc="white",
        ms=6,
        lw=1.4,
        capsize=3.5,
        zorder=4,
        label=f"check run, predicted ({check['level']:.0%} intervals)",
    )
    if check.get("measured_output") is not None and check.get("measured_cost") is not None:
        ax.plot(
            check["measured_cost"],
            check["measured_output"],
            "*",
            color=style.ORANGE,
            mec=style.INK,
            mew=0.8,
            ms=15,
            zorder=5,
            label="check run, measured",
        )


def _cut_off(
    ax: Axes,
    costs: pd.Series,
    outputs: pd.Series,
    direction: Direction,
    keep: Sequence[float] = (),
) -> None:
    """Keep a few terrible trials from squeezing the rest: they become arrows at the edge.

    Args:
        costs, outputs: of the trials; the costs as drawn.
        keep: outputs that must stay on the axis.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    losses = sign * outputs
    kept = [sign * output for output in keep]
    lowest, highest = float(losses.min()), float(losses.max())
    best, worst = sorted((sign * ax.dataLim.y0, sign * ax.dataLim.y1))
    edge = max([edge_of(losses), *kept])
    if math.isinf(edge):  # no trial is far off, but the band of a law may be
        edge = max([highest + 0.1 * (highest - lowest), *kept])
        if edge == lowest or worst - lowest <= 1.5 * (edge - lowest):
            return
    is_beyond = losses > edge
    if worst <= edge:
        return
    best = max(best, lowest - 0.5 * (edge - lowest))
    limits = sign * (best - 0.05 * (edge - best)), sign * edge
    ax.set_ylim(min(limits), max(limits))
    if not is_beyond.any():
        return
    ax.plot(
        costs[is_beyond],
        np.full(int(is_beyond.sum()), 0.985 if direction == "minimize" else 0.015),
        "^" if direction == "minimize" else "v",
        color=style.GREY,
        ms=5,
        transform=ax.get_xaxis_transform(),
        label="finished trial, beyond the axis",
    )


def plot_curve(
    curve: Curve,
    observations_on_front: Sequence[Observation],
    *,
    is_share: bool = False,
    cost_unit: str = "s",
    ax: Axes | None = None,
) -> Axes:
    """One hyperparameter's optimum over cost, with its band and what the front's runs had.

    Args:
        curve: one with an exponent gets a logarithmic axis.
        observations_on_front: of the sweep.
        is_share: the number is a share of a mix, drawn from 0 to 1.
        cost_unit: for the axis.
        ax: to draw on.
    """
    ax = style.axes(ax, style.PANEL)
    ax.fill_between(curve.costs, curve.low, curve.high, color=style.BLUE, **style.BAND)
    ax.plot(curve.costs, curve.median, color=style.BLUE, lw=1.8)
    values = [flatten(observation.params).get(curve.name) for observation in observations_on_front]
    ax.plot(
        [observation.cost for observation in observations_on_front],
        [math.nan if value is None else float(value) for value in values],
        "o",
        color=style.INK,
        ms=3.5,
    )
    name = title = style.plain(style.shortened(curve.name))
    if curve.exponent is not None:
        ax.set_yscale("log")
        style.ticks(ax.yaxis, *ax.get_ylim())
        median, low, high = (style.signed(number) for number in curve.exponent)
        law = f"~ cost^{median} [{low}, {high}]"
        title = f"{name} {law}" if len(name) + len(law) < 38 else f"{name}\n{law}"
    if is_share:
        ax.set_ylim(0, 1)
        name = "share of the mix (0 to 1)"
    ax.set_title(title)
    ax.set_ylabel(name)
    style.cost_axis(ax, cost_unit)
    return style.finish(ax)


def plot_choice(
    name: str,
    costs: FloatArray,
    shares: Mapping[str, FloatArray],
    *,
    cost_unit: str = "s",
    ax: Axes | None = None,
) -> Axes:
    """How likely each category is the best, over cost.

    Args:
        name: of the parameter.
        costs: shape ``(m,)``.
        shares: of the model's draws that choose a category, by category, each ``(m,)``.
        cost_unit: for the axis.
        ax: to draw on.
    """
    ax = style.axes(ax, style.PANEL)
    for i, share in enumerate(shares.values()):
        ax.plot(costs, share, **style.numbered(i), ms=4, lw=1.5, clip_on=False)
    ax.set_ylim(0, 1)
    ax.set_title(style.plain(style.shortened(name)))
    ax.set_ylabel("probability of being best")
    style.cost_axis(ax, cost_unit)
    style.legend(ax, list(shares), longest=16)
    return style.finish(ax)


def plot_mix(curves: Sequence[Curve], *, cost_unit: str = "s", ax: Axes | None = None) -> Axes:
    """The best share of every component of a mix over cost, each with its band.

    More than ``MOST_BANDS`` bands would only cover each other, and are left out.

    Args:
        curves: one a component, named ``mix.code``.
        cost_unit: for the axis.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    for i, curve in enumerate(curves):
        line = style.numbered(i)
        if len(curves) <= MOST_BANDS:
            ax.fill_between(curve.costs, curve.low, curve.high, color=line["color"], **style.BAND)
        ax.plot(curve.costs, curve.median, **line, ms=5, lw=1.8)
    tops = [curve.high if len(curves) <= MOST_BANDS else curve.median for curve in curves]
    top = max((float(np.nanmax(high)) for high in tops), default=1.0)
    ax.set_ylim(0, min(1.0, 1.1 * top))
    ax.set_ylabel("share of the mix (0 to 1)")
    style.cost_axis(ax, cost_unit)
    style.legend(ax, [curve.name.split(".", 1)[-1] for curve in curves])
    return style.finish(ax)


def plot_predictions(
    trials: pd.DataFrame,
    quantity: Quantity = "output",
    *,
    direction: Direction = "minimize",
    cost_unit: str = "s",
    output_unit: str = "",
    ax: Axes | None = None,
) -> Axes:
    """What was predicted when a trial was suggested, against what was then measured.

    Args:
        trials: of the study.
        quantity: ``output``, or ``cost`` on logarithmic axes.
        direction: whether a low or a high output is good.
        cost_unit: for the axes of cost.
        output_unit: likewise; empty for none.
        ax: to draw on.
    """
    ax = style.axes(ax, style.SQUARE)
    told = predicted_trials(trials, quantity)
    predicted = told[f"predicted_{quantity}"]
    for is_inside, color, face in ((True, style.BLUE, style.BLUE), (False, style.RED, "white")):
        some = told[told["inside"] == is_inside]
        ax.errorbar(
            some[quantity],
            some[f"predicted_{quantity}"],
            yerr=style.error_bars(
                some[f"predicted_{quantity}"],
                some[f"predicted_{quantity}_low"],
                some[f"predicted_{quantity}_high"],
            ),
            fmt="o" if is_inside else "s",
            color=color,
            mfc=face,
            ms=4,
            elinewidth=0.9,
        )
    title = str(quantity)
    if len(told):
        title += f": {int(told['inside'].sum())} of {len(told)} inside their 90% interval"
        shown = pd.Series(True, index=told.index)
        if quantity == "output":
            losses = told["output"] if direction == "minimize" else -told["output"]
            shown = losses <= edge_of(losses)
        both = np.concatenate([told[quantity][shown], predicted[shown]])
        limits = style.padded(both, is_log=quantity == "cost")
        ax.plot(limits, limits, color=style.INK, lw=1.0, ls="--", zorder=1)
        if quantity == "cost":
            ax.set_xscale("log")
            ax.set_yscale("log")
        ax.set_xlim(limits)
        ax.set_ylim(limits)
        if quantity == "cost":
            style.ticks(ax.xaxis, *limits)
            style.ticks(ax.yaxis, *limits)
    ax.set_title(title)
    named = cost_unit if quantity == "cost" else output_unit
    unit = f" ({named})" if named else ""
    n_beyond = 0 if not len(told) else int((~shown).sum())
    beyond = f"\n({n_beyond} more beyond the axes)" if n_beyond else ""
    ax.set_xlabel(f"measured {quantity}{unit}{beyond}")
    ax.set_ylabel(f"predicted {quantity}{unit}")
    return style.finish(ax)


def plot_convergence(
    trials: pd.DataFrame,
    *,
    direction: Direction = "minimize",
    cost_unit: str = "s",
    output_unit: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The best output so far over what the sweep had spent, failed and stopped runs included.

    Args:
        trials: of the study.
        direction: whether a low or a high output is good.
        cost_unit: for the axis.
        output_unit: likewise; empty for none.
        ax: to draw on.
    """
    ax = style.axes(ax, (7.2, 3.4))
    ended = trials[trials["state"].isin(["complete", "failed", "stopped"])].sort_values("number")
    spent = ended["cost"].fillna(0.0).cumsum()
    done = finished(ended)
    best = done["output"].cummin() if direction == "minimize" else done["output"].cummax()
    ax.plot(spent[done.index], done["output"], label="finished trial", **style.RUNS)
    ax.plot(
        spent[done.index],
        best,
        color=style.INK,
        lw=1.6,
        drawstyle="steps-post",
        label="best so far",
    )
    _cut_off(ax, spent[done.index], done["output"], direction)
    ax.set_xlim(left=0)
    ax.set_xlabel(f"cost of all runs so far ({cost_unit})")
    ax.set_ylabel(style.output_label(direction, output_unit))
    ax.legend(loc="upper right" if direction == "minimize" else "lower right")
    return style.finish(ax)


@on_one_thread
def plot_contour(
    front: FrontModel, name: str, *, cost_unit: str = "s", ax: Axes | None = None
) -> Axes:
    """How much worse the loss is beside the optimum of one parameter, over cost, as contours.

    Args:
        front: fitted.
        name: of a parameter on a logarithmic scale, other than the one that follows from the cost.
        cost_unit: for the axis.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    costs, values, excess = loss_around(front, name)
    ax.set_xscale("log")  # before the labels: they are placed, and cut out, where the axes are then
    ax.set_yscale("log")
    ax.set_xlim(costs.min(), costs.max())
    ax.set_ylim(values.min(), values.max())
    drawn = ax.contour(
        costs,
        values,
        excess,
        levels=[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
        colors=style.INK,
        linewidths=0.9,
    )
    ax.contourf(
        costs, values, np.log10(np.maximum(excess, 1e-4)), levels=12, cmap="Greys", alpha=0.5
    )
    ax.clabel(drawn, fmt=lambda level: f"+{level:g}", fontsize=8)
    best = values[np.argmin(excess, axis=0)]
    ax.plot(costs, best, "--", color=style.BLUE, lw=1.8, label="best")
    style.ticks(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel(style.plain(style.shortened(name)))
    ax.set_title("loss above its least at that cost")
    style.cost_axis(ax, cost_unit)
    ax.legend(loc="upper right")
    return style.finish(ax)


def plot_shares(curves: Sequence[Curve], cost: float, *, ax: Axes | None = None) -> Axes:
    """The best mix at one of the searched costs, as bars with their intervals.

    Args:
        curves: one a component, named ``mix.code``.
        cost: the nearest cost of the curves is taken.
        ax: to draw on.
    """
    ax = style.axes(ax, style.PANEL)
    i = int(np.argmin(np.abs(np.log(curves[0].costs / cost))))
    middles = [curve.median[i] for curve in curves]
    bars = style.error_bars(
        middles, [curve.low[i] for curve in curves], [curve.high[i] for curve in curves]
    )
    places = np.arange(len(curves))
    ax.barh(places, middles, color="#bcd3e6", edgecolor=style.BLUE)
    ax.errorbar(middles, places, xerr=bars, fmt="none", ecolor=style.INK, capsize=3, lw=1.2)
    ax.set_yticks(
        places, [style.plain(style.shortened(curve.name.split(".", 1)[-1], 24)) for curve in curves]
    )
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the mix (0 to 1)")
    return style.finish(ax)


def plot_parallel(
    trials: pd.DataFrame,
    names: Sequence[str],
    *,
    direction: Direction = "minimize",
    ax: Axes | None = None,
) -> Axes:
    """Parallel coordinates: a line a trial through its parameters, cost and output.

    Each axis runs from its least to its greatest value, over logarithms where all are positive and
    span more than a factor of ten. The Pareto front is drawn over the rest.

    Args:
        trials: of the study.
        names: of the numeric parameters to show.
        direction: whether a low or a high output is good.
        ax: to draw on.
    """
    ax = style.axes(ax, (9.6, 4.0))
    done, front = finished(trials), front_trials(trials, direction)
    columns = [*names, "cost", "output"]
    places = list(range(len(columns)))
    scaled = pd.DataFrame(index=done.index)
    for place, name in zip(places, columns, strict=True):
        values = done[name].astype(float)
        low, high = float(values.min()), float(values.max())
        is_log = low > 0 and high > 10 * low
        u = np.log(values) if is_log else values
        span = float(u.max() - u.min()) or 1.0
        scaled[name] = (u - u.min()) / span
        for y, end in ((-0.05, low), (1.05, high)):
            ax.text(place, y, f"{end:.3g}", ha="center", va="center", fontsize=8, color=style.INK)
    for number, row in scaled.iterrows():
        is_front = number in front.index
        ax.plot(
            places,
            row,
            color=style.BLUE if is_front else "#d5d5d5",
            lw=1.3 if is_front else 0.7,
            zorder=3 if is_front else 1,
        )
    ax.set_xticks(places, [style.plain(style.shortened(name, 16)) for name in columns])
    ax.set_yticks([])
    ax.set_ylim(-0.1, 1.1)
    ax.spines["left"].set_visible(False)
    for place in places:
        ax.axvline(place, color=style.GREY, lw=0.8)
    handles = [Line2D([], [], color=c, lw=1.5) for c in (style.BLUE, "#d5d5d5")]
    ax.legend(handles, ["Pareto front", "other trials"], loc="center left", bbox_to_anchor=(1, 0.5))
    return style.finish(ax)


def edge_of(losses: pd.Series) -> float:
    """Where an axis of losses has to end for most to be told apart; infinite where none is far."""
    best = float(losses.min())
    edge = best + 1.35 * (float(np.quantile(losses, 0.85)) - best)
    is_squeezed = len(losses) >= 8 and losses.max() - best > 2 * (edge - best)
    return edge if is_squeezed else math.inf
