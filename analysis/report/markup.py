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


def table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], *, is_sortable: bool = False
) -> str:
    """Cells are formatted and escaped; columns of numbers are set to the right.

    Args:
        header: of the columns; a click on one of a sortable table sorts by it.
        rows: one value for each column.
        is_sortable: whether numbers stand in the page as they are, too.
    """
    values = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in values]
    numeric = [
        all(_NUMERIC.match(row[i]) or row[i] in ("", "–") for row in cells)
        for i in range(len(header))
    ]

    kinds = [" class='number'" if is_number else "" for is_number in numeric]

    def head(name: str) -> str:
        return f"<button type='button'>{html.escape(name)}</button>" if is_sortable else _text(name)

    def raw(value: Any) -> str:
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        return f" data-v='{float(value)!r}'" if is_sortable and is_number else ""

    names = "".join(f"<th{kind}>{head(n)}</th>" for kind, n in zip(kinds, header, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{kind}{raw(value)}>{_text(cell)}</td>"
            for kind, value, cell in zip(kinds, row, texts, strict=True)
        )
        + "</tr>"
        for row, texts in zip(values, cells, strict=True)
    )
    kind = " class='sortable'" if is_sortable else ""
    return (
        f'<div class="table"><table{kind}><thead><tr>{names}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def card(heading: str, *parts: str) -> str:
    """One of several boxes, side by side where there is room."""
    return f"<div class='card'><h3>{_text(heading)}</h3>\n" + "".join(parts) + "</div>"


def _text(text: str) -> str:
    return html.escape(text)


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
<script>{script}</script>
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
.cards { display: grid; gap: 0 1.5rem; margin-top: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
.card { border-top: 3px solid var(--line); padding-top: 0.6rem; }
.card .big { font-size: 1.5rem; line-height: 1.3; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; color: var(--soft); font-weight: 600; margin: 0 0 0.3rem; }
ul { margin: 0.3rem 0; padding-left: 1.1rem; } li { margin: 0.25rem 0; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 0.1rem 0.8rem; margin: 0.5rem 0;
  font-size: 0.9rem; } dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; }
.pair { grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.panels img { margin: 0; }
.table { overflow-x: auto; margin: 0.8rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem 0.25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td:last-child:not(.number) { min-width: 14rem; }
th { color: var(--soft); font-weight: 600; }
.sortable td:first-child, .sortable th:first-child { position: sticky; left: 0;
  background: var(--page); }
.sortable td { white-space: nowrap; } .sortable td:last-child { white-space: normal; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0.4rem 0;
  cursor: pointer; white-space: nowrap; }
th button::after { content: " ↕"; opacity: 0.4; }
th[aria-sort="ascending"] button::after { content: " ↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: " ↓"; opacity: 1; }
.number { text-align: right; white-space: nowrap; }
summary { font-size: 1.25rem; font-weight: 600; margin-top: 2.5rem; cursor: pointer; }
@media (max-width: 600px) { body { margin-top: 1rem; } h1 { font-size: 1.5rem; }
  .equation span { display: block; margin-left: 0; } }
.printed { display: none; }
@media print { .printed { display: block; } #interactive-front { display: none; }
  body { margin: 0; max-width: none; font-size: 11px; }
  img, tr, p { break-inside: avoid; }
  h2, p { break-after: avoid; } .table { overflow: visible; }
  table { font-size: 7px; } td:last-child:not(.number) { min-width: 8rem; } }
"""

# A click on a column's name sorts by it, another one the other way round; what is missing is last.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, i) => {
    const cell = row.cells[i];
    if ("v" in cell.dataset) return Number(cell.dataset.v);
    const text = cell.textContent, number = parseFloat(text.replace("−", "-").replace(/,/g, ""));
    return text === "–" || text === "" ? NaN : isNaN(number) ? text : number;
  };
  const compare = (a, b, sign) => {
    const isMissing = [a, b].map(Number.isNaN);
    if (isMissing[0] || isMissing[1]) return isMissing[0] - isMissing[1];
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b));
  };
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].sort((a, b) => compare(value(a, i), value(b, i), sign));
    body.append(...rows);
  }));
}
"""
