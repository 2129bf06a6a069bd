"""Pieces of a self-contained HTML page: sections, tables, numbers. What these take is escaped."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def section(heading: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind!r}' if kind else ''}>{html.escape(text)}</p>\n"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are formatted and escaped; columns of numbers are set to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(_NUMERIC.match(row[i]) or row[i] in ("", "–") for row in cells)
        for i in range(len(header))
    ]

    def line(tag: str, values: Sequence[str]) -> str:
        kinds = (" class='number'" if is_number else "" for is_number in numeric)
        return "".join(
            f"<{tag}{kind}>{html.escape(value)}</{tag}>"
            for kind, value in zip(kinds, values, strict=True)
        )

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in cells)
    return (
        f'<div class="table"><table><thead><tr>{line("th", header)}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


_NUMERIC = re.compile(r"^−?\d")


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (bool, np.bool_, str)):
        return str(value)
    return number(value)


def number(value: float) -> str:
    """Four significant digits, thousands apart, powers of ten for what is very small or large."""
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace("-", "−")
    value = float(value)
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    size = abs(value)
    if size != 0 and not 1e-3 <= size < 1e7:
        text = f"{value:.3g}"
    elif size >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def with_unit(value: float, unit: str) -> str:
    return f"{number(value)} {unit}".strip()


def cost_text(value: float, unit: str) -> str:
    """Such as ``5,400 s (1.5 h)``: long times in seconds are hard to read."""
    text = with_unit(value, unit)
    if unit != "s" or value < 120:
        return text
    if value < 7200:
        return f"{text} ({value / 60:.3g} min)"
    return f"{text} ({value / 3600:.3g} h)" if value < 172800 else f"{text} ({value / 86400:.3g} d)"


DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #5c6166; --page: #ffffff;
  --line: #d9dcdf; --held: #00744f; --missed: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e8; --soft: #a3a8ad; --page: #17191b;
  --line: #3a3e42; --held: #4fc79a; --missed: #f09a55; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto 4rem; padding: 0 1rem; }
h1 { font-size: 1.8rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.5rem; overflow-wrap: anywhere; }
p { margin: 0.5rem 0; max-width: 46rem; }
.facts { color: var(--soft); }
.verdict { font-weight: 600; padding: 0.5rem 0.8rem; border-left: 4px solid var(--soft); }
.held { border-color: var(--held); color: var(--held); }
.missed { border-color: var(--missed); color: var(--missed); }
.equation { font-family: Georgia, serif; font-size: 1.2rem; margin: 0.8rem 0; }
.equation span { font: 0.85rem system-ui, sans-serif; color: var(--soft); margin-left: 1rem; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px;
  margin: 0.5rem 0; }
.panels { display: grid; gap: 0.5rem;
  grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.pair { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.panels img { margin: 0; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td:last-child:not(.number) { min-width: 14rem; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
summary { font-size: 1.25rem; font-weight: 600; margin-top: 2.5rem; cursor: pointer; }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  img, tr, p { break-inside: avoid; }
  h2, p { break-after: avoid; } .table { overflow: visible; }
  table { font-size: 7px; } td:last-child:not(.number) { min-width: 8rem; } }
"""
