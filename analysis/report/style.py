"""The one style of our figures: colours, lines, markers, axes, legends and numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from carbs.records import Direction
from carbs.spaces import FloatArray

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, RED, GREEN, ORANGE, PURPLE, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
)
INK, GREY = "#222222", "#8a8a8a"
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK, GREY)
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
FRONT, WIDE, SQUARE, PANEL = (9.6, 4.4), (7.2, 4.0), (3.9, 3.9), (3.6, 2.9)
BAND: dict[str, Any] = {"alpha": 0.16, "linewidth": 0}
# Runs, and the steps of their front.
RUNS: dict[str, Any] = {"color": GREY, "marker": "o", "mfc": "none", "ms": 4, "ls": "none"}
STEPS: dict[str, Any] = {
    "color": INK,
    "drawstyle": "steps-post",
    "marker": "o",
    "ms": 4.5,
    "lw": 1.2,
}


class ShownFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot was ever imported there."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


class ShownAxes(Axes):
    """Axes that are shown, where a cell ends with them, by the figure that they are on."""

    def _repr_png_(self) -> bytes:
        figure = self.get_figure(root=True)
        assert isinstance(figure, ShownFigure)
        return figure._repr_png_()


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure, in the one style of this project."""
    if ax is None:
        figure = ShownFigure(figsize=size, dpi=150, layout="constrained")
        ax = figure.add_subplot(axes_class=ShownAxes)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(colors=INK, labelsize=9, which="both")
    ax.grid(color="#ececec", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def finish(ax: Axes) -> Axes:
    ax.xaxis.label.set_fontsize(9.5)
    ax.yaxis.label.set_fontsize(9.5)
    ax.title.set_fontsize(10)
    legend = ax.get_legend()
    if legend is not None:
        legend.get_frame().set(alpha=0.85, linewidth=0)
        for text in legend.get_texts():
            text.set_fontsize(8.5)
    return ax


def numbered(i: int) -> dict[str, Any]:
    """The first 32 differ without their colours."""
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[(i + i // len(MARKERS)) % len(MARKERS)],
    }


def legend(ax: Axes, names: Sequence[str], longest: int = 36) -> None:
    """Of lines drawn in the order of the names, beside the plot."""
    handles = [Line2D([], [], **numbered(i)) for i in range(len(names))]
    labels = [plain(shortened(name, longest)) for name in names]
    ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))


def cost_axis(ax: Axes, cost_unit: str) -> None:
    ax.set_xscale("log")
    ticks(ax.xaxis, *ax.get_xlim())
    ax.set_xlabel("cost of one run" + (f" ({cost_unit})" if cost_unit else ""))


def output_label(direction: Direction, output_unit: str) -> str:
    better = "lower is better" if direction == "minimize" else "higher is better"
    return f"output ({output_unit or better})"


def budgets(ax: Axes, expected: pd.DataFrame, level: float) -> None:
    """What the best configuration for each cost is expected to measure, with its interval.

    Args:
        expected: as :meth:`carbs.analysis.Plan.table` has it.
        level: of the interval.
    """
    ax.plot(
        expected["cost"],
        expected["output"],
        "--",
        color=BLUE,
        lw=1.8,
        label=f"best for a budget, and {level:.0%} of runs",
    )
    ax.fill_between(expected["cost"], expected["low"], expected["high"], color=BLUE, **BAND)


def error_bars(middle: Any, low: Any, high: Any) -> FloatArray:
    """Lengths downwards and upwards, as matplotlib wants them: shape ``(2, n)``."""
    middle, low, high = (np.atleast_1d(np.asarray(v, dtype=float)) for v in (middle, low, high))
    return np.asarray(np.maximum(np.stack([middle - low, high - middle]), 0.0))


def padded(values: FloatArray, is_log: bool) -> tuple[float, float]:
    if is_log:
        low, high = np.log(values.min()), np.log(values.max())
    else:
        low, high = values.min(), values.max()
    margin = 0.06 * (high - low) or 0.1
    low, high = low - margin, high + margin
    return (float(np.exp(low)), float(np.exp(high))) if is_log else (float(low), float(high))


def ticks(axis: Axis, low: float, high: float) -> None:
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


def signed(number: float) -> str:
    text = f"{number:.2f}".replace("-", "−")
    return "0.00" if text == "−0.00" else text


def shortened(name: str, longest: int = 36) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def plain(text: str) -> str:
    """A user's name, of which matplotlib takes nothing for mathematics."""
    return text.replace("$", r"\$")
