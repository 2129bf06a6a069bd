"""The head of the report: what was found, what it would cost to do better, how sure this is."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.hyperparameters import Curve
from carbs.analysis.report import plots
from carbs.analysis.report.markup import bullets, card, cost_text, number, paragraph, table
from carbs.search_space import SearchSpace
from carbs.spaces import MixtureSpace
from carbs.study import flat_names

# Times the cost of the dearest trial, for which it is said what to expect.
FACTORS = (2, 4, 10)


@dataclass(frozen=True)
class Summary:
    """Three boxes.

    Attributes:
        trials: of the study; ``on_front`` those that no other beats, cheapest first.
        expectation: of what runs measure.
        expected: of runs that cost ``FACTORS`` times as much as the dearest trial, as
            :meth:`carbs.analysis.Plan.table` has it.
        curves: of the hyperparameters.
        verdict: on the check run, in words; None where there is none.
        cost_unit, output_unit: of the study.
    """

    trials: pd.DataFrame
    on_front: pd.DataFrame
    expectation: Expectation
    expected: pd.DataFrame
    curves: Sequence[Curve]
    verdict: str | None
    cost_unit: str
    output_unit: str

    def html(self) -> str:
        cards = (
            card("What was found", *self._found()),
            card("What it would cost to do better", *self._better()),
            card("How sure this is", bullets(self._sure())),
        )
        return f"<section class='cards'>{''.join(cards)}</section>"

    def _found(self) -> list[str]:
        best = self.on_front.iloc[-1]  # the dearest on the front is the best of all
        word = "lowest" if self.expectation.front.direction == "minimize" else "highest"
        unit = f" {self.output_unit}" if self.output_unit else ""
        parts = [
            paragraph(f"{number(best['output'])}{unit}", "big"),
            paragraph(
                f"The {word} output, by trial {best['number']} at a cost of "
                f"{cost_text(float(best['cost']), self.cost_unit)}:"
            ),
            self._configuration(best),
        ]
        cheaper = self.on_front[self.on_front["cost"] <= best["cost"] / 4]
        if len(cheaper):
            other = cheaper.iloc[-1]
            parts.append(
                paragraph(
                    f"A quarter of that cost or less bought {number(other['output'])} (trial "
                    f"{other['number']}, {cost_text(float(other['cost']), self.cost_unit)})."
                )
            )
        return parts

    def _configuration(self, trial: pd.Series) -> str:
        space = self.expectation.front.space
        digits = share_digits(space)
        pairs = []
        for name in (name for param in space.params for name in flat_names(param)):
            value = trial[name]
            if value is None or value != value:  # inactive
                continue
            value = round(value, digits[name]) if name in digits else value
            is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            shown = number(value) if is_number else str(value)
            pairs.append(f"<dt>{html.escape(name)}</dt><dd>{html.escape(shown)}</dd>")
        return f"<dl>{''.join(pairs)}</dl>"

    def _better(self) -> list[str]:
        front = self.expectation.front
        sign = 1 if front.direction == "minimize" else -1
        best = sign * float(self.on_front["output"].iloc[-1])
        numbers = self.expected[["cost", "output", "low", "high"]].to_numpy(dtype=float).tolist()
        is_likely = [sign * output < best for _, output, _, _ in numbers]
        is_sure = [max(sign * low, sign * high) < best for *_, low, high in numbers]
        at = "times the dearest trial's cost"
        if any(is_sure):
            factor = FACTORS[is_sure.index(True)]
            said = f"At {factor} {at} a better run is as good as certain."
        elif any(is_likely):
            factor = FACTORS[is_likely.index(True)]
            said = (
                f"At {factor} {at} a better run is likely, but not certain: the interval reaches "
                "beyond what was found."
            )
        else:
            said = (
                f"Up to {FACTORS[-1]} {at} no better run is expected. More trials, or wider "
                "bounds, may bring more than a larger run."
            )
        rows = [
            [cost, output, f"{number(low)} to {number(high)}"]
            for cost, output, low, high in numbers
        ]
        header = [f"cost ({self.cost_unit})", "output", f"{front.level:.0%} interval"]
        return [paragraph(said), table(header, rows)]

    def _sure(self) -> list[str]:
        lines = [] if self.verdict is None else [f"Check run: {self.verdict}"]
        told = plots.predicted_trials(self.trials, "output")
        if len(told):
            n, inside = len(told), int(told["inside"].sum())
            line = f"{inside} of {n} trials came out inside the 90% interval noted before them"
            # Fewer than nine in ten by more than chance.
            is_short = inside < 0.9 * n - 2 * math.sqrt(0.09 * n)
            lines.append(f"{line}: intervals here are too narrow." if is_short else f"{line}.")
        scores = [score for test in self.expectation.backtests for score in test.scores]
        if scores:
            inside = int((np.abs(scores) <= ndtri(0.95)).sum())
            lines.append(
                f"Fitted to cheap trials alone, the models foretold {inside} of {len(scores)} dear "
                "ones within their 90% interval; how far off they were is in the intervals here."
            )
        else:
            lines.append("Too few trials of different cost to test predictions of dear ones.")
        ends = [f"{curve.name} ({curve.at_bound})" for curve in self.curves if curve.at_bound]
        if ends:
            lines.append(f"Best values lie on a bound, which may cost output: {', '.join(ends)}.")
        idle = [curve.name for curve in self.curves if not curve.matters]
        if idle:
            lines.append(f"Hardly matters, as far as the sweep can tell: {', '.join(idle)}.")
        n_failed, n_done = len(plots.failed(self.trials)), len(plots.finished(self.trials))
        if n_failed:
            lines.append(f"{n_failed} of {n_failed + n_done} trials failed.")
        return lines


def share_digits(space: SearchSpace) -> dict[str, int]:
    """Shares of a mix are read off to a hundredth of a percent."""
    mixes = [param for param in space.params if isinstance(param.space, MixtureSpace)]
    return {name: 4 for param in mixes for name in flat_names(param)}
