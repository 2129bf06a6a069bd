"""A plan as a figure. As those in :mod:`carbs.analysis.report.plots`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from carbs.analysis.planning.plan import Plan
from carbs.analysis.report import style
from carbs.pareto import pareto_front

_N_BUDGETS = 7


def plot_plan(
    plan: Plan, *, cost_unit: str = "", output_unit: str = "", ax: Axes | None = None
) -> Axes:
    """Runs, front, what budgets up to the plan's would buy, check runs, and the run planned.

    Args:
        plan: with its front.
        cost_unit, output_unit: for the axes.
        ax: to draw on.

    Raises:
        ValueError: the plan has no front.
    """
    if plan.expectation is None:
        raise ValueError("this plan does not know its sweep: make it with plan()")
    front = plan.expectation.front
    sign = 1.0 if front.direction == "minimize" else -1.0
    ax = style.axes(ax, style.FRONT)
    costs = np.array([run.cost for run in front.observations])
    outputs = np.array([run.output for run in front.observations])
    ax.plot(costs, outputs, label="run of the sweep", **style.RUNS)
    best = pareto_front(costs, sign * outputs)
    ax.plot(costs[best], outputs[best], label="Pareto front", **style.STEPS)
    low, high = sorted((float(np.quantile(costs, 0.5)), plan.target_cost))
    budgets = plan.table(np.geomspace(low, high, _N_BUDGETS).tolist())
    style.budgets(ax, budgets, plan.level)
    for alternative, marker in zip(plan.alternatives, ("v", "^", "D"), strict=False):
        ax.plot(
            plan.target_cost,
            alternative.output,
            marker,
            color=style.GREEN,
            mfc="none",
            ms=9,
            ls="none",
            zorder=6,
            label=f"as {alternative.way} would have it",
        )
    for i, rung in enumerate(plan.ladder):
        ax.errorbar(
            rung.cost,
            rung.output,
            yerr=style.error_bars(rung.output, *rung.output_interval),
            fmt="s",
            color=style.ORANGE,
            mfc="white",
            ms=5,
            lw=1.2,
            capsize=3,
            label="check run" if i == 0 else None,
        )
    ax.errorbar(
        plan.cost,
        plan.output,
        xerr=style.error_bars(plan.cost, *plan.cost_interval),
        yerr=style.error_bars(plan.output, *plan.output_interval),
        fmt="s",
        color=style.RED,
        ms=5,
        lw=1.6,
        capsize=4,
        zorder=5,
        label=f"the plan, {plan.level:.0%} intervals",
    )
    _cut_off(ax, outputs, budgets[["low", "high"]].to_numpy(), sign)
    style.cost_axis(ax, cost_unit)
    ax.set_ylabel(style.output_label(front.direction, output_unit))
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return style.finish(ax)


def _cut_off(ax: Axes, outputs: np.ndarray, bands: np.ndarray, sign: float) -> None:
    """The worst quarter of the runs may lie beyond the axis: the plan is what is looked at."""
    losses = sign * np.concatenate([outputs, bands.ravel()])
    worst = max(float(np.quantile(sign * outputs, 0.75)), float((sign * bands).max()))
    margin = 0.05 * (worst - losses.min())
    limits = sign * (losses.min() - margin), sign * (worst + margin)
    ax.set_ylim(min(limits), max(limits))
