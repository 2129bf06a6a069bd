"""A sweep's report: figures as PNG files, and one HTML file that holds all of it.

A section is a method of :class:`_Page`; :meth:`_Page.html` has their order.

Whatever users named (studies, parameters, categories) or machines wrote (reasons of failures) is
escaped where it enters the page: in :func:`table`, :func:`_figure` and :func:`paragraph`.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from optuna.study import Study
from scipy.special import ndtri

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.hyperparameters import Curve, hyperparameter_curves
from carbs.analysis.front.model import FrontModel
from carbs.analysis.front.questions import AnsweredSet, Seal
from carbs.analysis.front.trials import trials_frame
from carbs.analysis.laws.power import ComputeLaw
from carbs.analysis.planning.plan import expected_at
from carbs.analysis.report import plots
from carbs.analysis.report.data import data_section
from carbs.analysis.report.figure import figure_html
from carbs.analysis.report.interactive import front_html, interactive_front
from carbs.analysis.report.markup import (
    DOCUMENT,
    SCRIPT,
    STYLE,
    cost_text,
    number,
    paragraph,
    section,
    table,
    with_unit,
)
from carbs.analysis.report.questions import questions_section, sealed_section
from carbs.analysis.report.summary import FACTORS, Summary, share_digits
from carbs.search_space import Param
from carbs.spaces import ChoiceSpace, FloatArray, MixtureSpace
from carbs.study import flat_names, flatten
from carbs.threads import on_one_thread

_MOST_REASONS = 20


@on_one_thread
def write_report(
    folder: Path,
    study: Study,
    front: FrontModel,
    law: ComputeLaw | None,
    check: Mapping[str, Any] | None = None,
    *,
    cost_unit: str = "s",
    output_unit: str = "",
    answers: Sequence[AnsweredSet] = (),
    seal: Seal | None = None,
    is_interactive: bool = False,
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
        answers: what the trials answered, set by set, to tell doubtful questions.
        seal: the sealed question sets; their answers are shown where they are opened.
        is_interactive: whether the front answers to the pointer with a trial's parameters; the page
            is then some 5 MB larger, and ``plotly`` has to be installed.

    Returns:
        The path of ``report.html``.

    Raises:
        ImportError: plotly is asked for, and not installed.
    """
    page = _Page(
        folder, study, front, law, check, cost_unit, output_unit, answers, seal, is_interactive
    )
    path = folder / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page.html(), encoding="utf-8")
    temporary.replace(path)
    return path


def category_shares(front: FrontModel, param: Param) -> dict[str, FloatArray]:
    """How many of the model's draws choose each category at each cost: ``(m,)``, by category.

    Draws that choose a configuration without the parameter count for none of them.
    """
    assert isinstance(param.space, ChoiceSpace)
    is_active = front.active(param)
    chosen = np.argmax(front.optima[:, :, front.space.slices[param.name]], axis=2)
    return {
        str(choice): np.asarray((is_active & (chosen == i)).mean(axis=0))
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
        answers: Sequence[AnsweredSet],
        seal: Seal | None,
        is_interactive: bool,
    ) -> None:
        self.answers, self.seal = answers, seal
        self.folder = folder / "figures"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study, self.front, self.check = study, front, check
        self.law = law if front.direction == "minimize" else None
        self.unit, self.output_unit = cost_unit, output_unit
        self.is_interactive = is_interactive
        self.trials = trials_frame(study, front.space)
        self.done = plots.finished(self.trials)
        self.failed = plots.failed(self.trials)
        self.on_front = plots.front_trials(self.trials, front.direction)
        self.expectation = Expectation.of(front)
        budgets = [factor * front.dearest for factor in (1, *FACTORS)]
        self.expected = expected_at(self.expectation, budgets)
        self.curves = {curve.name: curve for curve in hyperparameter_curves(front)}
        self.best = "lowest" if front.direction == "minimize" else "highest"

    def html(self) -> str:
        sections = [
            self._title(),
            self._summary(),
            self._check_run(),
            self._front(),
            self._front_table(),
            self._hyperparameters(),
            *(
                self._mix(param)
                for param in self.front.space.params
                if isinstance(param.space, MixtureSpace) and self._curve_names(param)
            ),
            self._predictions(),
            self._backtest(),
            self._convergence(),
            data_section(self.study),
            questions_section(self.answers, self.seal),
            sealed_section(self.seal, self.done, self.on_front, self.check, self.unit),
            self._failures(),
            self._all_trials(),
        ]
        title = html.escape(f"Sweep {self.study.study_name}")
        return DOCUMENT.format(
            title=title, style=STYLE, body="\n".join(filter(None, sections)), script=SCRIPT
        )

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
            f"{counts['stopped']} stopped early" if counts.get("stopped") else "",
            f"{counts['running']} running" if counts.get("running") else "",
            f"{counts['forgotten']} lost to a machine and not counted"
            if counts.get("forgotten")
            else "",
            f"total cost {cost_text(spent, self.unit)}",
        ]
        name = html.escape(f"Sweep {self.study.study_name}")
        return f"<h1>{name}</h1>\n" + paragraph(" · ".join(filter(None, facts)), "facts")

    def _summary(self) -> str:
        check = None if self.check is None else self._verdict()[0]
        return Summary(
            self.trials,
            self.on_front,
            self.expectation,
            self.expected.iloc[1:],
            list(self.curves.values()),
            check,
            self.unit,
            self.output_unit,
        ).html()

    def _verdict(self) -> tuple[str, str]:
        """On the check run: in words, and of what kind."""
        assert self.check is not None
        level = f"{self.check['level']:.0%}"
        quantities = ("output", "cost")
        verdicts = [self.check.get(f"{quantity}_inside") for quantity in quantities]
        if self.check.get("failure") is not None:
            return f"The check run failed: {self.check['failure']}", "missed"
        if None in verdicts:
            return "Predicted; not measured yet.", "open"
        if all(verdicts):
            return f"Output and cost came out inside their {level} intervals.", "held"
        if not any(verdicts):
            return f"Output and cost both missed their {level} intervals.", "missed"
        missed = quantities[verdicts.index(False)]
        return f"The {missed} missed its {level} interval; the other held.", "missed"

    def _check_run(self) -> str:
        if self.check is None:
            return ""
        check = self.check
        level = f"{check['level']:.0%}"
        factor = number(check["cost_factor"])
        intro = (
            f"Of the configurations at {factor} times the cost of the sweep's dearest run, this "
            f"one was expected to do best. Its output and cost were predicted with {level} "
            "intervals before it was trained. "
        )
        rows = []
        for quantity in ("output", "cost"):
            unit = self.unit if quantity == "cost" else ""
            measured = check.get(f"measured_{quantity}")
            inside = check.get(f"{quantity}_inside")
            low, high = check[f"predicted_{quantity}_interval"]
            rows.append(
                [
                    quantity,
                    with_unit(check[f"predicted_{quantity}"], unit),
                    f"{number(low)} to {with_unit(high, unit)}",
                    "not yet" if measured is None else with_unit(measured, unit),
                    "" if inside is None else "inside" if inside else "outside",
                ]
            )
        verdict, kind = self._verdict()
        header = ["", "predicted", f"{level} interval", "measured", "verdict"]
        digits = self._share_digits()
        params = {
            name: round(value, digits[name]) if name in digits else value
            for name, value in flatten(check["params"]).items()
        }
        return section(
            "Check run",
            paragraph(verdict, f"verdict {kind}"),
            paragraph(intro),
            table(header, rows),
            paragraph("Its configuration:"),
            table(list(params), [list(params.values())]),
            *(paragraph(f"Note: {warning}.") for warning in check.get("warnings", ())),
        )

    def _front(self) -> str:
        axes = plots.plot_front(
            self.trials,
            self.law,
            self.check,
            expected=self.expected,
            level=self.front.level,
            direction=self.front.direction,
            cost_unit=self.unit,
            output_unit=self.output_unit,
        )
        text = (
            "Each circle is one finished trial: what it cost, and the output that it reached. The "
            "black steps are the Pareto front, the trials that no other beats in both. "
        )
        level = f"{self.front.level:.0%}"
        beyond = (
            " The dashed line beyond the dearest trial is what the best configuration for each "
            "cost is expected to measure, as a plan has it, and its band holds "
            f"{level} of such runs."
        )
        parts = [paragraph(text + self._law_text() + beyond), self._equation()]
        figure = self._figure("front", axes, "Output against cost, with the Pareto front")
        if self.is_interactive:
            parts.append(
                paragraph(
                    "Point at a trial, or touch it, for its parameters. Two clicks show the trials "
                    "that lie beyond the axis."
                )
            )
            parts.append(f"{self._interactive_front()}<div class='printed'>{figure}</div>")
        else:
            parts.append(figure)
        if self.law is not None:
            parts.append(self._coefficients())
        return section("The front and its law", *parts)

    def _interactive_front(self) -> str:
        figure = interactive_front(
            self.trials,
            self.law,
            expected=self.expected,
            level=self.front.level,
            names=self._parameter_names(),
            direction=self.front.direction,
            cost_unit=self.unit,
            output_unit=self.output_unit,
        )
        return front_html(figure)

    def _law_text(self) -> str:
        if self.law is None:
            return (
                "No law is drawn: it describes an output that falls with cost, and needs at least "
                "four trials on the front."
            )
        level = self.front.level if self.check is None else self.check["level"]
        fitted_to = "; ".join([self.law.fitted_to, *self.law.doubts])
        return (
            f"The blue line is the compute law fitted to that front ({fitted_to}); a new run on "
            f"the front is expected inside its shaded band in {level:.0%} of cases."
        )

    def _equation(self) -> str:
        if self.law is None:
            return ""
        E, k, g = (number(value) for value in (self.law.E, self.law.k, self.law.g))
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
            [
                name,
                estimate,
                f"{number(low)} to {number(high)}",
                meaning[name] + f" ({note})" * (note != ""),
            ]
            for name, estimate, low, high, note in summary.itertuples(index=False, name=None)
        ]
        return table(["coefficient", "estimate", "90% interval", "meaning"], rows)

    def _front_table(self) -> str:
        text = (
            f"Each of these reached the {self.best} output of all trials that cost no more than "
            "it did. The cheapest comes first."
        )
        names = self._parameter_names()
        columns = ["number", "cost", "output", *names]
        rows = self.on_front[columns].round(self._share_digits()).itertuples(index=False)
        header = ["trial", f"cost ({self.unit})", "output", *names]
        return section(
            "Pareto-front configurations",
            paragraph(text),
            table(header, rows, is_sortable=True),
        )

    def _hyperparameters(self) -> str:
        level = f"{self.front.level:.0%}"
        text = (
            "The blue line is the model's best value at each cost, and the band holds it with "
            f"{level} probability; black dots are the trials on the front, which carry the noise "
            "of single runs. Where a title gives a power of cost, the brackets hold its "
            f"{level} interval: one that includes 0 says that the optimum may not move at all."
        )
        if any(param.when for param in self.front.space.params):
            text += (
                " A conditional parameter is shown at the costs where enough of the model's best "
                "configurations have it."
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
        return section("Hyperparameters over cost", paragraph(text), grid, self._laws())

    def _laws(self) -> str:
        level = f"{self.front.level:.0%}"
        rows = []
        for curve in self.curves.values():
            slope = curve.slope
            said = [
                "" if curve.matters else "hardly matters",
                f"on its {curve.at_bound} bound" if curve.at_bound else "",
                "bends" if curve.bends else "",
            ]
            rows.append(
                [
                    curve.name,
                    curve.law,
                    None if slope is None else round(slope[0], 9),  # not -1e-17
                    "" if slope is None else f"{number(slope[1])} to {number(slope[2])}",
                    ", ".join(filter(None, said)),
                ]
            )
        header = ["", "law", "slope per decade of cost", f"{level} interval", "note"]
        return table(header, rows) if rows else ""

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
        header = ["component", *(f"at {cost_text(float(costs[i]), self.unit)}" for i in columns)]
        rows = [
            [curve.name.removeprefix(f"{param.name}."), *(_share(curve, i) for i in columns)]
            for curve in curves
        ]
        return section(
            f"Best {param.name}",
            paragraph(text),
            self._figure(f"mix-{param.name}", axes, f"Best {param.name} over cost"),
            paragraph("Median, and in brackets the interval:"),
            table(header, rows),
        )

    def _predictions(self) -> str:
        quantities: tuple[plots.Quantity, ...] = ("output", "cost")
        told = {q: plots.predicted_trials(self.trials, q) for q in quantities}
        if not len(told["output"]) or not len(told["cost"]):
            return section(
                "Predictions against measurements",
                paragraph("No finished trial was predicted: the sweep was too short for a model."),
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
        return section(
            "Predictions against measurements",
            paragraph(text),
            '<div class="panels pair">' + "\n".join(figures) + "</div>",
        )

    def _backtest(self) -> str:
        tests = self.expectation.backtests
        if not tests:
            return ""
        scores = np.concatenate([test.scores for test in tests])
        inside = int((np.abs(scores) <= ndtri(0.95)).sum())
        text = (
            "Fitted to the cheap runs alone, the models behind the plan predict the dear ones that "
            "they think promising. How far off they were widens the plan's intervals, or narrows "
            f"them. As they stood, their 90% intervals held {inside} of {len(scores)}."
        )
        axes = plots.plot_backtest(tests, output_unit=self.output_unit)
        return section(
            "Dear runs foretold from cheap ones",
            paragraph(text),
            self._figure("backtest", axes, "Dear runs as predicted from cheap ones"),
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
        return section(
            "Convergence",
            paragraph(text),
            self._figure("convergence", axes, "Best output so far over total cost"),
        )

    def _failures(self) -> str:
        if not len(self.failed):
            return section("Failures", paragraph("No trial failed."))
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
        return section(
            "Failures",
            paragraph(text),
            table(["trials", f"cost ({self.unit})", "reason"], rows),
            paragraph(f"{more} rarer reasons are in the table of all trials.") if more > 0 else "",
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
            + paragraph(
                "Predictions have their 90% interval in brackets. A column's name sorts by it."
            )
            + table(header, rows, is_sortable=True)
            + "</details></section>"
        )

    def _parameter_names(self) -> list[str]:
        return [name for param in self.front.space.params for name in flat_names(param)]

    def _share_digits(self) -> dict[str, int]:
        return share_digits(self.front.space)

    def _curve_names(self, param: Param) -> list[str]:
        return [name for name in flat_names(param) if name in self.curves]

    def _observations_on_front(self) -> list[Any]:
        ids = {str(number) for number in self.on_front["number"]}
        return [o for o in self.front.observations if o.id in ids]

    def _figure(self, name: str, axes: Axes, alternative: str) -> str:
        return figure_html(self.folder, name, axes, alternative)


def _share(curve: Curve, i: int) -> str:
    if np.isnan(curve.median[i]):
        return "–"
    return f"{curve.median[i]:.0%} ({curve.low[i]:.0%} to {curve.high[i]:.0%})"


def _predicted(row: pd.Series, quantity: str) -> str | None:
    middle = row[f"predicted_{quantity}"]
    if pd.isna(middle):
        return None
    low, high = row[f"predicted_{quantity}_low"], row[f"predicted_{quantity}_high"]
    return f"{number(middle)} ({number(low)} to {number(high)})"
