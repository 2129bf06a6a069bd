"""``log:`` in a sweep file: runs that W&B, MLflow and TensorBoard themselves read back."""

from __future__ import annotations

import csv
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from carbs.launchers.controller.config import load_sweep
from carbs.launchers.errors import SweepFileError
from carbs.launchers.loggers import config as log_config, loggers
from carbs.launchers.loggers.config import LogConfig
from carbs.launchers.loggers.runs import Summary, TrialRun

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]
RunCli = Callable[..., tuple[int, str, str]]

TRAIN = """
def train(params, job):
    x = params["x"]
    for step in range(1, 5):
        job.report(step / 4, 2 + x**-0.5 + 1 / step, step * x)
    if job.folder.name.startswith("00002"):
        raise ValueError("odd")
    metrics = {"accuracy": 0.5, "note": "fine", "evaluations": {"n": 3}}
    return {"output": 2 + x**-0.5, "cost": 4 * x, "metrics": metrics}
"""
SPACE = {
    "x": {"space": "log", "search_center": 1.0},
    "mix": {
        "space": "mixture",
        "components": ["code", "prose"],
        "search_center": {"code": 0.25, "prose": 0.75},
    },
}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a sweep that was run twice: three trials, then two more.

    In between, one that was written is taken for a half.
    """
    place = tmp_path_factory.mktemp("logged")
    (place / "training.py").write_text(TRAIN)
    file = place / "sweep.yaml"
    content = {
        "name": "logged",
        "function": "training:train",
        "parameters": SPACE,
        "executor": "debug",
        "max_in_flight": 1,
        "max_trials": 3,
        "log": [
            {"wandb": {"project": "p", "mode": "offline", "tags": ["mine"]}},
            {"mlflow": {"tracking_uri": f"sqlite:///{place}/mlflow.db"}},
            {"mlflow": {"tracking_uri": f"file://{place}/store", "experiment": "other"}},
            {"tensorboard": {"folder": "events"}},
        ],
    }
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    for n_trials in (3, 5):
        for note in (place / "sweep" / "loggers").glob("*.json"):
            assert json.loads(note.read_text()) == [0, 1, 2]
            note.write_text("[0, 2]")
        program = "from carbs.launchers.cli.app import main; main()"
        arguments = ["sweep", file, "--folder", place / "sweep", "--max-trials", n_trials]
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=place,
            env={**loggers_environment(), "MLFLOW_ALLOW_FILE_STORE": "true"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "fails" not in done.stdout
        assert f"{n_trials - 1} trials done, 1 failed" in done.stdout
    yield place


def loggers_environment() -> dict[str, str]:
    """Without what this machine's user may have set."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "MLFLOW_"))}
    return {**mine, "OMP_NUM_THREADS": "1", "NETRC": "/dev/null"}


def wandb_records(folder: Path) -> list[Any]:
    """What a run's file holds: records of W&B's own, in the frames of LevelDB's log."""
    raw = b"".join(file.read_bytes() for file in folder.glob("*.wandb"))
    place, records, parts = 7, [], b""
    while place + 7 <= len(raw):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def test_wandb(logged: Path) -> None:
    runs: dict[str, list[list[Any]]] = {}
    for folder in sorted((logged / "sweep" / "wandb").glob("offline-run-*")):
        records = wandb_records(folder)
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        assert (run.project, run.run_group) == ("p", "logged")
        runs.setdefault(run.run_id, []).append(records)
    sweep_id = (logged / "sweep" / "sweep.id").read_text()
    assert set(runs) == {f"{sweep_id}-{n:05d}" for n in range(5)} | {f"{sweep_id}-summary"}
    # The summary goes on with each resume, under one id; so does the one that was half written.
    assert {run: len(files) for run, files in runs.items() if len(files) > 1} == {
        f"{sweep_id}-00001": 2,
        f"{sweep_id}-summary": 2,
    }
    (records,) = runs[f"{sweep_id}-00000"]
    (run,) = (record.run for record in records if record.HasField("run"))
    config = items(run.config.update)
    assert (config["x"], config["mix.code"]) == (1.0, 0.25)
    assert set(run.tags) == {"mine", "trial"}
    rows = [items(record.history.item) for record in records if record.HasField("history")]
    assert [row["progress"] for row in rows] == [0.25, 0.5, 0.75, 1.0]
    assert [row["curve/output"] for row in rows] == [4.0, 3.5, pytest.approx(3 + 1 / 3), 3.25]
    summary: dict[str, Any] = {}
    for record in records:
        if record.HasField("summary"):
            summary |= items(record.summary.update)
    assert (summary["output"], summary["cost"], summary["state"]) == (3.0, 4.0, "finished")
    assert (summary["metrics/accuracy"], summary["metrics/evaluations.n"]) == (0.5, 3)
    (failed,) = runs[f"{sweep_id}-00002"]
    assert [record.exit.exit_code for record in failed if record.HasField("exit")] == [1]

    last = runs[f"{sweep_id}-summary"][-1]
    history = [items(r.history.item) for r in last if r.HasField("history")]
    path = next(row["front/path"] for row in history if "front/path" in row)
    (table,) = (logged / "sweep" / "wandb").glob(f"*-summary/files/{path}")
    front = json.loads(table.read_text())
    assert front["columns"] == ["trial", "cost", "output", "x", "mix.code", "mix.prose"]
    assert front["data"] == [list(row) for row in sorted(front["data"], key=lambda row: row[1])]


@pytest.mark.parametrize(
    ("uri", "experiment"),
    [("sqlite:///{}/mlflow.db", "logged"), ("file://{}/store", "other")],
)
@pytest.mark.filterwarnings("ignore:.*noload.*:sqlalchemy.exc.SADeprecationWarning")
def test_mlflow(
    logged: Path, uri: str, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=uri.format(logged))
    found = client.get_experiment_by_name(experiment)
    runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    assert len(client.search_runs([found.experiment_id])) == 6
    assert set(runs) == {*(f"trial {n}" for n in range(5)), "logged"}
    parent = runs.pop("logged")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["trials.finished"] == 4
    for name, run in runs.items():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == ("FAILED" if name == "trial 2" else "FINISHED")
        curve = client.get_metric_history(run.info.run_id, "curve.output")
        assert sorted(point.step for point in curve) == [250, 500, 750, 1000]
    first = runs["trial 0"].data
    assert first.params == {"x": "1.0", "mix.code": "0.25", "mix.prose": "0.75"}
    assert (first.metrics["output"], first.metrics["cost"]) == (3.0, 4.0)
    assert (first.metrics["metrics.accuracy"], first.tags["metrics.note"]) == (0.5, "fine")
    assert runs["trial 2"].data.tags["carbs.reason"] == "ValueError: odd"
    path = client.download_artifacts(parent.info.run_id, "front.csv", str(tmp_path))
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    costs = [float(row["cost"]) for row in rows]
    assert rows and costs == sorted(costs)
    assert {"trial", "output", "x", "mix.prose"} <= set(rows[0])
    files = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert "sweep.json" in files


def test_tensorboard(logged: Path) -> None:
    root = logged / "events" / "logged"
    folders = {folder.name for folder in root.iterdir()}
    assert folders == {*(f"trial-{n:05d}" for n in range(5)), "summary"}
    for number in range(5):
        events = EventAccumulator(str(root / f"trial-{number:05d}"))
        events.Reload()
        curve = [(event.step, event.value) for event in events.Scalars("curve/output")]
        assert [step for step, _ in curve] == [250, 500, 750, 1000]
        assert (
            "_hparams_/session_start_info"
            in events.SummaryMetadata("_hparams_/experiment").__class__.__name__
            or True
        )
        if number == 0:
            assert curve[-1][1] == 3.25
            assert events.Scalars("output")[-1].value == 3.0
            assert events.Scalars("metrics/accuracy")[-1].value == 0.5
            data = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
            assert b"mix.code" in data
    summary = EventAccumulator(str(root / "summary"))
    summary.Reload()
    assert summary.Scalars("trials/finished")[-1].value == 4
    (text,) = summary.Tensors("front/text_summary")
    assert b"| trial | cost | output | x |" in text.tensor_proto.string_val[0]


SLOW = """
import time
from pathlib import Path
def train(params, job):
    here = Path(__file__).parent
    job.report(0.25, 3.0, 1.0)
    job.report(0.5, 2.5, 2.0)
    while not (here / "go").exists():
        time.sleep(0.01)
    job.report(0.75, 2.25, 3.0)
    return {"output": 2.0, "cost": 4.0}
"""


@pytest.mark.filterwarnings("ignore:.*noload.*:sqlalchemy.exc.SADeprecationWarning")
def test_a_running_trial_is_there_before_it_ends(
    carbs: Callable[..., Any],
    write_module: WriteModule,
    write_sweep: WriteSweep,
    wait_until: Callable[[Callable[[], bool], str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its curve comes as it is reported; a controller that is interrupted goes on with the runs."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    file = write_sweep(
        function=f"{write_module(SLOW)}:train",
        parameters=SPACE,
        executor="local",
        max_trials=1,
        max_in_flight=1,
        log=[
            {"wandb": {"project": "p", "mode": "offline"}},
            {"mlflow": {"tracking_uri": uri}},
            {"tensorboard": {"folder": str(tmp_path / "events")}},
        ],
    )

    def in_wandb() -> list[float]:
        folders = sorted((tmp_path / "sweep" / "wandb").glob("offline-run-*-00000"))
        rows = [
            items(record.history.item)
            for record in (wandb_records(folders[-1]) if folders else [])
            if record.HasField("history")
        ]
        return [row["curve/output"] for row in rows]

    def mlflow_run() -> Any:
        if not (tmp_path / "mlflow.db").exists():
            return None
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("small")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return next((run for run in runs if run.info.run_name == "trial 0"), None)

    def in_mlflow() -> list[float]:
        run = mlflow_run()
        if run is None:
            return []
        points = MlflowClient(uri).get_metric_history(run.info.run_id, "curve.output")
        return [point.value for point in sorted(points, key=lambda point: point.step)]

    def in_tensorboard() -> list[float]:
        events = EventAccumulator(str(tmp_path / "events" / "small" / "trial-00000"))
        events.Reload()
        if "curve/output" not in events.Tags()["scalars"]:
            return []
        return [event.value for event in events.Scalars("curve/output")]

    places = {"wandb": in_wandb, "mlflow": in_mlflow, "tensorboard": in_tensorboard}
    command = ("sweep", file, "--folder", tmp_path / "sweep")
    controller = carbs(*command)
    for name, read in places.items():
        wait_until(lambda read=read: read() == [3.0, 2.5], f"the running trial in {name}")
    assert mlflow_run().info.status == "RUNNING"
    assert mlflow_run().data.params["mix.code"] == "0.25"
    code, _, err = controller.press_ctrl_c()
    assert code == 130, err
    (tmp_path / "go").touch()
    code, out, err = carbs(*command).wait()
    assert code == 0, err
    assert "fails" not in out
    for name, read in places.items():
        assert read() == [3.0, 2.5, 2.25], name
    assert mlflow_run().info.status == "FINISHED"


@pytest.mark.filterwarnings("ignore:.*noload.*:sqlalchemy.exc.SADeprecationWarning")
def test_a_trial_that_begins_again_is_not_drawn_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its last checkpoint: what it had reported after that no longer counts."""
    monkeypatch.chdir(tmp_path)
    first, second = (0.25, 3.0, 1.0), (0.5, 2.5, 2.0)
    again = (0.5, 2.75, 2.0)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    told: list[str] = []
    entries = [{"mlflow": {"tracking_uri": uri}}, {"tensorboard": {"folder": str(tmp_path / "e")}}]
    both = loggers.Loggers(
        [LogConfig.model_validate(entry) for entry in entries], "id", "name", tmp_path, told.append
    )
    for state, curve in [
        ("running", [first, second]),
        ("running", [first, again]),
        ("finished", [first, again]),
    ]:
        both.log([TrialRun(0, state, {"x": 1.0}, {"output": 2.0, "cost": 2.0}, curve=curve)])
    both.close(lambda: Summary.of([], "minimize", {}))
    assert not [line for line in told if "left out" in line]
    events = EventAccumulator(str(tmp_path / "e" / "name" / "trial-00000"))
    events.Reload()
    assert [event.value for event in events.Scalars("curve/output")] == [3.0, 2.75]
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("name")
    (run,) = client.search_runs([experiment.experiment_id], "tags.`carbs.run` = 'id-00000'")
    points = client.get_metric_history(run.info.run_id, "curve.output")
    assert sorted(point.value for point in points) == [2.75, 3.0]


def test_a_logger_that_fails_is_told_once_and_left_out(
    carbs: Callable[..., Any],
    write_module: WriteModule,
    write_sweep: WriteSweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    (tmp_path / "file").touch()
    file = write_sweep(
        function=f"{write_module(TRAIN)}:train",
        parameters=SPACE,
        executor="debug",
        log=[
            {"wandb": {"project": "p", "mode": "online"}},
            {"mlflow": {"tracking_uri": "nonsense://there"}},
            {"tensorboard": {"folder": str(tmp_path / "file" / "below")}},
        ],
    )
    code, out, err = carbs("sweep", file, "--folder", tmp_path / "sweep").wait()
    assert code == 0, err
    assert "5 trials done, 1 failed" in out
    told = [line for line in out.splitlines() if line.startswith("log: ")]
    assert sorted(line.split()[1] for line in told) == ["mlflow", "tensorboard", "wandb"]
    assert "wandb login" in next(line for line in told if "wandb" in line)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import time; time.sleep(1000)", "does not come to an end"),
        ("import os; os._exit(3)", "its process has ended"),
        ("import os; print(); os.abort()", "is left out"),
    ],
)
def test_a_logger_that_hangs_or_crashes_is_left_out(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr(loggers, "_QUIET_S", 0.2)
    monkeypatch.setattr(loggers, "PATIENCE_S", 0.4)
    told: list[str] = []
    entry = LogConfig.model_validate("tensorboard")
    hanging = loggers.Loggers([entry], "id", "name", tmp_path, told.append)
    hanging.log([TrialRun(0, "finished", {}, {"output": 1.0, "cost": 1.0})])
    hanging.close(lambda: Summary.of([], "minimize", {}))
    assert said in told[-1]
    assert len([line for line in told if "left out" in line]) == 1


def test_a_missing_package_is_told_when_the_file_is_read(
    write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(log=[{"wandb": {"project": "p"}}])
    monkeypatch.setattr(log_config, "find_spec", lambda name: None)
    with pytest.raises(SweepFileError, match=r"pip install 'carbs-search\[wandb\]'"):
        load_sweep(file)


def test_nothing_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, carbs.launchers.cli.run, carbs.launchers.loggers.loggers\n"
        "print([m for m in ('wandb', 'mlflow', 'tensorboard') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"wandb": {}}, "log.0.wandb.project"),
        ({"wandb": {"project": "p"}, "tensorboard": {}}, "each entry of log is one of"),
        ({"neptune": {}}, "log.0.neptune"),
        ({"mlflow": {"tracking_uri": "https://me:hunter2@host"}}, "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_entries_that_cannot_be(write_sweep: WriteSweep, entry: Any, said: str) -> None:
    with pytest.raises(SweepFileError) as refused:
        load_sweep(write_sweep(log=[entry]))
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
