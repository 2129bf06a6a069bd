"""A sweep's report: figures as PNG files, and one HTML file that holds all of it.

Whatever users named (studies, parameters, categories) or machines wrote (reasons of failures) is
escaped where it enters the page: in :func:`_table`, :func:`_figure` and :func:`_paragraph`.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.study import Study

from analysis import plots
from analysis.hyperparameters import Curve, FrontModel, hyperparameter_curves
from analysis.power_laws import ComputeLaw
from analysis.trials import trials_frame
from carbs.space import ChoiceSpace, FloatArray, MixtureSpace, Param
from carbs.study import flatten

_MOST_REASONS = 20
_CHECK_IS_APART = (
    " The check run's prediction also rests on the trials off the front, so it need not lie on "
    "the line."
)


def write_report(
    folder: Path,
    study: Study,
    front: FrontModel,
    law: ComputeLaw | None,
    check: Mapping[str, Any] | None = None,
    *,
    cost_unit: str = "s",
    output_unit: str = "",
) -> Path:
    """Write ``report.html``, which needs no other file, and its figures into ``figures``.

    Args:
        folder: made where it does not exist.
        study: whose trials are shown.
        front: fitted to the study's observations.
        law: fitted to the Pareto front; None where that could not be done. Of an output to be
            maximised it says nothing and is left out.
        check: prediction of the check run and, once it has run, its measurement: ``cost_factor``,
            ``level``, ``params``, ``predicted_output`` and ``predicted_cost`` with their
            ``_interval``; maybe ``warnings``; then ``measured_output``, ``measured_cost``,
            ``output_inside`` and ``cost_inside``, or ``failure``, why it could not be trained.
        cost_unit: of the study's costs.
        output_unit: of its outputs, for the axes; empty for none.

    Returns:
        The path of ``report.html``.
    """
    page = _Page(folder, study, front, law, check, cost_unit, output_unit)
    path = folder / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page.html(), encoding="utf-8")
    temporary.replace(path)
    return path


def category_shares(front: FrontModel, param: Param) -> dict[str, FloatArray]:
    """How many of the model's draws choose each category at each cost: ``(m,)``, by category."""
    assert isinstance(param.space, ChoiceSpace)
    chosen = np.argmax(front.optima[:, :, front.space.slices[param.name]], axis=2)
    return {
        str(choice): np.asarray((chosen == i).mean(axis=0))
        for i, choice in enumerate(param.space.choices)
    }


class _Page:
    """The sections of the report, in their order."""

    def __init__(
        self,
        folder: Path,
        study: Study,
        front: FrontModel,
        law: ComputeLaw | None,
        check: Mapping[str, Any] | None,
        cost_unit: str,
        output_unit: str,
    ) -> None:
        self.folder = folder / "figures"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study, self.front, self.check = study, front, check
        self.law = law if front.direction == "minimize" else None
        self.unit, self.output_unit = cost_unit, output_unit
        self.trials = trials_frame(study, front.space)
        self.done = plots.finished(self.trials)
        self.failed = plots.failed(self.trials)
        self.on_front = plots.front_trials(self.trials, front.direction)
        self.curves = {curve.name: curve for curve in hyperparameter_curves(front)}
        self.best = "lowest" if front.direction == "minimize" else "highest"

    def html(self) -> str:
        sections = [
            self._title(),
            self._check_run(),
            self._front(),
            self._front_table(),
            self._hyperparameters(),
            *(
                self._mix(param)
                for param in self.front.space.params
                if isinstance(param.space, MixtureSpace)
            ),
            self._predictions(),
            self._convergence(),
            self._failures(),
            self._all_trials(),
        ]
        title = html.escape(f"Sweep {self.study.study_name}")
        return _DOCUMENT.format(title=title, style=_STYLE, body="\n".join(filter(None, sections)))

    def _title(self) -> str:
        counts = self.trials["state"].value_counts()
        dates = [
            date
            for trial in self.study.get_trials(deepcopy=False)
            if (date := trial.datetime_complete or trial.datetime_start) is not None
        ]
        spent = float(self.trials["cost"].sum())
        facts = [
            f"newest trial {max(dates):%Y-%m-%d %H:%M}" if dates else "",
            f"{len(self.done)} trials finished",
            f"{len(self.failed)} failed",
            f"{counts['running']} running" if counts.get("running") else "",
            f"{counts['forgotten']} lost to a machine and not counted"
            if counts.get("forgotten")
            else "",
            f"total cost {_cost(spent, self.unit)}",
        ]
        name = html.escape(f"Sweep {self.study.study_name}")
        return f"<h1>{name}</h1>\n" + _paragraph(" · ".join(filter(None, facts)), "facts")

    def _check_run(self) -> str:
        if self.check is None:
            return ""
        check = self.check
        level = f"{check['level']:.0%}"
        factor = _number(check["cost_factor"])
        intro = (
            f"The configuration was read off the sweep's curves at {factor} times the cost of its "
            f"dearest run, and its output and cost were predicted with {level} intervals before "
            "it was trained. "
        )
        rows, verdicts = [], []
        for quantity in ("output", "cost"):
            unit = self.unit if quantity == "cost" else ""
            measured = check.get(f"measured_{quantity}")
            inside = check.get(f"{quantity}_inside")
            low, high = check[f"predicted_{quantity}_interval"]
            rows.append(
                [
                    quantity,
                    _with_unit(check[f"predicted_{quantity}"], unit),
                    f"{_number(low)} to {_with_unit(high, unit)}",
                    "not yet" if measured is None else _with_unit(measured, unit),
                    "" if inside is None else "inside" if inside else "outside",
                ]
            )
            verdicts.append(inside)
        if check.get("failure") is not None:
            verdict, kind = f"The check run failed: {check['failure']}", "missed"
        elif None in verdicts:
            verdict, kind = "Predicted; not measured yet.", "open"
        elif all(verdicts):
            verdict, kind = f"Output and cost came out inside their {level} intervals.", "held"
        else:
            missed = [q for q, v in zip(("output", "cost"), verdicts, strict=True) if not v]
            verdict = f"The {missed[0]} missed its {level} interval; the other held."
            if len(missed) == 2:
                verdict = f"Output and cost both missed their {level} intervals."
            kind = "missed"
        header = ["", "predicted", f"{level} interval", "measured", "verdict"]
        digits = self._share_digits()
        params = {
            name: round(value, digits[name]) if name in digits else value
            for name, value in flatten(check["params"]).items()
        }
        return _section(
            "Check run",
            _paragraph(verdict, f"verdict {kind}"),
            _paragraph(intro),
            _table(header, rows),
            _paragraph("Its configuration:"),
            _table(list(params), [list(params.values())]),
            *(_paragraph(f"Note: {warning}.") for warning in check.get("warnings", ())),
        )

    def _front(self) -> str:
        axes = plots.plot_front(
            self.trials,
            self.law,
            self.check,
            direction=self.front.direction,
            cost_unit=self.unit,
            output_unit=self.output_unit,
        )
        text = (
            "Each circle is one finished trial: what it cost, and the output that it reached. The "
            "black steps are the Pareto front, the trials that no other beats in both. "
        )
        parts = [_paragraph(text + self._law_text()), self._equation()]
        parts.append(self._figure("front", axes, "Output against cost, with the Pareto front"))
        if self.law is not None:
            parts.append(self._coefficients())
        return _section("The front and its law", *parts)

    def _law_text(self) -> str:
        if self.law is None:
            return (
                "No law is drawn: it describes an output that falls with cost, and needs at least "
                "four trials on the front."
            )
        level = 0.9 if self.check is None else self.check["level"]
        return (
            f"The blue line is the compute law fitted to that front ({self.law.fitted_to}), dashed "
            f"beyond the front's dearest trial; a new run on the front is expected inside its "
            f"shaded band in {level:.0%} of cases." + _CHECK_IS_APART * (self.check is not None)
        )

    def _equation(self) -> str:
        if self.law is None:
            return ""
        E, k, g = (_number(number) for number in (self.law.E, self.law.k, self.law.g))
        unit = html.escape(self.unit)
        return (
            f'<p class="equation"><i>L</i>(<i>C</i>) = {E} + {k} · <i>C</i><sup>−{g}</sup>'
            f"<span>with the cost <i>C</i> in {unit}</span></p>"
        )

    def _coefficients(self) -> str:
        assert self.law is not None
        summary = self.law.summary()
        meaning = {
            "E": "irreducible output, which no cost gets below",
            "k": f"reducible output of a run that costs 1 {self.unit}",
            "g": "exponent: how fast the reducible part falls with cost",
        }
        rows = [
            [name, estimate, f"{_number(low)} to {_number(high)}", meaning[name]]
            for name, estimate, low, high in summary.itertuples(index=False, name=None)
        ]
        return _table(["coefficient", "estimate", "90% interval", "meaning"], rows)

    def _front_table(self) -> str:
        text = (
            f"Each of these reached the {self.best} output of all trials that cost no more than "
            "it did. The cheapest comes first."
        )
        names = self._parameter_names()
        columns = ["number", "cost", "output", *names]
        rows = self.on_front[columns].round(self._share_digits()).itertuples(index=False)
        header = ["trial", f"cost ({self.unit})", "output", *names]
        return _section("Pareto-front configurations", _paragraph(text), _table(header, rows))

    def _hyperparameters(self) -> str:
        level = f"{self.front.level:.0%}"
        text = (
            "The blue line is the model's best value at each cost, and the band holds it with "
            f"{level} probability; black dots are the trials on the front, which carry the noise "
            "of single runs. Where a title gives a power of cost, the brackets hold its "
            f"{level} interval: one that includes 0 says that the optimum may not move at all."
        )
        observations = self._observations_on_front()
        panels = []
        for i, param in enumerate(self.front.space.params):
            if isinstance(param.space, ChoiceSpace):
                shares = category_shares(self.front, param)
                costs = 10**self.front.levels
                axes = plots.plot_choice(param.name, costs, shares, cost_unit=self.unit)
                panels.append(self._panel(i, param.name, axes))
                continue
            for name in self._curve_names(param):
                axes = plots.plot_curve(
                    self.curves[name],
                    observations,
                    is_share=isinstance(param.space, MixtureSpace),
                    cost_unit=self.unit,
                )
                panels.append(self._panel(i, name, axes))
        grid = '<div class="panels">' + "\n".join(panels) + "</div>"
        return _section("Hyperparameters over cost", _paragraph(text), grid)

    def _panel(self, i: int, name: str, axes: Axes) -> str:
        return self._figure(f"curve-{i:02d}-{name}", axes, f"Best {name} over cost")

    def _mix(self, param: Param) -> str:
        curves = [self.curves[name] for name in self._curve_names(param)]
        axes = plots.plot_mix(curves, cost_unit=self.unit)
        text = f"The lines are the best share of each component of {param.name} at each cost"
        if len(curves) <= plots.MOST_BANDS:
            text += (
                f", the bands their {self.front.level:.0%} intervals. Bands that are wide or "
                "overlap belong to components between which the sweep cannot yet tell."
            )
        else:
            text += "; each component's band is in its panel above."
        text += " Medians need not sum to one."
        costs = curves[0].costs
        columns = [0, len(costs) // 2, len(costs) - 1]
        header = ["component", *(f"at {_cost(float(costs[i]), self.unit)}" for i in columns)]
        rows = [
            [curve.name.removeprefix(f"{param.name}."), *(_share(curve, i) for i in columns)]
            for curve in curves
        ]
        return _section(
            f"Best {param.name}",
            _paragraph(text),
            self._figure(f"mix-{param.name}", axes, f"Best {param.name} over cost"),
            _paragraph("Median, and in brackets the interval:"),
            _table(header, rows),
        )

    def _predictions(self) -> str:
        quantities: tuple[plots.Quantity, ...] = ("output", "cost")
        told = {q: plots.predicted_trials(self.trials, q) for q in quantities}
        if not len(told["output"]) or not len(told["cost"]):
            return _section(
                "Predictions against measurements",
                _paragraph("No finished trial was predicted: the sweep was too short for a model."),
            )
        hits = [
            f"{int(frame['inside'].sum())} of {len(frame)} for the {quantity}"
            for quantity, frame in told.items()
        ]
        text = (
            "When a trial was suggested, its output and cost were predicted from the trials "
            "before it. Bars are the 90% intervals that were noted then: filled circles if they "
            "reach the dashed line, where the measurement equals the prediction, open squares if "
            f"they miss it. They held the measurement in {' and '.join(hits)}; nine in ten is "
            "what they promise."
        )
        figures = [
            self._figure(
                f"predictions-{quantity}",
                plots.plot_predictions(
                    self.trials,
                    quantity,
                    direction=self.front.direction,
                    cost_unit=self.unit,
                    output_unit=self.output_unit,
                ),
                f"Predicted against measured {quantity}",
            )
            for quantity in quantities
        ]
        return _section(
            "Predictions against measurements",
            _paragraph(text),
            '<div class="panels pair">' + "\n".join(figures) + "</div>",
        )

    def _convergence(self) -> str:
        axes = plots.plot_convergence(
            self.trials,
            direction=self.front.direction,
            cost_unit=self.unit,
            output_unit=self.output_unit,
        )
        text = (
            f"The line is the {self.best} output found so far, over what all trials up to then "
            "had cost, failures included. A long flat end says that more trials of the same cost "
            "would bring little; dearer ones still may."
        )
        return _section(
            "Convergence",
            _paragraph(text),
            self._figure("convergence", axes, "Best output so far over total cost"),
        )

    def _failures(self) -> str:
        if not len(self.failed):
            return _section("Failures", _paragraph("No trial failed."))
        reasons = self.failed.assign(
            reason=[
                f"output is {output}" if reason is None or reason != reason else str(reason)
                for reason, output in zip(self.failed["reason"], self.failed["output"], strict=True)
            ]
        ).groupby("reason")
        counts = reasons.agg(n=("number", "size"), cost=("cost", "sum"))
        counts = counts.sort_values("n", ascending=False, kind="stable")
        rows = [[row.n, row.cost, row.Index] for row in counts.head(_MOST_REASONS).itertuples()]
        text = (
            f"{len(self.failed)} of {len(self.failed) + len(self.done)} trials could not be "
            "trained. The search stays away from configurations like theirs."
        )
        more = len(counts) - len(rows)
        return _section(
            "Failures",
            _paragraph(text),
            _table(["trials", f"cost ({self.unit})", "reason"], rows),
            _paragraph(f"{more} rarer reasons are in the table of all trials.") if more > 0 else "",
        )

    def _all_trials(self) -> str:
        header = [
            *("trial", "state", "output", f"cost ({self.unit})"),
            *("predicted output", f"predicted cost ({self.unit})"),
            *self._parameter_names(),
            "reason",
        ]
        rows = [
            [
                *(row["number"], row["state"], row["output"], row["cost"]),
                *(_predicted(row, quantity) for quantity in ("output", "cost")),
                *(row[name] for name in self._parameter_names()),
                row["reason"],
            ]
            for _, row in self.trials.round(self._share_digits()).astype(object).iterrows()
        ]
        count = len(self.trials)
        return (
            f"<section><details><summary>All {count} trials</summary>\n"
            + _paragraph("Predictions have their 90% interval in brackets.")
            + _table(header, rows)
            + "</details></section>"
        )

    def _parameter_names(self) -> list[str]:
        return [name for param in self.front.space.params for name in self._flat_names(param)]

    def _flat_names(self, param: Param) -> list[str]:
        if isinstance(param.space, MixtureSpace):
            return [f"{param.name}.{component}" for component in param.space.components]
        return [param.name]

    def _share_digits(self) -> dict[str, int]:
        """Shares of a mix are read off to a hundredth of a percent."""
        mixes = [
            param for param in self.front.space.params if isinstance(param.space, MixtureSpace)
        ]
        return {name: 4 for param in mixes for name in self._flat_names(param)}

    def _curve_names(self, param: Param) -> list[str]:
        return [name for name in self._flat_names(param) if name in self.curves]

    def _observations_on_front(self) -> list[Any]:
        ids = {str(number) for number in self.on_front["number"]}
        return [o for o in self.front.observations if o.id in ids]

    def _figure(self, name: str, axes: Axes, alternative: str) -> str:
        """Save a figure; the ``<img>`` that holds it."""
        figure = axes.figure
        assert isinstance(figure, Figure)
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # Names may have letters that the font lacks: they are drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        png = buffer.getvalue()
        (self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:80]}.png").write_bytes(png)
        width = round(96 * figure.get_size_inches()[0])
        return (
            f'<img alt="{html.escape(alternative)}" width="{width}" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        )


def _section(heading: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{html.escape(heading)}</h2>\n{body}</section>"


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind!r}' if kind else ''}>{html.escape(text)}</p>\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
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
    return _number(value)


def _number(value: float) -> str:
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


def _with_unit(value: float, unit: str) -> str:
    return f"{_number(value)} {unit}".strip()


def _cost(value: float, unit: str) -> str:
    """Such as ``5,400 s (1.5 h)``: long times in seconds are hard to read."""
    text = _with_unit(value, unit)
    if unit != "s" or value < 120:
        return text
    if value < 7200:
        return f"{text} ({value / 60:.3g} min)"
    return f"{text} ({value / 3600:.3g} h)" if value < 172800 else f"{text} ({value / 86400:.3g} d)"


def _share(curve: Curve, i: int) -> str:
    return f"{curve.median[i]:.0%} ({curve.low[i]:.0%} to {curve.high[i]:.0%})"


def _predicted(row: pd.Series, quantity: str) -> str | None:
    middle = row[f"predicted_{quantity}"]
    if pd.isna(middle):
        return None
    low, high = row[f"predicted_{quantity}_low"], row[f"predicted_{quantity}_high"]
    return f"{_number(middle)} ({_number(low)} to {_number(high)})"


_DOCUMENT = """<!DOCTYPE html>
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

_STYLE = """
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
