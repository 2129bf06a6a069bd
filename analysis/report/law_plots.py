"""Figures of laws: what they say of other runs than a sweep's, and how far that held.

As those in :mod:`carbs.analysis.report.plots`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.special import ndtri

from carbs.analysis.front.expectation import SweepBacktest
from carbs.analysis.laws.multiplier import Multiplier
from carbs.analysis.laws.power import LossLaw
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
    tests: Sequence[SweepBacktest], *, output_unit: str = "", ax: Axes | None = None
) -> Axes:
    """Dear runs as predicted from cheap ones, in percent off, over how much dearer they were."""
    ax = style.axes(ax, style.WIDE)
    ax.axhline(0, color=style.INK, lw=1.0, ls="--")
    for i, test in enumerate(tests):
        line = style.numbered(i)
        off = test.predicted - test.measured
        ax.errorbar(
            test.factors,
            off,
            yerr=style.error_bars(off, test.low - test.measured, test.high - test.measured),
            fmt=line["marker"],
            color=line["color"],
            mfc="white",
            ms=5,
            lw=0.9,
        )
    ax.set_xscale("log")
    style.ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("cost over that of the dearest run fitted to")
    ax.set_ylabel("predicted minus measured" + (f" ({output_unit})" if output_unit else ""))
    handles = [
        Line2D(
            [],
            [],
            color=style.numbered(i)["color"],
            marker=style.numbered(i)["marker"],
            ls="",
            mfc="white",
        )
        for i in range(len(tests))
    ]
    labels = [f"fitted up to {test.share:.0%} of the cost" for test in tests]
    ax.legend(handles, labels, loc="best")
    return style.finish(ax)


def plot_multiplier(
    multiplier: Multiplier, *, compute_label: str = "compute (FLOPs)", ax: Axes | None = None
) -> Axes:
    """Compute that the second recipe needs, in multiples of the first's, over scale."""
    ax = style.axes(ax, style.WIDE)
    ends = multiplier.median[np.isfinite(multiplier.median)]
    top = 3 * float(ends.max()) if len(ends) else 10.0
    ax.fill_between(
        multiplier.compute,
        multiplier.low,
        np.minimum(multiplier.high, top),
        color=style.BLUE,
        **style.BAND,
    )
    ax.plot(multiplier.compute, multiplier.median, color=style.BLUE, lw=1.8)
    ax.axhline(1, color=style.INK, lw=1.0, ls="--")
    for crossing in multiplier.crossings:
        ax.axvline(crossing, color=style.RED, lw=1.2, ls=":")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(multiplier.compute.min(), multiplier.compute.max())
    ax.set_ylim(top=top)
    style.ticks(ax.xaxis, *ax.get_xlim())
    style.ticks(ax.yaxis, *ax.get_ylim())
    ax.set_xlabel(compute_label)
    ax.set_ylabel("compute of the second over the first")
    return style.finish(ax)
