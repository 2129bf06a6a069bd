"""What the optimizer remembers: suggestions, observations and failures.

Three states, three types: a suggestion is pending, an observation is a finished run, a failure is
a configuration that could not be trained and says why. All are frozen and go to JSON and back
(``model_dump_json``, ``model_validate_json``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from carbs.display import in_a_line, shown, table, with_interval
from carbs.from_imbue import SUGGESTION, where
from carbs.spaces import Params

Direction = Literal["minimize", "maximize"]


def as_number(name: str, value: Any) -> float:
    """A number of any kind that ``float()`` takes: NumPy's, ``Decimal``, a tensor of one element, a
    string that spells one.

    Raises:
        ValueError: says what it is instead.
    """
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, OverflowError, RuntimeError, ArithmeticError):
        shape = getattr(value, "shape", None)
        what = f"of shape {tuple(shape)}" if shape else repr(value)[:80]
        raise ValueError(
            f"{name} is a {type(value).__name__} ({what}), expected a number: anything that "
            "float() takes"
        ) from None


def as_whole_number(name: str, value: Any) -> int:
    """A whole number of any kind.

    Raises:
        ValueError: says what it is instead.
    """
    number = as_number(name, value)
    if not number.is_integer():
        raise ValueError(f"{name} is {value!r}, expected a whole number")
    return int(value)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    params: Params


class Suggestion(_Record):
    """A configuration proposed and not yet observed.

    Attributes:
        id: unique within its optimizer.
        predicted_output: median of the predicted measurement; None before a model can be fitted.
        predicted_output_interval: where 90% of measurements are expected.
        predicted_cost: median of the predicted cost.
        predicted_cost_interval: where 90% of costs are expected.
        success_probability: that the run will not fail.
    """

    id: str
    predicted_output: float | None = None
    predicted_output_interval: tuple[float, float] | None = None
    predicted_cost: float | None = None
    predicted_cost_interval: tuple[float, float] | None = None
    success_probability: float | None = None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in SUGGESTION:
                raise AttributeError(where(name, SUGGESTION))
            return super().__getattr__(name)

    def __repr__(self) -> str:
        told = [f"{name} {value}" for name, value in self._predictions().items()]
        return f"Suggestion({'; '.join([f'{self.id}: {in_a_line(self.params)}', *told])})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        rows = [*self.params.items(), *self._predictions().items()]
        return table([f"suggestion {self.id}", ""], rows)

    def _predictions(self) -> dict[str, str]:
        if self.predicted_output is None:
            return {}
        return {
            "predicted output": with_interval(
                self.predicted_output, self.predicted_output_interval
            ),
            "predicted cost": with_interval(self.predicted_cost, self.predicted_cost_interval),
            "success probability": shown(self.success_probability),
        }


class Observation(_Record):
    """A configuration with its measured output and cost, or with what they would have been.

    Attributes:
        output: as measured; of a run that was stopped early, the forecast of its end.
        cost: of the full run.
        id: of the suggestion that it answers; None for data that nobody asked for.
        output_deviation: standard deviation of the output where it is a forecast of a run stopped
            early; zero for a measurement.
        spent: what the run really cost; None where that is ``cost``.
    """

    output: float = Field(allow_inf_nan=False)
    cost: float = Field(gt=0, allow_inf_nan=False)
    id: str | None = None
    output_deviation: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    spent: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def is_forecast(self) -> bool:
        return self.output_deviation > 0

    def __repr__(self) -> str:
        output = shown(self.output) + (" (forecast)" if self.is_forecast else "")
        return f"Observation(output {output}, cost {shown(self.cost)}; {in_a_line(self.params)})"

    __str__ = __repr__


class Failure(_Record):
    """A configuration that could not be trained.

    Attributes:
        reason: in a few words.
        cost: spent before it failed, where known.
    """

    reason: str
    cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    id: str | None = None

    def __repr__(self) -> str:
        return f"Failure({self.reason!r}; {in_a_line(self.params)})"

    __str__ = __repr__
