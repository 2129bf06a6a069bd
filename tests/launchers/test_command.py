"""Commands: a script that knows nothing of carbs, swept by its command line."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.trial import FrozenTrial, TrialState

from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.errors import SweepFileError
from carbs.launchers.job.command import Command, overrides
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
from carbs.launchers.job.protocol import Job, KilledError, Preempted
from carbs.launchers.job.runner import run
from carbs.launchers.job.script import run_script

WriteSweep = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool], str], None]
Carbs = Callable[..., Any]
RunCli = Callable[..., tuple[int, str, str]]

SCRIPT = Path(__file__).parent / "plain_training.py"
MIX = {"mix": ("code", "prose", "logs")}


def filled(command: str | list[str], params: dict[str, Any], **fields: Any) -> list[str]:
    made = Command.of(command, is_shell=fields.get("is_shell", False), measures_cost=True)
    return made.filled(params, {"seed": "3", "folder": "/a b", "python": "py"})


def test_a_command_is_split_before_it_is_filled_in() -> None:
    params = {"lr": 0.003, "name": 'a "b; c', "mix": {"code": 0.25, "prose": 0.75}}
    assert filled("{python} 'my train.py' --lr {lr} --name={name} {seed}", params) == [
        *("py", "my train.py", "--lr", "0.003", '--name=a "b; c', "3")
    ]
    assert filled(["x", "{folder}/{mix.code}", "{{}}"], params) == ["x", "/a b/0.25", "{}"]
    assert json.loads(filled("x {mix}", params)[1]) == {"code": 0.25, "prose": 0.75}


def test_a_shell_sees_quoted_values() -> None:
    said = filled("echo {name} > {folder}/out", {"name": "$(id); 'x'"}, is_shell=True)
    assert said == ["bash", "-c", "echo '$(id); '\"'\"'x'\"'\"'' > '/a b'/out"]


def test_what_does_not_exist_in_a_trial_is_left_out() -> None:
    command = "x --optimizer {optimizer} --momentum {momentum} --m={momentum} {overrides}"
    assert filled(command, {"optimizer": "adamw"}) == [
        *("x", "--optimizer", "adamw", "optimizer=adamw")
    ]


def test_a_name_may_have_dots(write_sweep: WriteSweep, run_cli: RunCli, tmp_path: Path) -> None:
    """From the command's template to the study, the constraint, the plan and the report."""
    (tmp_path / "script.py").write_text(
        "import json, sys\n"
        "size, code, *every = sys.argv[1:]\n"
        "assert f'model.width={size}' in every and f'mix.code={code}' in every\n"
        "print(json.dumps({'output': 1 + float(size) ** -0.5, 'cost': float(size)}))\n"
    )
    size = {"space": "log", "min": 8, "is_integer": True, "search_center": 8, "scale": 0.5}
    parts = {"components": ["code", "prose"], "search_center": {"code": 0.5, "prose": 0.5}}
    file = write_sweep(
        function=None,
        command="{python} script.py {model.width} {mix.code} {overrides}",
        parameters={
            "model.width": size,
            "optimizer": {"space": "choice", "choices": ["sgd", "adam"], "search_center": "sgd"},
            "optimizer.lr": {"space": "log", "search_center": 0.1, "when": {"optimizer": "sgd"}},
            "mix": {"space": "mixture", **parts},
            "model.depth": {"space": "linear", "is_integer": True, "fixed": 2},
        },
        constraints=["model.width * mix.code < 64 or optimizer.lr < 1"],
        cost="model.width",
        executor="debug",
    )
    folder = tmp_path / "sweep"
    code, out, err = run_cli("sweep", file, "--folder", folder)
    assert code == 0, err
    assert "model.width=8 optimizer=sgd optimizer.lr=0.1 " in out
    rows = list(csv.DictReader(io.StringIO(run_cli("export", folder)[1])))
    assert len(rows) == 6 and {row["model.depth"] for row in rows} == {"2"}
    assert all(float(row["cost"]) == float(row["model.width"]) for row in rows)
    code, out, err = run_cli("plan", folder, "--cost", "500", "--set", "model.width=500")
    assert code == 0 and "model.width=500 " in out, err
    assert "model.width" in (folder / "report.html").read_text()


def test_overrides_are_read_by_hydra_as_they_were_meant() -> None:
    values = {
        "lr": 1e-05,
        "model.width": 64,
        "flag": True,
        **{
            f"text{i}": text
            for i, text in enumerate(
                ["adamw", "true", "7", "a b", "it's", "a,b=c", "back\\", "\\'", "${x}", "", "nan"]
            )
        },
    }
    parser = OverridesParser.create()
    parsed = {p.key_or_group: p.value() for p in parser.parse_overrides(overrides(values))}
    assert {key: str(value) for key, value in parsed.items()} == {
        key: str(value) for key, value in values.items()
    }
    assert overrides({"mix": {"code": 0.5, "prose": 0.5}}) == ["mix.code=0.5", "mix.prose=0.5"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"command": "python t.py --lr {lr_}"}, ["line 8: command", "{lr_}", "did you mean {lr}"]),
        ({"command": "python t.py"}, ["parameter 'lr' is not in the command", "{overrides}"]),
        ({"command": "python t.py x{overrides}"}, ["must be a word of its own"]),
        ({"command": "python t.py {lr"}, ["single '{'", "'{{'"]),
        ({"command": "python 't.py {lr}"}, ["cannot be split into words", "quotation"]),
        ({"command": ""}, ["the command is empty"]),
        ({"command": ["x", "{lr}"], "shell": True}, ["in one line, not a list"]),
        ({"command": "x {lr}", "function": "a:b"}, ["function or command, not both"]),
        ({"command": "x {lr}", "settings": {"a": 1}}, ["settings are for a function"]),
        ({"shell": True, "function": "a:b"}, ["shell: true belongs to a command"]),
        ({}, ["missing key 'function'", "command"]),
    ],
)
def test_a_mistake_in_a_command_is_named(
    write_sweep: WriteSweep, keys: dict[str, Any], said: list[str]
) -> None:
    lr = {"space": "log", "search_center": 0.1}
    file = write_sweep(**{"function": None, **keys, "parameters": {"lr": lr}})
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(file)
    for words in said:
        assert words in str(refusal.value)


def test_all_but_one_component_of_a_mixture_must_be_there() -> None:
    def check(text: str) -> None:
        Command.of(text, is_shell=False, measures_cost=True).check(MIX)

    for text in ("x {mix}", "x {mix.code} {mix.logs}", "x {overrides}", "x {params_file}"):
        check(text)
    with pytest.raises(ValueError, match=r"add \{mix.prose\}, \{mix.logs\}"):
        check("x {mix.code}")


# One script, one job.


@pytest.fixture
def run_job(tmp_path: Path) -> Callable[..., JobReport | None]:
    """Runs a job whose command is a Python script of these lines; returns its report."""

    def run_job(*lines: str, **fields: Any) -> JobReport | None:
        (tmp_path / "script.py").write_text(
            "import json, os, signal, sys, time, subprocess\n" + "\n".join(lines)
        )
        words = fields.pop("words", (sys.executable, "script.py", "{overrides}"))
        command = Command(words=words, **fields.pop("command", {}))
        fields = {"params": {"x": 2.0}, "seed": 5, "settings": {}, **fields}
        write_job(
            tmp_path / "job",
            JobFile(
                command=command,
                python_path=[str(tmp_path)],
                shared_folder=tmp_path / "shared",
                **fields,
            ),
        )
        run(str(tmp_path / "job"))
        return read_report(tmp_path / "job")

    return run_job


RunJob = Callable[..., JobReport | None]


def test_the_last_json_line_is_the_result(run_job: RunJob, capfd: Any) -> None:
    report = run_job(
        'print("epoch 1")',
        'print(json.dumps({"output": 9, "cost": 1}))',
        'print("{not json}")',
        'print(json.dumps({"output": 1.5, "cost": 3, "tokens": 7, "metrics": {"argv": sys.argv}}))',
        'print("bye")',
    )
    assert isinstance(report, Finished)
    assert (report.result.output, report.result.cost) == (1.5, 3.0)
    assert report.result.metrics == {"tokens": 7, "argv": ["script.py", "x=2.0"]}
    assert "epoch 1" in capfd.readouterr().out  # the log has it all


def test_the_result_may_be_in_the_file(run_job: RunJob) -> None:
    report = run_job(
        'print(json.dumps({"output": 9, "cost": 1}))',
        'with open(os.environ["CARBS_RESULT"], "w") as f: json.dump({"output": 2}, f, indent=1)',
    )
    assert isinstance(report, Finished)
    assert report.result.output == 2
    assert 0 < report.result.cost < 60  # seconds, measured


def test_seconds_are_no_other_unit(run_job: RunJob) -> None:
    report = run_job('print(json.dumps({"output": 2}))', command={"measures_cost": False})
    assert isinstance(report, Failed)
    assert "cost_unit is another" in report.reason


def test_the_environment_says_where_things_go(run_job: RunJob, tmp_path: Path) -> None:
    report = run_job(
        'found = {k: v for k, v in os.environ.items() if k.startswith("CARBS_")}',
        'print(json.dumps({"output": 1, "cost": 1, **found, "cwd": os.getcwd()}))',
    )
    assert isinstance(report, Finished)
    job = str(tmp_path / "job")
    assert report.result.metrics == {
        "CARBS_RESULT": f"{job}/result.json",
        "CARBS_PROGRESS": f"{job}/progress.jsonl",
        "CARBS_FOLDER": job,
        "CARBS_CHECKPOINT_FOLDER": f"{job}/checkpoints",
        "CARBS_SHARED_FOLDER": str(tmp_path / "shared"),
        "CARBS_SEED": "5",
        "cwd": str(tmp_path),
    } | {k: v for k, v in os.environ.items() if k.startswith(("CARBS_TEST", "CARBS_REQUIRE"))}


def test_curves_come_by_output_and_by_file(run_job: RunJob, tmp_path: Path) -> None:
    report = run_job(
        "def say(**point): print(json.dumps(point))",
        "say(step=0, n_steps=4, output=4, cost=1)",  # nothing is done yet: left out
        "say(step=1, n_steps=4, output=3, cost=1)",
        'with open(os.environ["CARBS_PROGRESS"], "a") as f:',
        '    f.write(json.dumps({"progress": 0.5, "output": 2, "cost": 2}) + "\\n")',
        # The file is looked at now and then; what comes later would be first otherwise.
        'curve, end = os.environ["CARBS_FOLDER"] + "/curve.jsonl", time.monotonic() + 60',
        "def is_read(): return os.path.exists(curve) and '0.5' in open(curve).read()",
        "while not is_read() and time.monotonic() < end: time.sleep(0.02)",
        "say(step=4, n_steps=4, output=1, cost=4)",
    )
    assert isinstance(report, Finished)  # the end of the curve is the result
    assert (report.result.output, report.result.cost) == (1, 4)
    curve = [(point.progress, point.output) for point in read_curve(tmp_path / "job")]
    assert curve == [(0.25, 3), (0.5, 2), (1, 1)]


@pytest.mark.parametrize(
    ("lines", "reason", "exception", "has_begun"),
    [
        ('raise RuntimeError("went wrong")', "exit code 1: RuntimeError: went wrong", True, True),
        ('print("no good", file=sys.stderr); sys.exit(3)', "exit code 3: no good", True, True),
        ('print(json.dumps({"failure": "NaN", "cost": 2})); sys.exit(1)', "NaN", False, True),
        ('print(json.dumps({"output": float("nan"), "cost": 2}))', "output is nan", False, True),
        ('print("hello")', "ended without a result", True, True),
        ("import no_such_module", "ModuleNotFoundError", True, False),
        ("def", "SyntaxError", True, False),
    ],
)
def test_an_exit_is_judged(
    run_job: RunJob, lines: str, reason: str, exception: bool, has_begun: bool
) -> None:
    report = run_job(lines)
    assert isinstance(report, Failed)
    assert reason in report.reason
    assert (report.exception is not None) == exception
    assert report.has_begun == has_begun


def test_only_the_traceback_is_evidence(run_job: RunJob) -> None:
    """A warning on the way is no reason to blame the machine."""
    report = run_job(
        'print("Connection refused, trying again", file=sys.stderr)',
        'raise ValueError("bad width")',
    )
    assert isinstance(report, Failed)
    assert report.traceback.startswith("Traceback")
    assert "Connection refused" not in report.traceback


def test_a_program_that_is_not_there(run_job: RunJob) -> None:
    report = run_job(words=("no-such-program", "{overrides}"))
    assert isinstance(report, Failed)
    assert "cannot start 'no-such-program'" in report.reason
    assert not report.has_begun


def test_a_killed_script_leaves_no_report(run_job: RunJob) -> None:
    with pytest.raises(KilledError, match="SIGKILL"):
        run_job("os.kill(os.getpid(), signal.SIGKILL)")


def test_a_shell_tells_of_signals_by_its_exit_code(run_job: RunJob) -> None:
    with pytest.raises(KilledError, match="SIGKILL"):
        run_job(
            "os.kill(os.getpid(), signal.SIGKILL)",
            words=(f"{sys.executable} script.py {{x}}; exit $?",),
            command={"is_shell": True},
        )


def test_early_stopping_ends_a_script_that_does_not_want_to(
    run_job: RunJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carbs.launchers.job.script.STOP_GRACE_S", 0.3)
    (tmp_path / "job").mkdir()
    stop(tmp_path / "job")
    before = set(psutil.Process().children(recursive=True))  # of other tests
    report = run_job(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        'child = subprocess.Popen(["sleep", "600"], start_new_session=True)',
        'print(json.dumps({"progress": 0.1, "output": 2, "cost": 7, "child": child.pid}))',
        "time.sleep(600)",
    )
    assert isinstance(report, Stopped)
    assert report.cost == 7
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize(
    "last",
    [
        'print(json.dumps({"output": 1.5, "cost": 9}))',
        'print(json.dumps({"progress": 1, "output": 1.5, "cost": 9}))',
        'write("CARBS_RESULT", {"output": 1.5, "cost": 9})',
        'write("CARBS_PROGRESS", {"progress": 1, "output": 1.5, "cost": 9})',
    ],
)
@pytest.mark.parametrize("end", ["sys.exit(0)", "time.sleep(1)"])
def test_a_result_that_is_there_is_not_stopped_early(
    run_job: RunJob, tmp_path: Path, last: str, end: str
) -> None:
    """The wish to stop came when the script had done its work, and was about to end."""
    stop_file = tmp_path / "job" / "stop.json"
    report = run_job(
        "def write(name, said):",
        '    open(os.environ[name], "a").write(json.dumps(said) + "\\n")',
        'write("CARBS_PROGRESS", {"progress": 0.5, "output": 2, "cost": 5})',
        last,
        f'open({str(stop_file)!r}, "w").close()',
        end,
    )
    assert isinstance(report, Finished), report
    assert (report.result.output, report.result.cost) == (1.5, 9)


def test_what_a_script_leaves_behind_is_ended(run_job: RunJob, tmp_path: Path) -> None:
    report = run_job(
        'child = subprocess.Popen(["sleep", "600"], start_new_session=True)',
        'print(json.dumps({"output": 2, "cost": 7, "child": child.pid}))',
    )
    assert isinstance(report, Finished)
    assert not psutil.pid_exists(report.result.metrics["child"])


def job_in(folder: Path, **fields: Any) -> Job:
    folder.mkdir()
    return Job(folder, folder, **fields)


def test_a_script_that_asks_for_it_is_told_of_preemption(tmp_path: Path) -> None:
    """One that does not keeps its time."""
    job = job_in(tmp_path / "job")
    job.request_checkpoint("SIGUSR2")
    listening = (
        "import os, signal, sys, time\n"
        "def end(*_):\n"
        "    open(os.environ['CARBS_CHECKPOINT_FOLDER'] + '/step-1', 'w').close(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(600)\n"
    )
    # Slurm sends its signal to all processes.
    deaf = (
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGUSR2)\ntime.sleep(0.5)\n"
        'print(\'{{"output": 1, "cost": 1}}\')'
    )

    def start(code: str) -> Any:
        return run_script(Command(words=(sys.executable, "-c", code)), {}, job)

    with pytest.raises(Preempted, match="SIGUSR2"):
        start(listening)
    assert (job.checkpoint_folder / "step-1").exists()
    assert start(deaf)["output"] == 1


def test_measured_seconds_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    (tmp_path / "00003-1").mkdir()
    (tmp_path / "00003-1" / "seconds").write_text("100")
    job = job_in(tmp_path / "00003-2", checkpoint_folder=checkpoints)
    command = Command(words=(sys.executable, "-c", "print('{{\"output\": 1}}')"))
    assert run_script(command, {}, job)["cost"] < 60  # there is none: it began anew
    (checkpoints / "step-1").touch()
    assert 100 < run_script(command, {}, job)["cost"] < 160


# Whole sweeps.


@pytest.fixture
def script_sweep(write_sweep: WriteSweep, tmp_path: Path) -> Callable[..., Path]:
    """A sweep over the plain PyTorch loop of this folder; ``mishaps`` says what befalls trials."""
    shutil.copy(SCRIPT, tmp_path / "plain_training.py")

    def script_sweep(**keys: Any) -> Path:
        return write_sweep(
            **{
                "function": None,
                "command": f"{sys.executable} plain_training.py --lr {{lr}} --width {{width}} "
                f"--trial {{seed}} --notes {tmp_path}",
                "parameters": {
                    "lr": {"space": "log", "min": 1e-4, "max": 0.3, "search_center": 0.1},
                    "width": {
                        "space": "log",
                        "min": 2,
                        "max": 64,
                        "is_integer": True,
                        "search_center": 8,
                    },
                },
                **keys,
            }
        )

    return script_sweep


def stored_trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'study.db'}").trials


def started(tmp_path: Path) -> list[str]:
    file = tmp_path / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


def test_a_local_job_that_meets_its_time_limit_was_too_slow(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    file = write_sweep(
        function=None,
        command='bash -c "sleep 600" {x}',
        max_trials=1,
    )
    limit = {"executor_options": {"timeout_min": 0.1}}  # a file says whole minutes
    sweep = Sweep(load_sweep(file).model_copy(update=limit), tmp_path / "sweep", (str(tmp_path),))
    with Controller(sweep) as controller:
        (failure,) = controller.run().records.failures
    assert failure.reason == "too slow: time limit, and no newer checkpoint"
    assert failure.cost == pytest.approx(6, abs=4)
    assert "attempts" not in sweep.study.trials[0].user_attrs


def test_a_plain_script_is_swept_through_a_crash_a_kill_and_a_new_controller(
    script_sweep: Callable[..., Path], tmp_path: Path, carbs: Carbs, wait_until: WaitUntil
) -> None:
    file, folder = script_sweep(max_trials=4), tmp_path / "sweep"
    # Trial 0 crashes, trial 1 is killed once, trials 2 and 3 wait.
    for name in ("crash-0", "kill-1", "wait-2", "wait-3"):
        (tmp_path / name).touch()
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: {"start 2", "start 3"} <= set(started(tmp_path)), "trials 2 and 3")
    controller.process.send_signal(signal.SIGKILL)
    controller.process.wait()
    (tmp_path / "wait-2").unlink()
    wait_until(lambda: "end 2" in started(tmp_path), "trial 2 to end without a controller")
    (tmp_path / "wait-3").unlink()
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err + out
    assert "3 trials done, 1 failed" in out
    trials = stored_trials(folder)
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [0]
    assert trials[0].user_attrs["failure"]["reason"] == "exit code 1: ValueError: crash"
    (past,) = trials[1].user_attrs["attempts"]
    assert "SIGKILL" in past["reason"]
    # Nothing was done twice, but for what was killed.
    starts = [line for line in started(tmp_path) if line.startswith("start")]
    assert sorted(starts) == ["start 0", "start 1", "start 1", "start 2", "start 3"]
    # No word from the script of what it cost: seconds were measured.
    assert all(0 < t.values[1] < 60 for t in trials[1:])
    assert len(trials[1].user_attrs["curve"]) == 10


def test_a_hopeless_script_is_stopped(
    script_sweep: Callable[..., Path], tmp_path: Path, wait_until: WaitUntil
) -> None:
    """Once finished runs have shown how curves go; it would wait for ever."""
    file = script_sweep(
        early_stopping={"miss_share": 0.3, "min_progress": 0.1}, max_in_flight=1, max_trials=4
    )
    (tmp_path / "hopeless-3").touch()
    sweep = Sweep(load_sweep(file), tmp_path / "sweep", (str(tmp_path),))
    with Controller(sweep) as controller:
        status = controller.run()
    trials = stored_trials(tmp_path / "sweep")
    assert trials[3].state == TrialState.PRUNED
    assert "end 3" not in started(tmp_path)
    assert [o.is_forecast for o in status.records.observations].count(True) >= 1
    pid = int((tmp_path / "pid-3").read_text())
    wait_until(lambda: not psutil.pid_exists(pid), "the script's end")
