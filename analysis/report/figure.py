"""A figure in the page and in a file; what is wide is drawn once more for a phone."""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from carbs.analysis.report import style

# Inches: what is wider would have letters on a phone that nobody can read.
_PHONE = 4.2


def figure_html(folder: Path, name: str, axes: Axes, alternative: str) -> str:
    """Save a figure as ``name.png`` in the folder; the ``<img>`` that holds it."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    width, height = (float(inches) for inches in figure.get_size_inches())
    png = _png(figure)
    (folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:80]}.png").write_bytes(png)
    image = (
        f'<img alt="{html.escape(alternative)}" width="{round(96 * width)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    )
    if width <= _PHONE:
        return image
    figure.set_size_inches(_PHONE, min(height, _PHONE))
    _put_legend_below(figure, axes)
    narrow = base64.b64encode(_png(figure)).decode()
    return (
        '<picture><source media="(max-width: 600px)" '
        f'srcset="data:image/png;base64,{narrow}">{image}</picture>'
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names may have letters that the font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _put_legend_below(figure: Figure, axes: Axes) -> None:
    """Where a legend stands beside the plot, move it below the plot."""
    legend = axes.get_legend()
    if legend is None or legend.get_bbox_to_anchor().x0 < axes.bbox.x1:
        return
    labels = [text.get_text() for text in legend.get_texts()]
    figure.set_size_inches(_PHONE, float(figure.get_size_inches()[1]) + 0.2 * len(labels))
    handles = [handle for handle in legend.legend_handles if handle is not None]
    axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.0, -0.16))
    style.finish(axes)
