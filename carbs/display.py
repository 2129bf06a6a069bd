"""How what the search knows is shown: a line for a person, and a table for a notebook.

Whatever is shown in HTML is escaped: names, choices and reasons are the user's, and may hold
anything.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def shown(value: Any) -> str:
    """A value in a few characters: numbers with four digits, a mixture by its shares."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {float(share):.2f}" for name, share in value.items())
    return str(value)


def with_interval(middle: float | None, interval: tuple[float, float] | None) -> str:
    """A prediction such as ``2.07 [1.95, 2.21]``; empty where there is none."""
    if middle is None:
        return ""
    ends = "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    return f"{middle:.4g}{ends}"


def in_a_line(params: Mapping[str, Any]) -> str:
    """A configuration as ``width=64, mix=(code 0.50, prose 0.50)``."""
    return ", ".join(
        f"{name}=({shown(value)})" if isinstance(value, Mapping) else f"{name}={shown(value)}"
        for name, value in params.items()
    )


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """An HTML table, which looks as the notebook has it."""
    title = f"<caption style='text-align: left'>{_cell(caption)}</caption>" if caption else ""
    lines = "".join(_row("td", [shown(value) for value in row]) for row in rows)
    return f"<table>{title}<thead>{_row('th', header)}</thead><tbody>{lines}</tbody></table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    style = "style='text-align: left'"
    return f"<tr>{''.join(f'<{tag} {style}>{_cell(cell)}</{tag}>' for cell in cells)}</tr>"


def _cell(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
