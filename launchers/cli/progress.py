"""``carbs sweep`` as it goes: a live table in a terminal, else one plain line a finished trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from carbs.launchers.controller.sweep import Status
from carbs.launchers.controller.trials import Ended
from carbs.records import Observation, Suggestion


class Progress:
    """Give :meth:`changed` and :meth:`ended` to the sweep; use as a context manager.

    Args:
        console: where to print. Whether it is a terminal decides between table and lines.
        cost_unit: of the lines.
    """

    def __init__(self, console: Console, cost_unit: str = "s") -> None:
        self._console = console
        self._cost_unit = cost_unit
        self._live: Live | None = None
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn as often as it is looked at, however many trials end.
            self._live = Live(
                console=self._console, refresh_per_second=4, get_renderable=self._renderable
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def changed(self, status: Status) -> None:
        self._status = status

    def _renderable(self) -> RenderableType:
        return "" if self._status is None else _screen(self._status)

    def ended(self, ended: Ended) -> None:
        if self._live is None:
            self._console.print(
                line(ended, self._cost_unit), markup=False, highlight=False, soft_wrap=True
            )


def line(ended: Ended, cost_unit: str = "s") -> str:
    """One finished trial in one line."""
    params = format_params(ended.params)
    if ended.result is None:
        how = "stopped" if ended.is_stopped else "lost" if ended.is_lost else "failed"
        return f"trial {ended.number:4d}  {how}: {ended.reason}  {params}"
    output, cost = ended.result.output, ended.result.cost
    return f"trial {ended.number:4d}  loss {output:.4f}  cost {cost:8.3f} {cost_unit}  {params}"


def format_params(params: Mapping[str, Any]) -> str:
    """``width=64 mix=code:0.50,prose:0.50``."""
    return " ".join(f"{name}={_format_value(value)}" for name, value in params.items())


def _format_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{weight:.2f}" for key, weight in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def measured(status: Status) -> list[Observation]:
    """Runs that were trained to their end."""
    return [o for o in status.records.observations if not o.is_forecast]


def best_by_decade(status: Status) -> list[tuple[str, float, float]]:
    """For each decade of cost: its name, the best output in it, and that run's cost."""
    better = min if status.config.direction == "minimize" else max
    decades: dict[int, list[tuple[float, float]]] = {}
    for observation in measured(status):
        decade = math.floor(math.log10(observation.cost))
        decades.setdefault(decade, []).append((observation.output, observation.cost))
    return [
        (f"{10.0**decade:g} to {10.0 ** (decade + 1):g}", *better(decades[decade]))
        for decade in sorted(decades)
    ]


def _screen(status: Status) -> Group:
    known, config = status.records, status.config
    n_done = len(measured(status))
    n_stopped = len(known.observations) - n_done
    counts = Table.grid(padding=(0, 2))
    counts.add_row(
        Text(config.name, style="bold"),
        f"{n_done} done",
        f"{len(known.pending)} running",
        f"{len(known.failures)} failed",
        *([f"{n_stopped} stopped"] if n_stopped else []),
        f"of {config.max_trials} trials",
    )
    parts: list[Any] = [counts]
    if config.budget is None:
        parts.append(Text(f"cost spent {status.spent:.1f} {config.cost_unit}"))
    else:
        spent = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=config.budget, completed=status.spent, width=40)
        spent.add_row(f"cost spent {status.spent:.1f} of {config.budget:g} {config.cost_unit}", bar)
        parts.append(spent)
    if status.trouble is not None:
        parts.append(Text(f"waiting: {status.trouble}", style="yellow"))
    decades = Table(title="best loss by cost", title_justify="left")
    decades.add_column(f"cost of a run ({config.cost_unit})")
    decades.add_column("best loss", justify="right")
    decades.add_column("at cost", justify="right")
    for name, output, cost in best_by_decade(status):
        decades.add_row(name, f"{output:.4f}", f"{cost:.3g}")
    parts.append(decades)
    if status.last is not None:
        parts.append(_suggestion(status.last, config.cost_unit))
    return Group(*parts)


def _suggestion(suggestion: Suggestion, cost_unit: str) -> Text:
    text = Text(f"trial {suggestion.id}: ", style="dim")
    text.append(format_params(suggestion.params))
    if suggestion.predicted_output is not None and suggestion.predicted_cost is not None:
        text.append(
            f"\n  predicted loss {suggestion.predicted_output:.4f}, "
            f"cost {suggestion.predicted_cost:.2f} {cost_unit}",
            style="dim",
        )
    return text
