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
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.special import ndtri

from carbs.analysis.front.expectation import SweepBacktest
from carbs.analysis.front.hyperparameters import Curve, loss_around
from carbs.analysis.front.model import FrontModel
from carbs.analysis.laws.multiplier import Multiplier
from carbs.analysis.laws.power import ComputeLaw, LossLaw
from carbs.pareto import pareto_front
from carbs.records import Direction, Observation
from carbs.space import FloatArray
from carbs.study import flatten

Quantity = Literal["output", "cost"]
MOST_BANDS = 5

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_BLUE, _RED, _GREEN, _ORANGE, _PURPLE, _SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
)
_INK, _GREY = "#222222", "#8a8a8a"
_COLORS = (_BLUE, _RED, _GREEN, _ORANGE, _PURPLE, _SKY, _INK, _GREY)
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_FRONT, _WIDE, _SQUARE, _PANEL = (9.6, 4.4), (7.2, 4.0), (3.9, 3.9), (3.6, 2.9)
_BAND: dict[str, Any] = {"alpha": 0.16, "linewidth": 0}


# The order of the front's legend, by what stands before a comma.
_LEGEND = ("finished trial", "failed trial", "Pareto front", "compute law", "band", "check run")


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
        direction: whether a low or a high output is good.
        cost_unit: for the axis.
        output_unit: likewise; empty for none.
        ax: to draw on.
    """
    ax = _axes(ax, _FRONT)
    done, front = finished(trials), front_trials(trials, direction)
    ax.plot(
        done["cost"], done["output"], "o", color=_GREY, mfc="none", ms=4, label="finished trial"
    )
    ax.plot(
        front["cost"],
        front["output"],
        color=_INK,
        drawstyle="steps-post",
        marker="o",
        ms=4.5,
        lw=1.2,
        label="Pareto front",
    )
    level = 0.9 if check is None else float(check["level"])
    if law is not None:
        end = float(law.compute.max())
        if check is not None:
            end = max(end, *check["predicted_cost_interval"], check.get("measured_cost") or 0.0)
        _law(ax, law, end, level)
    if check is not None:
        _check(ax, check)
    keep = [] if check is None else list(check["predicted_output_interval"])
    if check is not None and check.get("measured_output") is not None:
        keep.append(check["measured_output"])
    _cut_off(ax, done["cost"], done["output"], direction, keep)
    costs = failed(trials)["cost"]
    if (costs > 0).any():
        ax.plot(
            costs[costs > 0],
            np.full(int((costs > 0).sum()), 0.02),
            "|",
            color=_RED,
            ms=11,
            mew=1.6,
            transform=ax.get_xaxis_transform(),
            label="failed trial, at what it spent",
        )
    ax.set_xscale("log")
    _ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(f"cost of one run ({cost_unit})")
    ax.set_ylabel(_output_label(direction, output_unit))
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: _LEGEND.index(labels[i].split(",")[0]))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    return _finish(ax)


def _law(ax: Axes, law: ComputeLaw, end: float, level: float) -> None:
    start, last = float(law.compute.min()), float(law.compute.max())
    inside = np.geomspace(start, last, 100)
    ax.plot(inside, law.predict(inside), color=_BLUE, lw=1.8, label="compute law, fitted")
    costs = inside
    if end > last:
        beyond = np.geomspace(last, end, 60)
        costs = np.concatenate([inside, beyond[1:]])
        ax.plot(
            beyond,
            law.predict(beyond),
            "--",
            color=_BLUE,
            lw=1.8,
            label="compute law, extrapolated",
        )
    low, high = law.interval(costs, level)
    ax.fill_between(costs, low, high, color=_BLUE, label=f"band, {level:.0%} of new runs", **_BAND)


def _check(ax: Axes, check: Mapping[str, Any]) -> None:
    x, y = check["predicted_cost"], check["predicted_output"]
    ax.errorbar(
        x,
        y,
        xerr=_bars(x, *check["predicted_cost_interval"]),
        yerr=_bars(y, *check["predicted_output_interval"]),
        fmt="s",
        color=_RED,
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
            color=_ORANGE,
            mec=_INK,
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
    edge = max([_edge(losses), *(sign * output for output in keep)])
    is_beyond = losses > edge
    if not is_beyond.any():
        return
    best = ax.dataLim.y0 if direction == "minimize" else -ax.dataLim.y1
    limits = sign * (best - 0.05 * (edge - best)), sign * edge
    ax.set_ylim(min(limits), max(limits))
    ax.plot(
        costs[is_beyond],
        np.full(int(is_beyond.sum()), 0.985 if direction == "minimize" else 0.015),
        "^" if direction == "minimize" else "v",
        color=_GREY,
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
    ax = _axes(ax, _PANEL)
    ax.fill_between(curve.costs, curve.low, curve.high, color=_BLUE, **_BAND)
    ax.plot(curve.costs, curve.median, color=_BLUE, lw=1.8)
    values = [flatten(observation.params).get(curve.name) for observation in observations_on_front]
    ax.plot(
        [observation.cost for observation in observations_on_front],
        [math.nan if value is None else float(value) for value in values],
        "o",
        color=_INK,
        ms=3.5,
    )
    name = title = _plain(_short(curve.name))
    if curve.exponent is not None:
        ax.set_yscale("log")
        _ticks(ax.yaxis, *ax.get_ylim())
        median, low, high = (_signed(number) for number in curve.exponent)
        law = f"~ cost^{median} [{low}, {high}]"
        title = f"{name} {law}" if len(name) + len(law) < 38 else f"{name}\n{law}"
    if is_share:
        ax.set_ylim(0, 1)
        name = "share of the mix (0 to 1)"
    ax.set_title(title)
    ax.set_ylabel(name)
    _cost_axis(ax, cost_unit)
    return _finish(ax)


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
    ax = _axes(ax, _PANEL)
    for i, share in enumerate(shares.values()):
        ax.plot(costs, share, **_style(i), ms=4, lw=1.5, clip_on=False)
    ax.set_ylim(0, 1)
    ax.set_title(_plain(_short(name)))
    ax.set_ylabel("probability of being best")
    _cost_axis(ax, cost_unit)
    _legend(ax, list(shares), longest=16)
    return _finish(ax)


def plot_mix(curves: Sequence[Curve], *, cost_unit: str = "s", ax: Axes | None = None) -> Axes:
    """The best share of every component of a mix over cost, each with its band.

    More than ``MOST_BANDS`` bands would only cover each other, and are left out.

    Args:
        curves: one a component, named ``mix.code``.
        cost_unit: for the axis.
        ax: to draw on.
    """
    ax = _axes(ax, _WIDE)
    for i, curve in enumerate(curves):
        style = _style(i)
        if len(curves) <= MOST_BANDS:
            ax.fill_between(curve.costs, curve.low, curve.high, color=style["color"], **_BAND)
        ax.plot(curve.costs, curve.median, **style, ms=5, lw=1.8)
    tops = [curve.high if len(curves) <= MOST_BANDS else curve.median for curve in curves]
    top = max((float(np.nanmax(high)) for high in tops), default=1.0)
    ax.set_ylim(0, min(1.0, 1.1 * top))
    ax.set_ylabel("share of the mix (0 to 1)")
    _cost_axis(ax, cost_unit)
    _legend(ax, [curve.name.split(".", 1)[-1] for curve in curves])
    return _finish(ax)


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
    ax = _axes(ax, _SQUARE)
    told = predicted_trials(trials, quantity)
    predicted = told[f"predicted_{quantity}"]
    for is_inside, color, face in ((True, _BLUE, _BLUE), (False, _RED, "white")):
        some = told[told["inside"] == is_inside]
        ax.errorbar(
            some[quantity],
            some[f"predicted_{quantity}"],
            yerr=_bars(
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
            shown = losses <= _edge(losses)
        both = np.concatenate([told[quantity][shown], predicted[shown]])
        limits = _padded(both, is_log=quantity == "cost")
        ax.plot(limits, limits, color=_INK, lw=1.0, ls="--", zorder=1)
        if quantity == "cost":
            ax.set_xscale("log")
            ax.set_yscale("log")
        ax.set_xlim(limits)
        ax.set_ylim(limits)
        if quantity == "cost":
            _ticks(ax.xaxis, *limits)
            _ticks(ax.yaxis, *limits)
    ax.set_title(title)
    named = cost_unit if quantity == "cost" else output_unit
    unit = f" ({named})" if named else ""
    n_beyond = 0 if not len(told) else int((~shown).sum())
    beyond = f"\n({n_beyond} more beyond the axes)" if n_beyond else ""
    ax.set_xlabel(f"measured {quantity}{unit}{beyond}")
    ax.set_ylabel(f"predicted {quantity}{unit}")
    return _finish(ax)


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
    ax = _axes(ax, (7.2, 3.4))
    ended = trials[trials["state"].isin(["complete", "failed", "stopped"])].sort_values("number")
    spent = ended["cost"].fillna(0.0).cumsum()
    done = finished(ended)
    best = done["output"].cummin() if direction == "minimize" else done["output"].cummax()
    circle: dict[str, Any] = {"color": _GREY, "mfc": "none", "ms": 4, "label": "finished trial"}
    ax.plot(spent[done.index], done["output"], "o", **circle)
    ax.plot(
        spent[done.index], best, color=_INK, lw=1.6, drawstyle="steps-post", label="best so far"
    )
    _cut_off(ax, spent[done.index], done["output"], direction)
    ax.set_xlim(left=0)
    ax.set_xlabel(f"cost of all runs so far ({cost_unit})")
    ax.set_ylabel(_output_label(direction, output_unit))
    ax.legend(loc="upper right" if direction == "minimize" else "lower right")
    return _finish(ax)


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
    ax = _axes(ax, _WIDE)
    costs, values, excess = loss_around(front, name)
    drawn = ax.contour(
        costs,
        values,
        excess,
        levels=[0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
        colors=_INK,
        linewidths=0.9,
    )
    ax.contourf(
        costs, values, np.log10(np.maximum(excess, 1e-4)), levels=12, cmap="Greys", alpha=0.5
    )
    ax.clabel(drawn, fmt=lambda level: f"+{level:g}", fontsize=8)
    best = values[np.argmin(excess, axis=0)]
    ax.plot(costs, best, "--", color=_BLUE, lw=1.8, label="best")
    ax.set_yscale("log")
    _ticks(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel(_plain(_short(name)))
    ax.set_title("loss above its least at that cost")
    _cost_axis(ax, cost_unit)
    ax.legend(loc="upper right")
    return _finish(ax)


def plot_isoflop(
    law: LossLaw,
    budgets: Sequence[float],
    runs: pd.DataFrame | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Loss over model size at fixed FLOPs, with the compute-optimal sizes.

    Args:
        law: in parameters and tokens.
        budgets: FLOPs, a line each.
        runs: measured ones, with ``n_params``, ``n_tokens`` and ``loss``: those within a factor of
            1.5 of a budget are drawn in its marker.
        ax: to draw on.
    """
    ax = _axes(ax, _WIDE)
    for i, flops in enumerate(budgets):
        style = _style(i)
        best = float(law.compute_optimal(flops).n_params)
        n_params = best * np.geomspace(0.1, 10, 81)
        losses = law.curve(n_params, flops / (6 * n_params))
        ax.plot(n_params, losses, color=style["color"], linestyle=style["linestyle"], lw=1.6)
        ax.plot([best], [law.curve(best, flops / (6 * best))], **style, ms=9, mfc="white")
        if runs is not None:
            near = np.abs(np.log(6 * runs["n_params"] * runs["n_tokens"] / flops)) < math.log(1.5)
            ax.plot(runs["n_params"][near], runs["loss"][near], style["marker"], color=_GREY, ms=4)
    ax.set_xscale("log")
    _ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("parameters")
    ax.set_ylabel("loss")
    _legend(ax, [f"{flops:.2g} FLOPs" for flops in budgets])
    return _finish(ax)


def plot_shares(curves: Sequence[Curve], cost: float, *, ax: Axes | None = None) -> Axes:
    """The best mix at one of the searched costs, as bars with their intervals.

    Args:
        curves: one a component, named ``mix.code``.
        cost: the nearest cost of the curves is taken.
        ax: to draw on.
    """
    ax = _axes(ax, _PANEL)
    i = int(np.argmin(np.abs(np.log(curves[0].costs / cost))))
    middles = [curve.median[i] for curve in curves]
    bars = _bars(middles, [curve.low[i] for curve in curves], [curve.high[i] for curve in curves])
    places = np.arange(len(curves))
    ax.barh(places, middles, color="#bcd3e6", edgecolor=_BLUE)
    ax.errorbar(middles, places, xerr=bars, fmt="none", ecolor=_INK, capsize=3, lw=1.2)
    ax.set_yticks(places, [_plain(_short(curve.name.split(".", 1)[-1], 24)) for curve in curves])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the mix (0 to 1)")
    return _finish(ax)


def plot_residuals(
    scale: FloatArray,
    measured: FloatArray,
    fitted: FloatArray,
    *,
    scale_label: str = "cost of one run (s)",
    ax: Axes | None = None,
) -> Axes:
    """What a law misses, in percent of the loss, over scale.

    Args:
        scale: cost or compute, ``(n,)``.
        measured, fitted: losses, ``(n,)``.
        scale_label: with its unit.
        ax: to draw on.
    """
    ax = _axes(ax, _WIDE)
    ax.axhline(0, color=_INK, lw=1.0, ls="--")
    residuals = 100 * np.log(np.asarray(measured) / np.asarray(fitted))
    ax.plot(scale, residuals, "o", color=_BLUE, mfc="none", ms=4.5)
    ax.set_xscale("log")
    _ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(scale_label)
    ax.set_ylabel("measured over fitted (% of the loss)")
    return _finish(ax)


def plot_calibration(scores: FloatArray, *, ax: Axes | None = None) -> Axes:
    """How often intervals of each level held, against how often they promise to.

    Args:
        scores: normal quantiles of the measurements' places in their predictions, ``(n,)``.
        ax: to draw on.
    """
    ax = _axes(ax, _SQUARE)
    levels = np.linspace(0.01, 0.99, 99)
    inside = [(np.abs(scores) <= ndtri(0.5 + level / 2)).mean() for level in levels]
    ax.plot([0, 1], [0, 1], "--", color=_INK, lw=1.0)
    ax.plot(levels, inside, color=_BLUE, lw=1.8)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("level of the interval")
    ax.set_ylabel(f"share of {len(scores)} runs inside")
    return _finish(ax)


def plot_backtest(
    tests: Sequence[SweepBacktest], *, output_unit: str = "", ax: Axes | None = None
) -> Axes:
    """Dear runs as predicted from cheap ones, in percent off, over how much dearer they were."""
    ax = _axes(ax, _WIDE)
    ax.axhline(0, color=_INK, lw=1.0, ls="--")
    for i, test in enumerate(tests):
        style = _style(i)
        off = test.predicted - test.measured
        ax.errorbar(
            test.factors,
            off,
            yerr=_bars(off, test.low - test.measured, test.high - test.measured),
            fmt=style["marker"],
            color=style["color"],
            mfc="white",
            ms=5,
            lw=0.9,
        )
    ax.set_xscale("log")
    _ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("cost over that of the dearest run fitted to")
    ax.set_ylabel("predicted minus measured" + (f" ({output_unit})" if output_unit else ""))
    handles = [
        Line2D([], [], color=_style(i)["color"], marker=_style(i)["marker"], ls="", mfc="white")
        for i in range(len(tests))
    ]
    labels = [f"fitted up to {test.share:.0%} of the cost" for test in tests]
    ax.legend(handles, labels, loc="best")
    return _finish(ax)


def plot_multiplier(
    multiplier: Multiplier, *, compute_label: str = "compute (FLOPs)", ax: Axes | None = None
) -> Axes:
    """Compute that the second recipe needs, in multiples of the first's, over scale."""
    ax = _axes(ax, _WIDE)
    ends = multiplier.median[np.isfinite(multiplier.median)]
    top = 3 * float(ends.max()) if len(ends) else 10.0
    ax.fill_between(
        multiplier.compute, multiplier.low, np.minimum(multiplier.high, top), color=_BLUE, **_BAND
    )
    ax.plot(multiplier.compute, multiplier.median, color=_BLUE, lw=1.8)
    ax.axhline(1, color=_INK, lw=1.0, ls="--")
    for crossing in multiplier.crossings:
        ax.axvline(crossing, color=_RED, lw=1.2, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(multiplier.compute.min(), multiplier.compute.max())
    ax.set_ylim(top=top)
    _ticks(ax.xaxis, *ax.get_xlim())
    _ticks(ax.yaxis, *ax.get_ylim())
    ax.set_xlabel(compute_label)
    ax.set_ylabel("compute of the second over the first")
    return _finish(ax)


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
    ax = _axes(ax, (9.6, 4.0))
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
            ax.text(place, y, f"{end:.3g}", ha="center", va="center", fontsize=8, color=_INK)
    for number, row in scaled.iterrows():
        is_front = number in front.index
        ax.plot(
            places,
            row,
            color=_BLUE if is_front else "#d5d5d5",
            lw=1.3 if is_front else 0.7,
            zorder=3 if is_front else 1,
        )
    ax.set_xticks(places, [_plain(_short(name, 16)) for name in columns])
    ax.set_yticks([])
    ax.set_ylim(-0.1, 1.1)
    ax.spines["left"].set_visible(False)
    for place in places:
        ax.axvline(place, color=_GREY, lw=0.8)
    handles = [Line2D([], [], color=c, lw=1.5) for c in (_BLUE, "#d5d5d5")]
    ax.legend(handles, ["Pareto front", "other trials"], loc="center left", bbox_to_anchor=(1, 0.5))
    return _finish(ax)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure, in the one style of this project."""
    if ax is None:
        ax = Figure(figsize=size, dpi=150, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(_GREY)
    ax.tick_params(colors=_INK, labelsize=9, which="both")
    ax.grid(color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _finish(ax: Axes) -> Axes:
    ax.xaxis.label.set_fontsize(9.5)
    ax.yaxis.label.set_fontsize(9.5)
    ax.title.set_fontsize(10)
    legend = ax.get_legend()
    if legend is not None:
        legend.get_frame().set(alpha=0.85, linewidth=0)
        for text in legend.get_texts():
            text.set_fontsize(8.5)
    return ax


def _style(i: int) -> dict[str, Any]:
    """The first 32 differ without their colours."""
    return {
        "color": _COLORS[i % len(_COLORS)],
        "linestyle": _LINES[i % len(_LINES)],
        "marker": _MARKERS[(i + i // len(_MARKERS)) % len(_MARKERS)],
    }


def _legend(ax: Axes, names: Sequence[str], longest: int = 36) -> None:
    """Of lines drawn in the order of the names, beside the plot."""
    handles = [Line2D([], [], **_style(i)) for i in range(len(names))]
    labels = [_plain(_short(name, longest)) for name in names]
    ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _cost_axis(ax: Axes, cost_unit: str) -> None:
    ax.set_xscale("log")
    _ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(f"cost of one run ({cost_unit})")


def _output_label(direction: Direction, output_unit: str) -> str:
    better = "lower is better" if direction == "minimize" else "higher is better"
    return f"output ({output_unit or better})"


def _bars(middle: Any, low: Any, high: Any) -> FloatArray:
    """Lengths downwards and upwards, as matplotlib wants them: shape ``(2, n)``."""
    middle, low, high = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (middle, low, high))
    return np.asarray(np.maximum(np.stack([middle - low, high - middle]), 0.0))


def _edge(losses: pd.Series) -> float:
    """Where an axis of losses has to end for most to be told apart; infinite where none is far."""
    best = float(losses.min())
    edge = best + 1.35 * (float(np.quantile(losses, 0.85)) - best)
    is_squeezed = len(losses) >= 8 and losses.max() - best > 2 * (edge - best)
    return edge if is_squeezed else math.inf


def _padded(values: FloatArray, is_log: bool) -> tuple[float, float]:
    if is_log:
        low, high = np.log(values.min()), np.log(values.max())
    else:
        low, high = values.min(), values.max()
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin
    return (float(np.exp(low)), float(np.exp(high))) if is_log else (float(low), float(high))


def _ticks(axis: Axis, low: float, high: float) -> None:
    """Few ticks on a logarithmic axis, with plain numbers, however short or long it is."""
    decades = math.log10(high / low)
    subs = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x)))
    axis.set_minor_formatter(NullFormatter())


def _tick(x: float) -> str:
    if x <= 0 or 1e-3 <= x < 1e4:
        return f"{x:.5g}"
    power = math.floor(math.log10(x) + 1e-9)
    factor = f"{x / 10**power:.3g}"
    ten = "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return ten if factor == "1" else f"{factor}·{ten}"


def _signed(number: float) -> str:
    text = f"{number:.2f}".replace("-", "−")
    return "0.00" if text == "−0.00" else text


def _short(name: str, longest: int = 36) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _plain(text: str) -> str:
    """A user's name, of which matplotlib takes nothing for mathematics."""
    return text.replace("$", r"\$")
