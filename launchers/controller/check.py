"""The check run: predicted from the sweep alone, then trained, and laid beside its prediction.

The prediction is written to ``check.json`` before the run starts, and stays as it is whatever comes
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from carbs.analysis.front.model import FrontModel
from carbs.analysis.planning.plan import Plan, plan
from carbs.launchers.controller.config import CheckConfig
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.outcomes import BadConfiguration
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.job.protocol import Result

CHECK = "check"  # what the sweep calls the run


class Check(BaseModel):
    """``check.json``: a prediction, and once the run has ended, what came out.

    Attributes:
        cost_factor: cost asked for, as a multiple of the sweep's dearest run within ``max_cost``.
        level: of the intervals.
        failure: why the check run could not be trained, where it could not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cost_factor: float
    level: float
    params: dict[str, Any]
    predicted_output: float
    predicted_output_interval: tuple[float, float]
    predicted_cost: float
    predicted_cost_interval: tuple[float, float]
    warnings: tuple[str, ...] = ()
    measured_output: float | None = None
    measured_cost: float | None = None
    output_inside: bool | None = None
    cost_inside: bool | None = None
    failure: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.measured_output is not None or self.failure is not None

    def line(self) -> str:
        """The verdict in one line."""
        low, high = self.predicted_output_interval
        predicted = f"predicted L={self.predicted_output:.4f} [{low:.4f}, {high:.4f}]"
        if self.failure is not None:
            return f"check run: failed: {self.failure}, {predicted}"
        if self.measured_output is None:
            return f"check run: {predicted}"
        verdict = "inside" if self.output_inside else "outside"
        return f"check run: measured L={self.measured_output:.4f}, {predicted} ({verdict})"

    def cost_line(self, unit: str = "s") -> str:
        """The same for the cost."""
        low, high = self.predicted_cost_interval
        predicted = f"predicted {self.predicted_cost:.1f} {unit} [{low:.1f}, {high:.1f}]"
        if self.measured_cost is None:
            return f"           cost: {predicted}"
        verdict = "inside" if self.cost_inside else "outside"
        return f"           cost: measured {self.measured_cost:.1f} {unit}, {predicted} ({verdict})"


def predict_check(sweep: Sweep, config: CheckConfig, front: FrontModel) -> Check:
    """The prediction: the one on file, or a new one, which is then on file."""
    path = sweep.folder / "check.json"
    if path.exists():
        return Check.model_validate_json(path.read_text())
    dearest = max(observation.cost for observation in front.observations)
    if sweep.config.max_cost is not None:  # a run that overshot it is no measure
        dearest = min(dearest, sweep.config.max_cost)
    predicted = plan(front, config.cost_factor * dearest)
    check = _of(predicted, config)
    _write(path, check)
    return check


def run_check(controller: Controller, check: Check) -> Check:
    """Train the predicted configuration, unless that has been done, and judge the prediction.

    Raises:
        Interrupted: by Ctrl-C.
    """
    if check.has_ended:
        return check
    match controller.run_one(check.params, CHECK):
        case BadConfiguration(reason=reason):
            ended = check.model_copy(update={"failure": reason})
        case Result(output=output, cost=cost):
            low, high = check.predicted_output_interval
            low_cost, high_cost = check.predicted_cost_interval
            ended = check.model_copy(
                update={
                    "measured_output": output,
                    "measured_cost": cost,
                    "output_inside": low <= output <= high,
                    "cost_inside": low_cost <= cost <= high_cost,
                }
            )
    _write(controller.sweep.folder / "check.json", ended)
    return ended


def _of(predicted: Plan, config: CheckConfig) -> Check:
    return Check(
        cost_factor=config.cost_factor,
        level=predicted.level,
        params=predicted.params,
        predicted_output=predicted.output,
        predicted_output_interval=predicted.output_interval,
        predicted_cost=predicted.cost,
        predicted_cost_interval=predicted.cost_interval,
        warnings=predicted.warnings,
    )


def _write(path: Path, check: Check) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(check.model_dump_json(indent=1) + "\n")
    temporary.replace(path)
