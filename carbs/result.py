"""What a search has found: the best runs, the front, a frame, a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from carbs.display import in_a_line, shown
from carbs.optimizer import CARBS
from carbs.records import Failure, Observation

if TYPE_CHECKING:  # both are slow to load
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS = 20


class SearchResult:
    """The runs of an optimizer, whoever made them.

    Args:
        optimizer: it is looked at anew each time, and goes on where it is:
            ``result.optimizer.suggest()``.
    """

    def __init__(self, optimizer: CARBS) -> None:
        self.optimizer = optimizer

    @property
    def observations(self) -> tuple[Observation, ...]:
        """The finished runs, in the order in which they ended."""
        return self.optimizer.observations

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The runs that failed, each with its reason."""
        return self.optimizer.failures

    def best(self, cost: float | None = None) -> Observation:
        """The run with the best output, of those that cost no more than ``cost``.

        Raises:
            ValueError: there is none.
        """
        front = self.pareto_front()
        if not front:
            raise ValueError(f"none of {len(self.failures)} runs has finished")
        affordable = [run for run in front if cost is None or run.cost <= cost]
        if not affordable:
            raise ValueError(f"no run cost {cost:g} or less: the cheapest cost {front[0].cost:.4g}")
        return affordable[-1]

    def pareto_front(self) -> list[Observation]:
        """The runs that no other beats in both output and cost, cheapest first."""
        return self.optimizer.pareto_front()

    def to_frame(self) -> pd.DataFrame:
        """Every run, one a row, as :mod:`carbs.analysis` takes them.

        Columns: ``number`` (of the suggestion; none where it was not one of the optimizer's),
        ``state`` (complete, failed, stopped), ``output``, ``cost``, ``reason`` of a failure, and
        one for each parameter, mixtures as ``mix.code``. An inactive parameter has no value.
        """
        import pandas as pd

        from carbs.study import flat_names, flatten

        params = self.optimizer.space.params
        names = [name for param in params for name in flat_names(param)]
        rows = []
        for run in self._runs():
            row: dict[str, Any] = {"number": _number(run)}
            if isinstance(run, Failure):
                row |= {"state": "failed", "output": None, "cost": run.cost, "reason": run.reason}
            else:
                state = "stopped" if run.is_forecast else "complete"
                row |= {"state": state, "output": run.output, "cost": run.cost, "reason": None}
            rows.append(row | dict.fromkeys(names) | flatten(run.params))
        frame = pd.DataFrame(rows, columns=["number", "state", "output", "cost", "reason", *names])
        return frame.astype({"output": float, "cost": float})

    def plot(self, ax: Axes | None = None) -> Figure:
        """Cost against output of every run, with the Pareto front; a notebook shows it.

        Args:
            ax: to draw on; by default that of a new figure.
        """
        from carbs.analysis.report.plots import plot_front

        frame, direction = self.to_frame(), self.optimizer.direction
        ax = plot_front(frame, None, direction=direction, cost_unit="", ax=ax)
        return ax.get_figure(root=True)  # type: ignore[return-value]  # these axes are on one

    def _runs(self) -> Sequence[Observation | Failure]:
        runs: list[Observation | Failure] = [*self.observations, *self.failures]
        return sorted(runs, key=lambda run: -1 if (number := _number(run)) is None else number)

    def _summary(self) -> str:
        runs = self.observations
        spent = [run.cost if run.spent is None else run.spent for run in runs]
        spent += [failure.cost or 0.0 for failure in self.failures]
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{len(runs)} runs finished{failed}, cost spent {sum(spent):.4g}"

    def __repr__(self) -> str:
        front = self.pareto_front()
        lines = [f"SearchResult: {self._summary()}"]
        lines += [
            f"  output {shown(run.output)}  cost {shown(run.cost)}  {in_a_line(run.params)}"
            for run in front[-_MOST_ROWS:]
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.optimizer._front_html(self._summary())


def _number(run: Observation | Failure) -> int | None:
    """Of the suggestion; None where the optimizer has not made it."""
    return int(run.id) if run.id is not None and run.id.isdecimal() else None
