"""The front for a pointer: over each trial it shows the parameters. Needs the extra ``plotly``."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from carbs.analysis.laws.power import ComputeLaw
from carbs.analysis.report import style
from carbs.analysis.report.plots import edge_of, finished, front_trials
from carbs.records import Direction
from carbs.spaces import FloatArray

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# What a frame of trials has besides their parameters.
_NOT_SEARCHED = {"number", "state", "output", "cost", "reason", "spent", "speed"}
_LONGEST = 40


def interactive_front(
    trials: pd.DataFrame,
    law: ComputeLaw | None = None,
    *,
    expected: pd.DataFrame | None = None,
    names: Sequence[str] | None = None,
    direction: Direction = "minimize",
    cost_unit: str = "s",
    output_unit: str = "",
    level: float = 0.9,
) -> Figure:
    """Cost against output of every trial, with the front and its law; a notebook shows it.

    Args:
        trials: as of :func:`carbs.analysis.trials_frame` or ``SearchResult.to_frame``.
        law: fitted to the front; None draws none.
        expected: of dearer runs, as :meth:`carbs.analysis.Plan.table` has it.
        names: of the parameters to tell; by default all that the frame has.
        direction: whether a low or a high output is good.
        cost_unit: for the axis.
        output_unit: likewise; empty for none.
        level: of the bands.

    Raises:
        ImportError: plotly is not installed.
    """
    go = _plotly()
    done, front = finished(trials), front_trials(trials, direction)
    if names is None:
        names = [
            name
            for name in map(str, trials)
            if name not in _NOT_SEARCHED and not name.startswith(("predicted_", "metrics."))
        ]
    figure = go.Figure()
    if law is not None:
        costs = np.geomspace(law.compute.min(), law.compute.max(), 100)
        low, high = law.interval(costs, level)
        _add_band(figure, costs, low, high, f"band, {level:.0%} of new runs")
        _add_line(figure, costs, law.predict(costs), "compute law", "solid")
    if expected is not None:
        costs, middle, low, high = expected[["cost", "output", "low", "high"]].to_numpy(float).T
        _add_band(figure, costs, low, high)
        name = f"best for a budget, and {level:.0%} of runs"
        _add_line(figure, costs, middle, name, "dash")
    is_front = done.index.isin(front.index)
    figure.add_scatter(
        x=front["cost"],
        y=front["output"],
        mode="lines",
        line={"color": style.INK, "width": 1.3, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )
    for some, label, marker in (
        (done[~is_front], "finished trial", {"color": style.GREY, "symbol": "circle-open"}),
        (done[is_front], "Pareto front", {"color": style.INK}),
    ):
        figure.add_scatter(
            x=some["cost"],
            y=some["output"],
            mode="markers",
            marker={"size": 8, **marker},
            name=label,
            text=[_told(row, names, cost_unit) for _, row in some.iterrows()],
            hovertemplate="%{text}<extra></extra>",
        )
    sign = 1.0 if direction == "minimize" else -1.0
    losses = sign * done["output"]
    worst = edge_of(losses) if len(done) else math.inf
    if math.isfinite(worst):
        best = float(losses.min())
        if expected is not None:
            best = min(best, float((sign * expected[["low", "high"]]).to_numpy().min()))
        margin = 0.05 * (worst - best)
        figure.update_yaxes(range=sorted([sign * (best - margin), sign * worst]))
    unit = f" ({html.escape(cost_unit)})" if cost_unit else ""
    figure.update_xaxes(type="log", title=f"cost of one run{unit}", exponentformat="power")
    figure.update_yaxes(title=html.escape(style.output_label(direction, output_unit)))
    figure.update_layout(
        template="plotly_white",
        height=440,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        # Below: above, on a phone, the buttons would cover its first line.
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
        hoverlabel={"align": "left", "bgcolor": "white"},
    )
    return figure


def front_html(figure: Figure) -> str:
    """The figure as a piece of a page, the library included: nothing is fetched."""
    return str(
        figure.to_html(
            full_html=False,
            include_plotlyjs=True,
            include_mathjax=False,
            default_height="440px",
            div_id="interactive-front",
            config={"displaylogo": False, "responsive": True},
        )
    )


def _plotly() -> Any:
    try:
        from plotly import graph_objects
    except ImportError:
        raise ImportError(
            "the interactive front is drawn by plotly: pip install 'carbs-search[plotly]'"
        ) from None
    return graph_objects


def _add_band(
    figure: Figure, costs: FloatArray, low: FloatArray, high: FloatArray, name: str | None = None
) -> None:
    figure.add_scatter(
        x=np.concatenate([costs, costs[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor="rgba(0, 114, 178, 0.16)",
        line={"width": 0},
        hoverinfo="skip",
        name=name,
        showlegend=name is not None,
    )


def _add_line(figure: Figure, costs: FloatArray, outputs: FloatArray, name: str, dash: str) -> None:
    figure.add_scatter(
        x=costs,
        y=outputs,
        mode="lines",
        line={"color": style.BLUE, "width": 2, "dash": dash},
        hoverinfo="skip",
        name=name,
    )


def _told(row: pd.Series, names: Sequence[str], cost_unit: str) -> str:
    """A trial in a few lines; what a user named is no markup."""
    number = "" if pd.isna(row.get("number")) else f" {row['number']:.0f}"
    lines = [f"<b>trial{number}</b>", f"output {row['output']:.5g}"]
    lines.append(f"cost {row['cost']:.4g} {html.escape(cost_unit, quote=False)}".rstrip())
    for name in names:
        value = row[name]
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        said = f"{value:.4g}" if is_number else style.shortened(str(value), _LONGEST)
        lines.append(html.escape(f"{style.shortened(name, _LONGEST)} = {said}", quote=False))
    return "<br>".join(lines)
