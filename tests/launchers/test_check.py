"""The end of a sweep: prediction on file, check run, verdict, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from carbs.analysis.front.model import fit_front
from carbs.launchers.controller.check import predict_check, run_check
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Sweep

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]

LAW = """
from carbs.launchers.job.protocol import BadConfigurationError

def train(params, job):
    if job.folder.name.startswith("check") and job.settings.get("breaks"):
        raise BadConfigurationError("out of memory", cost=1.0)
    x = params["x"]
    return {"output": 1 + x**-0.5, "cost": 2.0 * x}
"""


@pytest.fixture
def finished(
    write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> Callable[..., Sweep]:
    """A finished search on a known law, in the debug executor."""

    def finished(**changes: Any) -> Sweep:
        file = write_sweep(
            function=f"{write_module(LAW)}:train",
            executor="debug",
            max_trials=14,
            check={"cost_factor": 4},
            **changes,
        )
        sweep = Sweep(load_sweep(file), tmp_path / "sweep", (str(tmp_path),))
        with Controller(sweep) as controller:
            controller.run()
        return sweep

    return finished


def predict(sweep: Sweep) -> Any:
    known = sweep.status().records
    assert sweep.config.check is not None
    return predict_check(
        sweep, sweep.config.check, fit_front(sweep.space, known.observations, known.failures)
    )


def test_the_prediction_is_on_file_before_the_run_and_judged_after_it(
    finished: Callable[..., Sweep],
) -> None:
    sweep = finished()
    predicted = predict(sweep)
    assert json.loads((sweep.folder / "check.json").read_text())["measured_output"] is None
    dearest = max(o.cost for o in sweep.status().records.observations)
    assert predicted.predicted_cost == pytest.approx(4 * dearest, rel=0.2)
    checked = run_check(Controller(sweep), predicted)
    x = checked.params["x"]
    assert checked.measured_output == pytest.approx(1 + x**-0.5)
    low, high = checked.predicted_output_interval
    assert checked.output_inside == (low <= checked.measured_output <= high)
    assert checked.output_inside  # the law is exact: a prediction that misses it is broken
    assert json.loads((sweep.folder / "check.json").read_text()) == json.loads(
        checked.model_dump_json()
    )
    verdict = "inside" if checked.output_inside else "outside"
    assert checked.line() == (
        f"check run: measured L={checked.measured_output:.4f}, predicted "
        f"L={checked.predicted_output:.4f} [{low:.4f}, {high:.4f}] ({verdict})"
    )


def test_a_prediction_on_file_is_never_made_anew(finished: Callable[..., Sweep]) -> None:
    sweep = finished()
    predicted = predict(sweep)
    moved = predicted.model_copy(update={"predicted_output": 7.0})
    (sweep.folder / "check.json").write_text(moved.model_dump_json())
    assert predict(sweep) == moved
    checked = run_check(Controller(sweep), moved)
    assert run_check(Controller(sweep), checked) is checked
    assert len(list((sweep.folder / "jobs").glob("check-*"))) == 1


def test_a_miss_is_called_outside(finished: Callable[..., Sweep]) -> None:
    sweep = finished()
    wrong = predict(sweep).model_copy(update={"predicted_output_interval": (0.1, 0.2)})
    assert run_check(Controller(sweep), wrong).line().endswith("(outside)")


def test_a_check_run_that_fails_says_why(finished: Callable[..., Sweep]) -> None:
    sweep = finished(settings={"breaks": True})
    checked = run_check(Controller(sweep), predict(sweep))
    assert checked.failure == "out of memory"
    assert checked.line().startswith("check run: failed: out of memory, predicted L=")


def test_the_main_job_in_miniature(
    carbs: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Real language models through real processes: search, check run, report; nothing twice."""
    shipped = request.config.rootpath / "launchers" / "demo.yaml"
    content = yaml.safe_load(shipped.read_text())
    content |= {"max_trials": 7, "max_cost": 0.6, "budget": 4, "check": {"cost_factor": 1.5}}
    file = tmp_path / "mini.yaml"
    file.write_text(yaml.safe_dump(content))
    folder = tmp_path / "mini"
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    check = json.loads((folder / "check.json").read_text())
    lines = out.splitlines()
    assert sum(line.startswith("trial ") for line in lines) == 7
    # Seven runs predict poorly: the check may even diverge. What came out is what is said.
    kinds = ("check run: measured L=", "check run: failed: ")
    verdicts = [line for line in lines if line.startswith(kinds)]
    assert len(verdicts) == 1
    if check["failure"] is None:
        assert f"measured L={check['measured_output']:.4f}" in verdicts[0]
        assert verdicts[0].endswith("(inside)" if check["output_inside"] else "(outside)")
    else:
        assert check["failure"] in verdicts[0]
    assert "check run" in (folder / "report.html").read_text().lower()
    assert (folder / "figures" / "front.png").stat().st_size > 10_000
    jobs = sorted(path.name for path in (folder / "jobs").iterdir())
    code, again, _ = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0
    assert verdicts[0] in again
    assert "trial " not in again.replace("trials done", "")
    assert sorted(path.name for path in (folder / "jobs").iterdir()) == jobs
