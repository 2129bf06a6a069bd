"""Figures of laws: what they say of other runs than a sweep's, and how far that held.

As those in :mod:`carbs.analysis.report.plots`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy.special import ndtri

from carbs.analysis.front.expectation import SweepBacktest
from carbs.analysis.laws.accuracy import AccuracyLaw
from carbs.analysis.laws.backtest import Backtest
from carbs.analysis.laws.mixing import BestMix
from carbs.analysis.laws.multiplier import Multiplier
from carbs.analysis.laws.optimum import OptimumLaw
from carbs.analysis.laws.power import ComputeLaw, LossLaw
from carbs.analysis.report import style
from carbs.spaces import FloatArray


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
    ax = style.axes(ax, style.WIDE)
    for i, flops in enumerate(budgets):
        line = style.numbered(i)
        curve = law.isoflop(flops, n_points=123)
        best = curve.iloc[[61]]
        around = curve.iloc[20:103]  # within a factor of ten
        ax.plot(around["n_params"], around["loss"], line["linestyle"], color=line["color"], lw=1.6)
        ax.plot(best["n_params"], best["loss"], **line, ms=9, mfc="white")
        if runs is not None:
            near = np.abs(np.log(6 * runs["n_params"] * runs["n_tokens"] / flops)) < math.log(1.5)
            ax.plot(
                runs["n_params"][near], runs["loss"][near], line["marker"], color=style.GREY, ms=4
            )
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("parameters")
    ax.set_ylabel("loss")
    style.legend(ax, [f"{flops:.2g} FLOPs" for flops in budgets])
    return style.finish(ax)


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
    ax = style.axes(ax, style.WIDE)
    ax.axhline(0, color=style.INK, lw=1.0, ls="--")
    residuals = 100 * np.log(np.asarray(measured) / np.asarray(fitted))
    ax.plot(scale, residuals, "o", color=style.BLUE, mfc="none", ms=4.5)
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(scale_label)
    ax.set_ylabel("measured over fitted (% of the loss)")
    return style.finish(ax)


def plot_calibration(scores: FloatArray, *, ax: Axes | None = None) -> Axes:
    """How often intervals of each level held, against how often they promise to.

    Args:
        scores: normal quantiles of the measurements' places in their predictions, ``(n,)``.
        ax: to draw on.
    """
    ax = style.axes(ax, style.SQUARE)
    levels = np.linspace(0.01, 0.99, 99)
    inside = [(np.abs(scores) <= ndtri(0.5 + level / 2)).mean() for level in levels]
    ax.plot([0, 1], [0, 1], "--", color=style.INK, lw=1.0)
    ax.plot(levels, inside, color=style.BLUE, lw=1.8)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("level of the interval")
    ax.set_ylabel(f"share of {len(scores)} runs inside")
    return style.finish(ax)


def plot_backtest(
    tests: Backtest | SweepBacktest | Sequence[SweepBacktest],
    *,
    output_unit: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Dear runs as predicted from cheap ones: what was off, over how much dearer they were.

    Args:
        tests: of a sweep, or of a law of any runs.
        output_unit: for the axis; empty for none.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    ax.axhline(0, color=style.INK, lw=1.0, ls="--")
    parts: list[tuple[str, Any, Any]]
    if isinstance(tests, Backtest):
        ax.set_xlabel("compute over the largest that was fitted to")
        parts = [
            (f"fitted up to 1/{factor:g} of the compute", part["extrapolation"], part)
            for factor, part in tests.runs.groupby("factor")
        ]
    else:
        ax.set_xlabel("cost over that of the dearest run fitted to")
        parts = [
            (f"fitted up to {test.share:.0%} of the cost", test.factors, test)
            for test in ([tests] if isinstance(tests, SweepBacktest) else tests)
        ]
    for i, (label, factors, part) in enumerate(parts):
        line = style.numbered(i)
        off = np.asarray(part.predicted - part.measured)
        ax.errorbar(
            factors,
            off,
            yerr=style.error_bars(off, part.low - part.measured, part.high - part.measured),
            fmt=line["marker"],
            color=line["color"],
            mfc="white",
            ms=5,
            lw=0.9,
            label=label,
        )
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_ylabel("predicted minus measured" + (f" ({output_unit})" if output_unit else ""))
    # Error bars may be anywhere within.
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)
    return style.finish(ax)


def plot_multiplier(
    multiplier: Multiplier,
    *,
    names: tuple[str, str] = ("the first", "the second"),
    data_end: float | None = None,
    compute_label: str = "compute (FLOPs)",
    ax: Axes | None = None,
) -> Axes:
    """Compute that the second recipe needs, in multiples of the first's, over scale.

    Args:
        multiplier: of the two.
        names: of the first and the second recipe.
        data_end: compute of the dearest run; beyond it the line is dashed.
        compute_label: with its unit.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    compute, median = multiplier.compute, multiplier.median
    ends = median[np.isfinite(median)]
    top = 3 * max(1.0, float(ends.max())) if len(ends) else 10.0
    bottom = min(1.0, float(ends.min())) / 3 if len(ends) else 0.1
    high = np.minimum(multiplier.high, 1e6 * top)  # infinite where the second never gets there
    ax.fill_between(compute, multiplier.low, high, color=style.BLUE, **style.BAND)
    end = compute.max() if data_end is None else data_end
    is_known = compute <= end
    ax.plot(compute[is_known], median[is_known], color=style.BLUE, lw=1.8)
    first = max(int(is_known.sum()) - 1, 0)
    ax.plot(compute[first:], median[first:], "--", color=style.BLUE, lw=1.8)
    ax.axhline(1, color=style.INK, lw=1.0)
    for y, text, where in ((1.04, names[0], "bottom"), (0.96, names[1], "top")):
        said = f" {style.plain(style.shortened(text))} needs less"
        ax.annotate(said, (compute.min(), y), va=where, fontsize=8.5)
    if data_end is not None and compute.min() < data_end < compute.max():
        ax.axvline(data_end, color=style.GREY, lw=1.0)
        ax.annotate(
            " the runs end here",
            (data_end, 0.03),
            xycoords=("data", "axes fraction"),
            color=style.INK,
            fontsize=8.5,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(compute.min(), compute.max())
    ax.set_ylim(bottom, top)
    style.ticks(ax.xaxis, *ax.get_xlim())
    style.ticks(ax.yaxis, *ax.get_ylim())
    ax.set_xlabel(compute_label)
    ax.set_ylabel(f"compute of {style.plain(style.shortened(names[1]))}, in multiples")
    return style.finish(ax)


def plot_compute_law(
    law: ComputeLaw,
    compute: FloatArray,
    loss: FloatArray,
    *,
    beyond: float = 10.0,
    level: float = 0.9,
    compute_label: str = "training compute (FLOPs)",
    loss_label: str = "loss (nats per token)",
    ax: Axes | None = None,
) -> Axes:
    """Loss over compute: runs, the law fitted to them, and its band beyond them.

    Args:
        law: fitted.
        compute, loss: of all runs to draw, ``(n,)``, also of those to which it was not fitted.
        beyond: how far the band goes, in multiples of the largest compute fitted to.
        level: of the band.
        compute_label, loss_label: with their units.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    compute, loss = np.asarray(compute), np.asarray(loss)
    start, last = float(law.compute.min()), float(law.compute.max())
    fitted = compute <= last * (1 + 1e-9)
    ax.plot(compute[fitted], loss[fitted], "o", color=style.GREY, mfc="none", ms=4, label="run")
    if not fitted.all():
        label = "run, dearer than fitted to"
        dear = compute[~fitted], loss[~fitted]
        ax.plot(*dear, "s", color=style.RED, mfc="white", ms=4.5, label=label)
    for low, high, line, label in (
        (start, last, "-", "compute law"),
        (last, last * beyond, "--", "compute law, extrapolated"),
    ):
        grid = np.geomspace(low, high, 60)
        ax.plot(grid, law.predict(grid), line, color=style.BLUE, lw=1.8, label=label)
    grid = np.geomspace(start, last * beyond, 100)
    band = law.interval(grid, level)
    ax.fill_between(grid, *band, color=style.BLUE, label=f"{level:.0%} of new runs", **style.BAND)
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel(compute_label)
    ax.set_ylabel(loss_label)
    ax.legend(loc="upper right")
    return style.finish(ax)


def plot_accuracy(
    law: AccuracyLaw,
    loss: FloatArray,
    accuracy: FloatArray,
    *,
    until: float | None = None,
    level: float = 0.9,
    loss_label: str = "loss (nats), better to the right",
    ax: Axes | None = None,
) -> Axes:
    """Accuracy of a task over the loss: runs, the law with its band, and chance.

    Args:
        law: fitted.
        loss, accuracy: of the runs, ``(n,)``.
        until: the lowest loss to draw; by default the runs' lowest.
        level: of the band.
        loss_label: with its unit.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    loss = np.asarray(loss)
    grid = np.linspace(min(loss.min(), until or math.inf), loss.max(), 120)
    band = law.interval(grid, level)
    ax.fill_between(grid, *band, color=style.BLUE, label=f"{level:.0%} of new runs", **style.BAND)
    ax.plot(grid, law.predict(grid), color=style.BLUE, lw=1.8, label="accuracy law")
    ax.plot(loss, accuracy, "o", color=style.INK, ms=3.5, label="run")
    ax.axhline(law.chance, color=style.GREY, lw=1.0, ls=":")
    ax.annotate(
        "chance ", (grid.min(), law.chance), color=style.INK, ha="right", va="bottom", fontsize=8.5
    )
    ax.set_xlim(grid.max(), grid.min())
    ax.set_xlabel(loss_label)
    ax.set_ylabel("accuracy")
    ax.legend(loc="upper left")
    return style.finish(ax)


def plot_best_mix(
    best: BestMix, *, least: float = 0.005, most: int = 12, ax: Axes | None = None
) -> Axes:
    """The mixture with the least predicted loss, each weight with its band; the largest first.

    Args:
        best: of a mixing law.
        least: domains whose band ends below this share are left out.
        most: how many domains at the most.
        ax: to draw on.
    """
    ax = style.axes(ax, (6.4, 4.0))
    shown = best.table().sort_values("weight", ascending=False)
    shown = shown[shown["high"] >= least].head(most)
    place = np.arange(len(shown))[::-1]
    ax.hlines(place, shown["low"], shown["high"], color=style.BLUE, alpha=0.35, lw=6)
    ax.plot(shown["weight"], place, "o", color=style.BLUE, ms=5)
    ax.set_yticks(place, [style.plain(style.shortened(str(name), 24)) for name in shown["domain"]])
    ax.set_xlim(left=0)
    ax.set_xlabel("share of the tokens (0 to 1), with its 90% band")
    return style.finish(ax)


def plot_optimum(
    law: OptimumLaw,
    name: str,
    scale: str,
    *,
    level: float = 0.9,
    ax: Axes | None = None,
) -> Axes:
    """The best value of a hyperparameter over a scale: where each scale has it by its own runs, if
    these are enough, and the law with its band, of each family.

    Args:
        law: fitted.
        name: of a hyperparameter of the law.
        scale: what it depends on, the horizontal axis; other scales are held at their middle, to
            which these are moved along the law.
        level: of the band.
        ax: to draw on.
    """
    ax = style.axes(ax, style.WIDE)
    low, high = law.scale_range[:, law.scales_with.index(scale)]
    grid = np.geomspace(low / 1.5, high * 1.5, 80)
    middle = dict(zip(law.scales_with, np.exp(law.center), strict=True))
    at = {other: np.full(len(grid), middle[other]) for other in law.scales_with} | {scale: grid}
    for family, color in zip(law.families, itertools.cycle(style.COLORS), strict=False):
        own = {law.family: family} if law.family else {}
        ax.fill_between(grid, *law.interval(level, **at, **own)[name], color=color, **style.BAND)
        ax.plot(grid, law.predict(**at, **own)[name], color=color, lw=1.8, label=str(family))
        cells = law.optima[law.optima[law.family] == family] if law.family else law.optima
        if len(cells):
            there = {other: cells[other].to_numpy() for other in law.scales_with}
            held = {other: np.full(len(cells), middle[other]) for other in law.scales_with}
            moved = law.predict(**held | {scale: there[scale]}, **own)[name]
            moved = moved / law.predict(**there, **own)[name]
            ink = color if law.family else style.INK
            ax.plot(cells[scale], cells[name] * moved, "o", color=ink, ms=4)
    if law.family:
        ax.legend(title=style.plain(law.family))
    ax.set_xscale("log")
    ax.set_yscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    style.ticks(ax.yaxis, *ax.get_ylim())
    ax.set_xlabel(style.plain(scale))
    others = [f"{style.plain(o)} of {middle[o]:.2g}" for o in law.scales_with if o != scale]
    ax.set_ylabel(f"best {style.plain(name)}" + (f" at {', '.join(others)}" if others else ""))
    return style.finish(ax)
