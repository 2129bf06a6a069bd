"""The job protocol: however the training function ends, there is a report of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carbs.launchers.job.files import (
    Failed,
    Finished,
    JobFile,
    JobReport,
    Stopped,
    read_curve,
    read_report,
    stop,
    write_job,
)
from carbs.launchers.job.protocol import CurvePoint
from carbs.launchers.job.runner import load_function, run

RunJob = Callable[..., JobReport | None]


@pytest.fixture
def run_job(tmp_path: Path, write_module: Callable[[str], str]) -> RunJob:
    """Runs a job whose function has this body; returns what it reported."""

    def run_job(body: str, **fields: Any) -> JobReport | None:
        source = (
            "import math, sys\nimport numpy as np\n"
            "from carbs.launchers.job.protocol import BadConfigurationError, Result\n"
            f"def train(params, job):\n    {body}\n"
        )
        write_job(
            tmp_path / "job",
            JobFile(
                **{
                    "function": f"{write_module(source)}:train",
                    "python_path": [str(tmp_path)],
                    "params": {"x": 2.0},
                    "seed": 5,
                    "settings": {"k": 3},
                    "shared_folder": tmp_path / "shared",
                    **fields,
                }
            ),
        )
        run(str(tmp_path / "job"))
        return read_report(tmp_path / "job")

    return run_job


def test_a_job_without_a_report_has_none(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None


def test_a_result_is_reported(run_job: RunJob, tmp_path: Path) -> None:
    report = run_job("return Result(output=1.5, cost=params['x'], metrics={'a': [1, None]})")
    assert isinstance(report, Finished)
    assert report.result.output == 1.5
    assert report.result.cost == 2.0
    assert report.result.metrics == {"a": [1, None]}
    # Nothing half-written beside it.
    assert {path.name for path in (tmp_path / "job").iterdir()} == {
        "begun",
        "job.json",
        "report.json",
    }


def test_a_function_is_told_all_that_is_in_the_job_file(run_job: RunJob, tmp_path: Path) -> None:
    report = run_job(
        "return {'output': 1, 'cost': 1, 'metrics': {'seed': job.seed, 'settings': job.settings, "
        "'folder': str(job.folder), 'shared': str(job.shared_folder), 'params': params}}"
    )
    assert isinstance(report, Finished)
    assert report.result.metrics == {
        "seed": 5,
        "settings": {"k": 3},
        "folder": str(tmp_path / "job"),
        "shared": str(tmp_path / "shared"),
        "params": {"x": 2.0},
    }


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ("return {'output': 3, 'cost': 1}", 3.0),
        ("return {'output': np.float32(0.5), 'cost': np.float64(1)}", 0.5),
        ("return {'output': np.array(2.0).item(), 'cost': 1, 'metrics': {}}", 2.0),
    ],
)
def test_a_mapping_is_a_result(run_job: RunJob, body: str, output: float) -> None:
    report = run_job(body)
    assert isinstance(report, Finished)
    assert report.result.output == output


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise RuntimeError('no more\\nmemory')", "RuntimeError: no more"),
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise ValueError", "ValueError: "),
        ("raise BadConfigurationError('loss is NaN')", "loss is NaN"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_an_exception_is_a_failure_with_its_reason(run_job: RunJob, body: str, reason: str) -> None:
    report = run_job(body)
    assert isinstance(report, Failed)
    assert report.reason == reason
    assert report.cost is None
    assert "Traceback" in report.traceback


def test_a_bad_configuration_says_what_it_spent(run_job: RunJob) -> None:
    report = run_job("raise BadConfigurationError('diverged', cost=1.25)")
    assert isinstance(report, Failed)
    assert (report.reason, report.cost) == ("diverged", 1.25)


@pytest.mark.parametrize("cost", ["-1", "math.nan", "math.inf", "'much'"])
def test_an_impossible_cost_of_a_failure_is_left_out(run_job: RunJob, cost: str) -> None:
    report = run_job(f"raise BadConfigurationError('diverged', cost={cost})")
    assert isinstance(report, Failed)
    assert report.cost is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'output': math.nan, 'cost': 1}", "nan"),
        ("return {'output': math.inf, 'cost': 1}", "inf"),
        ("return {'output': 1, 'cost': 0}", "cost"),
        ("return {'output': 1, 'cost': -1}", "cost"),
        ("return {'output': 1, 'cost': math.nan}", "cost"),
        ("return {'output': 1}", "cost"),
        ("return {'output': 1, 'cost': 1, 'loss': 2}", "loss"),
        ("return None", "Result"),
        ("return 0.5", "Result"),
    ],
)
def test_a_result_that_is_none_is_a_failure_that_says_why(
    run_job: RunJob, body: str, said: str
) -> None:
    report = run_job(body)
    assert isinstance(report, Failed)
    assert said in report.reason


@pytest.mark.parametrize(
    "metrics",
    [
        "{'a': np.float32(2)}",
        "{'a': np.arange(3)}",
        "{'a': object()}",
        "{'a': b'\\xff'}",
        "{'a': '\\ud800'}",
        "{'a': math.nan, 'b': math.inf}",
        "{('a', 1): 2}",
        "{'a': {1, 2}}",
    ],
)
def test_no_metric_loses_a_run(run_job: RunJob, metrics: str) -> None:
    report = run_job(f"return {{'output': 1, 'cost': 2, 'metrics': {metrics}}}")
    assert report is not None
    if isinstance(report, Finished):
        assert (report.result.output, report.result.cost) == (1, 2)
        json.dumps(report.result.metrics)


def test_an_unprintable_reason_is_still_a_failure(run_job: RunJob) -> None:
    assert isinstance(run_job("raise ValueError('\\ud800')"), Failed)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module_anywhere:train", "No module named 'no_such_module_anywhere'"),
        ("math:no_such_function", "module 'math' has no function 'no_such_function'"),
        ("math:pi", "module 'math' has no function 'pi'"),
    ],
)
def test_a_function_that_is_not_there_is_a_failure(
    run_job: RunJob, function: str, said: str
) -> None:
    report = run_job("pass", function=function)
    assert isinstance(report, Failed)
    assert said in report.reason


def test_a_module_that_does_not_import_is_a_failure(
    run_job: RunJob, write_module: Callable[[str], str]
) -> None:
    name = write_module("raise RuntimeError('no GPU here')\n")
    report = run_job("pass", function=f"{name}:train")
    assert isinstance(report, Failed)
    assert "no GPU here" in report.reason


def test_functions_are_found_where_they_are_installed() -> None:
    assert load_function("math:sqrt") is math.sqrt


def test_a_report_that_cannot_be_written_leaves_none(run_job: RunJob, tmp_path: Path) -> None:
    """Half a report would be worse than none: the job counts as lost, and is tried again."""
    (tmp_path / "job" / "report.json.tmp").mkdir(parents=True)
    with pytest.raises(OSError, match=r"report\.json"):
        run_job("return {'output': 1, 'cost': 1}")
    assert read_report(tmp_path / "job") is None


def test_a_reader_sees_a_whole_report_or_none(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment it gets its name, the report is complete."""
    seen: list[str] = []
    replace = Path.replace

    def look_and_replace(self: Path, target: Path) -> Path:
        if Path(target).name == "report.json":
            assert read_report(tmp_path / "job") is None
            seen.append(self.read_text())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look_and_replace)
    run_job("return {'output': 1, 'cost': 1}")
    assert [json.loads(text)["kind"] for text in seen] == ["finished"]


def test_progress_is_a_line_a_report(run_job: RunJob, tmp_path: Path) -> None:
    assert read_curve(tmp_path / "job") == []
    report = run_job(
        "job.report(0.5, np.float32(3), 1); job.report(1, 2, 2.5)\n"
        "    return {'output': 2, 'cost': 2.5}"
    )
    assert isinstance(report, Finished)
    first = CurvePoint(progress=0.5, output=3, cost=1)
    assert read_curve(tmp_path / "job") == [first, CurvePoint(progress=1, output=2, cost=2.5)]
    # A line that is still being written is none yet.
    with (tmp_path / "job" / "curve.jsonl").open("a") as file:
        file.write('{"progress": 1')
    assert len(read_curve(tmp_path / "job")) == 2


def test_a_job_stops_at_its_next_report_and_says_what_it_spent(
    run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "job").mkdir()
    stop(tmp_path / "job")
    report = run_job("job.report(0.25, 3, 1.5); raise RuntimeError('went on')")
    assert report == Stopped(cost=1.5)
    # What it had to say is kept.
    assert read_curve(tmp_path / "job") == [CurvePoint(progress=0.25, output=3, cost=1.5)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("0, 1, 1", "progress is 0, expected a share"),
        ("1.01, 1, 1", "progress is 1.01"),
        ("math.nan, 1, 1", "progress is nan"),
        ("0.5, 1, 0", "cost is 0, expected a positive"),
        ("0.5, 1, math.inf", "cost is inf"),
        ("0.5, math.nan, 1", "output is nan at progress 0.5"),
    ],
)
def test_an_impossible_report_is_a_failure_that_says_why(
    run_job: RunJob, arguments: str, said: str
) -> None:
    report = run_job(f"job.report({arguments})")
    assert isinstance(report, Failed)
    assert said in report.reason


NEWER_COPIES = {
    "requeued": "job.folder / 'restart-1'",
    "a new attempt": "job.folder.with_name('job-2') / 'start.json'",
    "another has reported": "job.folder / 'report.json'",
}


@pytest.mark.parametrize("newer", NEWER_COPIES.values(), ids=NEWER_COPIES)
@pytest.mark.parametrize("ask", ["should_checkpoint()", "report(0.5, 2.0, 1.0)"])
def test_a_copy_that_nobody_waits_for_ends_without_a_word(
    tmp_path: Path, write_module: Callable[[str], str], newer: str, ask: str
) -> None:
    """As where a node was given up that still trains, and the job runs again elsewhere."""
    source = (
        "def train(params, job):\n"
        f"    newer = {newer}\n"
        "    newer.parent.mkdir(exist_ok=True)\n"
        "    newer.mkdir()\n"
        f"    job.{ask}\n"
        "    (job.folder / 'went-on').touch()\n"
        "    return {'output': 1.0, 'cost': 1.0}\n"
    )
    folder = tmp_path / "job-1"
    write_job(
        folder,
        JobFile(
            function=f"{write_module(source)}:train",
            python_path=[str(tmp_path)],
            params={},
            seed=0,
            settings={},
            shared_folder=tmp_path,
        ),
    )
    assert run(str(folder))  # all is done: it must not be requeued
    assert not (folder / "went-on").exists()
    assert not (folder / "report.json").is_file()


def test_what_kills_a_copy_that_nobody_waits_for_is_no_failure(run_job: RunJob) -> None:
    assert run_job("(job.folder / 'restart-1').mkdir(); raise OSError('lost its peers')") is None
