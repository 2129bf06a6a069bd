"""Sweeps from end to end, with a training function of a few lines; and controllers that die."""

from __future__ import annotations

import importlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from carbs import launchers
from carbs.analysis import study_space
from carbs.launchers.cli.progress import best_by_decade, line as progress_line, measured
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.interrupts import Interrupted
from carbs.launchers.controller.outcomes import BadConfiguration
from carbs.launchers.controller.sweep import Status, Sweep
from carbs.launchers.controller.trials import Ended
from carbs.launchers.errors import FolderError, SweepFileError, SweepStoppedError
from carbs.launchers.job.protocol import Result
from carbs.search_space import SearchSpace

WriteModule = Callable[[str], str]
WriteSweep = Callable[..., Path]
WaitUntil = Callable[[Callable[[], bool], str], None]
Carbs = Callable[..., Any]

TRAINING = '''
import math, os, threading
from pathlib import Path
import numpy as np
from carbs.launchers.job.protocol import BadConfigurationError, StoppedEarly

def note(job, what):
    """One line in one write: jobs append at the same time."""
    with open(job.settings["log"], "a") as log:
        log.write(f"{what} {job.folder.name}\\n")

def wait_until(condition):
    nothing = threading.Event()
    for _ in range(3000):
        if condition():
            return
        nothing.wait(0.01)
    raise TimeoutError

def law(params):
    x = params["x"]
    return {"output": 1 + x**-0.5, "cost": 1 + x, "metrics": {"x": x, "list": [1, 2]}}

def train(params, job):
    note(job, "start")
    BODY
    note(job, "finish")
    return law(params)
'''


@pytest.fixture
def make_sweep(write_module: WriteModule, write_sweep: WriteSweep, log: Path) -> Callable[..., Any]:
    """Writes a sweep whose function has this body; returns its file."""

    def make_sweep(body: str = "pass", settings: dict[str, Any] | None = None, **keys: Any) -> Path:
        name = write_module(TRAINING.replace("BODY", body))
        settings = {"log": str(log), **(settings or {})}
        return write_sweep(function=f"{name}:train", settings=settings, **keys)

    return make_sweep


@pytest.fixture
def wait_for(wait_until: WaitUntil, log: Path) -> Callable[..., None]:
    """Waits until the jobs have noted these lines."""

    def wait_for(*lines: str) -> None:
        wait_until(lambda: set(lines) <= set(log.read_text().splitlines()), f"{lines}")

    return wait_for


def open_sweep(file: Path, **overrides: Any) -> Sweep:
    return Sweep(load_sweep(file, **overrides), file.parent / "sweep", (str(file.parent),))


def run(sweep: Sweep, on_end: Callable[[Ended], None] = lambda ended: None) -> Status:
    with Controller(sweep) as controller:
        return controller.run(on_end=on_end)


def counts(log: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each trial (not attempt) has started and has finished."""
    starts: Counter[str] = Counter()
    finishes: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        what, folder = line.split()
        (starts if what == "start" else finishes)[folder.split("-")[0]] += 1
    return starts, finishes


def stored_trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="small", storage=f"sqlite:///{folder / 'study.db'}").trials


def test_a_sweep_in_local_processes(make_sweep: Callable[..., Path], log: Path) -> None:
    # The first waits for the second to start: they run at the same time or not at all.
    file = make_sweep(
        'job.folder.name == "00000-1" and '
        'wait_until(lambda: "start 00001-1" in Path(job.settings["log"]).read_text())'
    )
    sweep = open_sweep(file)
    ended: list[Ended] = []
    n_pending: list[int] = []
    with Controller(sweep) as controller:
        status = controller.run(
            lambda now: n_pending.append(len(now.records.pending)), ended.append
        )
    assert len(status.records.observations) == 6
    assert status.records.failures == status.records.pending == []
    assert sorted(end.number for end in ended) == list(range(6))
    assert max(n_pending) == 2
    assert counts(log)[1] == {f"{number:05d}": 1 for number in range(6)}
    for trial in stored_trials(sweep.folder):
        assert trial.state == TrialState.COMPLETE
        x = trial.params["x"]
        assert trial.values == pytest.approx([1 + x**-0.5, 1 + x])
        assert trial.user_attrs["metrics"] == {"x": x, "list": [1, 2]}
    assert status.spent == pytest.approx(sum(o.cost for o in status.records.observations))
    assert status.reserved == 0


def test_the_debug_executor_runs_inside_the_controller(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep('import sys; sys.modules["carbs.launchers"].seen_here = os.getpid()')
    status = run(open_sweep(file, executor="debug"))
    assert len(status.records.observations) == 6

    assert vars(launchers).pop("seen_here") == os.getpid()


@pytest.mark.parametrize(("budget", "is_last"), [(1e4, True), (None, True), (500.0, False)])
def test_a_sweeps_last_run_at_the_cap_is_a_bet(
    make_sweep: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    budget: float | None,
    is_last: bool,
) -> None:
    """The last trial, or the last for which the budget pays."""
    asked: list[float] = []

    def recommended(space: SearchSpace, observations: Any, failures: Any, cost: float) -> Any:
        asked.append(cost)
        return space.encode_all([{"x": 77.0}])[0]

    monkeypatch.setattr("carbs.analysis.planning.choice.recommended", recommended)
    n_trials = 20 if is_last else 40
    limits = {"max_trials": n_trials, "max_cost": 80.0} | ({"budget": budget} if budget else {})
    sweep = open_sweep(make_sweep(**limits), executor="debug")
    run(sweep)
    at = [trial.params["x"] for trial in stored_trials(sweep.folder)]
    assert asked == [pytest.approx(80.0, rel=0.1)]
    assert at.count(pytest.approx(77.0)) == 1
    assert (at[-1] == pytest.approx(77.0)) == is_last


def test_jobs_of_a_trial_have_their_own_seed_and_the_shared_folder(
    make_sweep: Callable[..., Path], log: Path
) -> None:
    body = 'note(job, f"{job.seed}|{job.shared_folder.is_dir()}")'
    run(open_sweep(make_sweep(body, seed=40), executor="debug", max_trials=3))
    said = [line.split()[0] for line in log.read_text().splitlines() if "|" in line]
    assert said == ["40|True", "41|True", "42|True"]


def test_a_failing_configuration_is_a_failure_with_its_reason(
    make_sweep: Callable[..., Path],
) -> None:
    body = (
        'n = int(job.folder.name[:5])\n    if n == 2: raise BadConfigurationError("too big", 0.5)'
    )
    body += '\n    if n == 3: raise RuntimeError("went wrong")'
    sweep = open_sweep(make_sweep(body), executor="debug")
    ended: list[Ended] = []
    status = run(sweep, ended.append)
    assert {f.id: (f.reason, f.cost) for f in status.records.failures} == {
        "2": ("too big", 0.5),
        "3": ("RuntimeError: went wrong", pytest.approx(0, abs=1)),  # its seconds
    }
    assert [end.reason for end in ended] == [
        None,
        None,
        "too big",
        "RuntimeError: went wrong",
        None,
        None,
    ]
    assert len(status.records.observations) == 4
    failed = sum(f.cost or 0.0 for f in status.records.failures)
    assert failed == pytest.approx(0.5, abs=1)
    assert status.spent == pytest.approx(sum(o.cost for o in status.records.observations) + failed)
    # A program's error is a failure at once: trying it again would only cost more.
    assert not (sweep.folder / "jobs" / "00003-2").exists()


@pytest.mark.parametrize(
    "answer",
    [
        '{"output": math.nan, "cost": 1}',
        '{"output": math.inf, "cost": 1}',
        '{"output": 1, "cost": 0}',
        '{"output": 1}',
    ],
)
def test_an_impossible_result_is_a_failure_and_the_sweep_goes_on(
    make_sweep: Callable[..., Path], answer: str
) -> None:
    file = make_sweep(f'if job.folder.name == "00001-1": return {answer}')
    status = run(open_sweep(file, executor="debug", max_trials=4))
    assert len(status.records.observations) == 3
    assert [failure.id for failure in status.records.failures] == ["1"]


def test_numpy_among_the_metrics_loses_no_trial(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep('return {**law(params), "metrics": {"nll": np.float32(2)}}')
    status = run(open_sweep(file, executor="debug", max_trials=2))
    assert len(status.records.observations) == 2


def test_a_negative_cost_of_a_failure_does_not_end_the_sweep(
    make_sweep: Callable[..., Path],
) -> None:
    file = make_sweep('if job.folder.name == "00001-1": raise BadConfigurationError("bad", -1)')
    status = run(open_sweep(file, executor="debug", max_trials=3))
    assert len(status.records.observations) == 2


def test_a_job_that_dies_is_tried_once_more(make_sweep: Callable[..., Path], log: Path) -> None:
    # Trial 0 dies on its first machine, trial 1 on every.
    file = make_sweep('if job.folder.name in ("00000-1", "00001-1", "00001-2"): os._exit(3)')
    sweep = open_sweep(file, max_trials=3)
    status = run(sweep)
    assert sorted(o.id or "" for o in status.records.observations) == ["0", "2"]
    (failure,) = status.records.failures
    assert failure.id == "1"
    assert "without a report" in failure.reason
    starts, finishes = counts(log)
    assert starts == {"00000": 2, "00001": 2, "00002": 1}
    assert finishes == {"00000": 1, "00002": 1}


def test_a_sweep_in_which_nothing_succeeds_stops(make_sweep: Callable[..., Path]) -> None:
    sweep = open_sweep(make_sweep("raise RuntimeError('no such data')"), executor="debug")
    with pytest.raises(SweepStoppedError) as stop:
        run(sweep)
    for words in ("5 trials failed", "no such data", str(sweep.folder / "jobs"), "search_center"):
        assert words in str(stop.value)


def test_the_budget_is_kept_to_within_one_runs_misprediction(
    make_sweep: Callable[..., Path],
) -> None:
    file = make_sweep(budget=30, max_trials=60)
    sweep = open_sweep(file, executor="debug")
    status = run(sweep)
    overrun = max(
        trial.values[1] - (trial.user_attrs["predicted"]["predicted_cost"] or 0)
        for trial in stored_trials(sweep.folder)
    )
    assert status.spent <= 30 + max(overrun, 0)
    # And it is spent: what is left would not pay for the cheapest run.
    assert status.spent > 30 - min(o.cost for o in status.records.observations)
    assert len(status.records.observations) < 60


def test_what_runs_is_reserved_from_the_budget(
    make_sweep: Callable[..., Path], tmp_path: Path, wait_until: WaitUntil, log: Path
) -> None:
    """Six jobs that all would fit alone, and wait for each other: only some may start."""
    go = tmp_path / "go"
    file = make_sweep(
        'int(job.folder.name[:5]) > 1 and wait_until(Path(job.settings["go"]).exists)',
        {"go": str(go)},
        budget=12,
        max_in_flight=1,
    )
    run(open_sweep(file, executor="debug", max_trials=2))
    sweep = open_sweep(file, max_trials=30)
    object.__setattr__(sweep.config, "max_in_flight", 6)
    statuses: list[Status] = []

    def look(status: Status) -> None:
        statuses.append(status)
        # When nothing more can be paid for, let those that wait go on.
        if status.spent + status.reserved > 12 - 3 or len(status.records.pending) == 6:
            go.touch()

    with Controller(sweep) as controller:
        controller.run(look)
    for status in statuses:
        if status.records.pending:
            dearest = max(o.cost for o in status.records.observations)
            assert status.reserved > 0
            assert status.spent + status.reserved <= 12 + dearest


def test_only_one_controller_at_a_time(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep()
    first, second = open_sweep(file), open_sweep(file)
    with (
        Controller(first),
        pytest.raises(FolderError, match="another controller is running"),
        Controller(second),
    ):
        pytest.fail("two controllers")
    with Controller(second):
        pass


def test_a_module_that_cannot_be_imported_teaches_nothing(
    make_sweep: Callable[..., Path],
) -> None:
    """It is no configuration's fault. Five in a row stop the sweep; mended, it goes on."""
    file = make_sweep(executor="debug")
    (module,) = file.parent.glob("training_*.py")
    source = module.read_text()
    module.write_text("import no_such_module\n" + source)
    with pytest.raises(SweepStoppedError, match=r"last 5 .*no_such_module.*before the training"):
        run(open_sweep(file))
    assert open_sweep(file).status().records.failures == []
    assert {
        trial.user_attrs["job"]["attempt"] for trial in stored_trials(file.parent / "sweep")
    } == {2}
    module.write_text(source)
    importlib.invalidate_caches()
    assert len(run(open_sweep(file)).records.observations) == 6


def test_a_role_may_be_said_after_the_sweep_has_begun(make_sweep: Callable[..., Path]) -> None:
    parameters = {"size": {"space": "log", "search_center": 2.0}}
    open_sweep(make_sweep(parameters=parameters))
    parameters["size"]["role"] = "width"
    assert open_sweep(make_sweep(parameters=parameters)).space.params[0].role == "width"


def test_trials_obey_conditions_and_constraints(make_sweep: Callable[..., Path]) -> None:
    parameters = {
        "x": {"space": "log", "scale": 0.5, "search_center": 1.0},
        "kind": {"space": "choice", "choices": ["plain", "spiced"], "search_center": "plain"},
        "spice": {"space": "linear", "search_center": 0.0, "when": {"kind": "spiced"}},
    }
    file = make_sweep(
        "assert ('spice' in params) == (params['kind'] == 'spiced')",
        parameters=parameters,
        constraints=["x <= 3", "spice <= 0.5"],
        executor="debug",
        max_trials=10,
    )
    sweep = open_sweep(file)
    observations = Controller(sweep).run().records.observations
    assert len(observations) == 10
    assert all(observation.params["x"] <= 3 for observation in observations)
    assert all(observation.params.get("spice", 0) <= 0.5 for observation in observations)
    assert len({observation.params["kind"] for observation in observations}) == 2
    # The report knows what was searched; another run may have other constraints.
    assert not study_space(sweep.study).allows({"x": 4.0, "kind": "plain"})
    again = Sweep.open(sweep.folder)
    assert not again.space.allows({"x": 4.0, "kind": "plain"})
    text = file.read_text().replace("x <= 3", "x <= 2")
    file.write_text(text)
    assert not open_sweep(file).space.allows({"x": 2.5, "kind": "plain"})


def test_a_folder_of_an_earlier_release_goes_on(make_sweep: Callable[..., Path]) -> None:
    """Its study describes the parameters without the fields that were added since."""
    file = make_sweep(executor="debug", max_trials=2)
    study = open_sweep(file).study
    text = study.user_attrs["space"]
    study.set_user_attr("space", text.replace(', "when": {}', ""))
    assert study.user_attrs["space"] != text
    assert len(Controller(open_sweep(file)).run().records.observations) == 2


def test_a_folder_that_cannot_be_written(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep()
    (file.parent / "sweep").write_text("a regular file")
    with pytest.raises(FolderError, match=r"cannot write .*sweep.*--folder"):
        open_sweep(file)
    below = file.parent / "sweep" / "below"
    with pytest.raises(FolderError, match=r"cannot write .*below.*--folder"):
        Sweep(load_sweep(file), below)


def test_executor_options_are_checked(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep(executor_options={"time_out": 3})
    with pytest.raises(SweepFileError, match=r"'time_out' in executor_options.*'timeout_min'"):
        open_sweep(file)
    # Some that Slurm can do are too much for local processes.
    sweep = open_sweep(make_sweep(executor_options={"nodes": 2}))
    with pytest.raises(SweepFileError, match=r"executor_options for local: .*one node"):
        run(sweep)


def test_more_trials_continue_as_one_sweep_would_have(
    make_sweep: Callable[..., Path], log: Path
) -> None:
    file = make_sweep(max_in_flight=1)
    run(open_sweep(file, executor="debug", max_trials=5))
    in_two = run(open_sweep(file, executor="debug", max_trials=8))
    assert set(counts(log)[0].values()) == {1}
    other_folder = file.parent / "other"
    config = load_sweep(file, executor="debug", max_trials=8)
    in_one = run(Sweep(config, other_folder, (str(file.parent),)))
    assert in_two.records.observations == in_one.records.observations
    # Nothing is left to do, and so nothing is done.
    assert run(open_sweep(file, executor="debug", max_trials=8)).records == in_two.records


def test_a_controller_that_died_while_asking_leaves_nothing_behind(
    make_sweep: Callable[..., Path],
) -> None:
    file = make_sweep()
    sweep = open_sweep(file, executor="debug", max_trials=3)
    sweep.study.sampler = optuna.samplers.RandomSampler()
    sweep.study.ask()  # a trial that runs, without parameters
    status = run(sweep)
    assert len(status.records.observations) == 3
    assert status.records.failures == status.records.pending == []
    assert all(trial.state.is_finished() for trial in stored_trials(sweep.folder))


def test_a_report_written_while_no_controller_lived_is_found(
    make_sweep: Callable[..., Path], log: Path
) -> None:
    """Asked, written down, run and reported; only told it was not."""
    file = make_sweep()
    sweep = open_sweep(file, executor="debug", max_trials=3)
    with pytest.raises(KeyboardInterrupt), Controller(sweep) as controller:
        controller.run(on_change=raise_keyboard_interrupt)
    assert [trial.state for trial in stored_trials(sweep.folder)] == [TrialState.RUNNING]
    status = run(open_sweep(file, executor="debug", max_trials=3))
    assert len(status.records.observations) == 3
    assert set(counts(log)[0].values()) == {1}


def raise_keyboard_interrupt(status: Status) -> None:
    raise KeyboardInterrupt


def test_one_configuration_can_be_run_by_name(make_sweep: Callable[..., Path], log: Path) -> None:
    file = make_sweep('if params["x"] < 0: raise BadConfigurationError("negative", 2.0)')
    for _ in range(2):
        sweep = open_sweep(file, executor="debug")
        result = Controller(sweep).run_one({"x": 4.0}, "check")
        assert isinstance(result, Result)
        assert (result.output, result.cost) == (1.5, 5.0)
    assert log.read_text() == "start check-1\nfinish check-1\n"
    assert Controller(sweep).run_one({"x": -1.0}, "bad") == BadConfiguration("negative", 2.0)
    # It is no trial.
    assert sweep.status().records.observations == []


def test_ctrl_c_inside_the_controller(make_sweep: Callable[..., Path]) -> None:
    sweep = open_sweep(make_sweep(), executor="debug")

    def press(ended: Ended) -> None:
        if ended.number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        run(sweep, press)
    assert signal.getsignal(signal.SIGINT) == before
    assert len(sweep.status().records.observations) == 3
    assert (
        len(
            run(
                open_sweep(sweep.folder.parent / "sweep.yaml", executor="debug")
            ).records.observations
        )
        == 6
    )


def test_ctrl_c_leaves_jobs_running_and_the_same_command_continues(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_for: Callable[..., None],
    log: Path,
) -> None:
    go, folder = tmp_path / "go", tmp_path / "sweep"
    go.mkdir()
    body = 'wait_until((Path(job.settings["go"]) / job.folder.name[:5]).exists)'
    file = make_sweep(body, {"go": str(go)})
    command = ("sweep", file, "--folder", folder)

    controller = carbs(*command)
    wait_for("start 00000-1", "start 00001-1")
    code, out, err = controller.press_ctrl_c()
    assert (code, err) == (130, "")
    assert "interrupted: running jobs go on (trial 0: job " in out
    assert f"carbs cancel {folder}" in out
    assert f"carbs sweep {file} --folder {folder}" in out
    assert counts(log)[1] == {}

    # One finishes while there is no controller. The next one sees that, and that the other is
    # still running, before it starts another.
    (go / "00000").touch()
    wait_for("finish 00000-1")
    controller = carbs(*command)
    wait_for("start 00002-1")
    assert controller.press_ctrl_c()[0] == 130
    assert counts(log)[1] == {"00000": 1}
    for number in range(1, 6):
        (go / f"{number:05d}").touch()
    code, out, err = carbs(*command).wait()
    assert code == 0, err
    assert "6 trials done, 0 failed" in out
    starts, finishes = counts(log)
    every_trial = {f"{number:05d}": 1 for number in range(6)}
    assert starts == every_trial
    assert finishes == every_trial


def test_local_jobs_get_gpus_of_their_own(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_for: Callable[..., None],
    log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    go = tmp_path / "go"
    go.mkdir()
    body = """note(job, os.environ["CUDA_VISIBLE_DEVICES"] or "none")
    wait_until((Path(job.settings["go"]) / job.folder.name[:5]).exists)"""
    command = ("sweep", make_sweep(body, {"go": str(go)}), "--folder", tmp_path / "sweep")

    controller = carbs(*command)
    wait_for("3 00000-1", "GPU-7 00001-1")
    (go / "00001").touch()
    wait_for("GPU-7 00002-1")
    assert controller.press_ctrl_c()[0] == 130
    # The next controller knows which are taken by the jobs that the first one started.
    (go / "00002").touch()
    wait_for("finish 00002-1")
    controller = carbs(*command)
    wait_for("GPU-7 00003-1")
    for number in range(6):
        (go / f"{number:05d}").touch()
    code, _, err = controller.wait()
    assert code == 0, err

    (go / "00000").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    for options, held in [({"gpus_per_node": 2}, "3,5"), ({"gpus_per_node": 0}, "none")]:
        file = make_sweep(body, {"go": str(go)}, max_trials=1, executor_options=options)
        run(Sweep(load_sweep(file), tmp_path / held, (str(file.parent),)))
        assert f"{held} 00000-1" in log.read_text()
    file = make_sweep(executor_options={"gpus_per_node": 3})
    with pytest.raises(SweepFileError, match="gpus_per_node is 3, but this machine shows 2 GPUs"):
        run(Sweep(load_sweep(file), tmp_path / "three", (str(file.parent),)))


def test_ctrl_c_twice_cancels_the_jobs(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    go, folder = tmp_path / "go", tmp_path / "sweep"
    file = make_sweep('wait_until(Path(job.settings["go"]).exists)', {"go": str(go)})
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: len(log.read_text().splitlines()) == 2, "two jobs")
    os.killpg(controller.process.pid, signal.SIGINT)
    wait_until(lambda: "once more" in controller.output(), "the question")
    code, out, err = controller.press_ctrl_c()
    assert (code, err) == (130, "")
    assert "its jobs are cancelled" in out
    jobs = [str(trial.user_attrs["job"]["id"]) for trial in stored_trials(folder)]
    assert not any(psutil.pid_exists(int(job)) for job in jobs)
    go.touch()
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "6 trials done, 0 failed" in out
    starts, finishes = counts(log)
    assert finishes == {f"{number:05d}": 1 for number in range(6)}
    assert (starts["00000"], starts["00001"]) == (2, 2)


def test_a_second_command_on_the_same_folder_is_refused(
    make_sweep: Callable[..., Path], tmp_path: Path, carbs: Carbs
) -> None:
    file = make_sweep()
    with Controller(open_sweep(file)):
        code, out, err = carbs("sweep", file, "--folder", tmp_path / "sweep").wait()
    assert (code, out) == (2, "")
    assert err.startswith("error: another controller is running")


def test_a_controller_killed_at_any_moment_loses_and_repeats_nothing(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    folder = tmp_path / "sweep"
    file = make_sweep()
    moments: list[tuple[str, Callable[[], bool]]] = [
        ("the folder", folder.exists),
        ("the database", (folder / "study.db").exists),
        ("the first job's folder", (folder / "jobs" / "00000-1").exists),
    ]
    for n in (2, 5, 8):
        # The default binds n now.
        moments.append((f"line {n}", lambda n=n: len(log.read_text().splitlines()) >= n))  # type: ignore[misc]
    for what, has_come in moments:
        controller = carbs("sweep", file, "--folder", folder)
        process = controller.process
        wait_until(lambda: has_come() or process.poll() is not None, what)  # noqa: B023
        assert process.poll() is None, controller.wait()[2]
        process.kill()
        process.wait()
    code, out, err = carbs("sweep", file, "--folder", folder).wait()
    assert code == 0, err
    assert "6 trials done, 0 failed" in out
    trials = [trial for trial in stored_trials(folder) if "forgotten" not in trial.user_attrs]
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert all(trial.user_attrs["metrics"]["x"] == trial.params["x"] for trial in trials)
    starts, finishes = counts(log)
    assert starts == finishes == {f"{trial.number:05d}": 1 for trial in trials}


def _failing(how: str) -> str:
    return f"""if params["x"] != 1.0:
        import signal, time
        time.sleep(0.5)
        {how}
    return {{"output": 1.0, "cost": 0.5}}"""


@pytest.mark.parametrize("how", ["raise ValueError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_failures_use_up_the_budget_in_seconds(make_sweep: Callable[..., Path], how: str) -> None:
    keys: dict[str, Any] = {"max_trials": 12, "max_in_flight": 1, "budget": 2.0}
    file = make_sweep(_failing(how), **keys)
    status = run(open_sweep(file))
    assert 1 <= len(status.records.failures) <= 3
    assert status.spent >= 0.4 * (1 + len(status.records.failures))
    # Of another unit nobody knows what they have cost.
    file = make_sweep(_failing("raise ValueError"), **{**keys, "max_trials": 5}, cost_unit="FLOPs")
    status = run(Sweep(load_sweep(file), file.parent / "flops", (str(file.parent),)))
    assert (len(status.records.failures), status.spent) == (4, 0.5)


SPEED = {"space": "linear", "search_center": 0.0}
X = {"space": "log", "scale": 0.5, "search_center": 1.0}


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_sweep_learns_from_an_earlier_one(
    make_sweep: Callable[..., Path], tmp_path: Path, by_folder: bool
) -> None:
    run(open_sweep(make_sweep(executor="debug")))
    old = tmp_path / "old"
    (tmp_path / "sweep").rename(old)
    source: dict[str, Any] = {"defaults": {"speed": 1.0}}
    if by_folder:
        source["folder"] = str(old)
    else:
        source |= {"storage": f"sqlite:///{old / 'study.db'}", "study": "small"}
    keys: dict[str, Any] = {
        "executor": "debug",
        "max_trials": 2,
        "max_in_flight": 1,
        "parameters": {"x": X, "speed": SPEED},
    }

    def trials(**more: Any) -> list[Any]:
        sweep = open_sweep(make_sweep(**keys, **more))
        run(sweep)
        return [trial.params for trial in stored_trials(sweep.folder)]

    cold = trials()
    (tmp_path / "sweep").rename(tmp_path / "cold")
    file = make_sweep(**keys, warm_start=[source])
    sweep = open_sweep(file)
    # From here on the earlier sweep is needed no more, nor is the entry that named it.
    old.rename(tmp_path / "gone")
    run(sweep)
    warm = [trial.params for trial in stored_trials(sweep.folder)]
    assert warm[0] == cold[0]
    assert warm[1] != cold[1]
    again = Sweep.open(sweep.folder)
    assert len(again.sampler.earlier[0].observations) == 6
    assert again.sampler.earlier[0].defaults == {"speed": 1.0}
    assert "study.db" not in (sweep.folder / "sweep.json").read_text()


def test_an_earlier_sweep_that_cannot_be_used_is_named(
    make_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    def refusal(**source: str) -> str:
        with pytest.raises(FolderError) as refusal:
            open_sweep(make_sweep(executor="debug", warm_start=[source]))
        return str(refusal.value)

    absent = tmp_path / "absent.db"
    assert f"{tmp_path / 'nowhere'} holds no sweep" in refusal(folder=str(tmp_path / "nowhere"))
    assert "study 's' in sqlite" in refusal(storage=f"sqlite:///{absent}", study="s")
    assert not absent.exists()
    assert "cannot be read" in refusal(storage="nonsense", study="s")
    optuna.create_study(study_name="other", storage=f"sqlite:///{tmp_path / 'other.db'}")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert "no study of that name" in refusal(storage=other, study="s")
    optuna.create_study(study_name="up", storage=other, direction="maximize")
    assert "to maximize its output" in refusal(storage=other, study="up")
    # A sweep that was refused has not begun: the next one starts afresh.
    open_sweep(make_sweep(executor="debug", warm_start=[{"storage": other, "study": "other"}]))


def test_warm_start_cannot_be_added_later(make_sweep: Callable[..., Path], tmp_path: Path) -> None:
    open_sweep(make_sweep(executor="debug"))
    with pytest.raises(FolderError, match=r"'small' in .* was begun without warm_start"):
        open_sweep(make_sweep(executor="debug", warm_start=[{"folder": str(tmp_path)}]))


# Nine reports that fall to the law's output. Trial 5 is dear and bad, and once it has said so it
# waits to be stopped.
REPORTING = """
    result, is_bad = law(params), job.folder.name == "00005-1"
    is_bad and wait_until(Path(job.settings["go"]).exists)
    for step in range(1, 10):
        cost = (10 if is_bad else 1) * result["cost"] * step / 10
        job.report(step / 10, result["output"] + 1 - step / 10 + 50 * is_bad, cost)
        if is_bad and step == 4 and job.settings["waits"]:
            wait_until((job.folder / "stop.json").exists)
"""


def test_a_hopeless_run_is_stopped_also_by_a_new_controller(
    make_sweep: Callable[..., Path],
    tmp_path: Path,
    carbs: Carbs,
    wait_until: WaitUntil,
    log: Path,
) -> None:
    folder, go = tmp_path / "sweep", tmp_path / "go"
    settings = {"go": str(go), "waits": True}
    file = make_sweep(REPORTING, settings, early_stopping={"miss_share": 0.2})
    controller = carbs("sweep", file, "--folder", folder)
    wait_until(lambda: "start 00005-1" in log.read_text(), "trial 5")
    controller.process.kill()
    controller.process.wait()
    go.touch()
    ended: list[Ended] = []
    status = run(open_sweep(file), ended.append)
    assert [end.number for end in ended if end.is_stopped] == [5]
    assert progress_line(ended[-1]).startswith("trial    5  stopped: forecast")
    trials = stored_trials(folder)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED]
    assert all(len(trial.user_attrs["curve"]) == 9 for trial in trials[:5])
    full_cost = 10 * (1 + trials[5].params["x"])
    stopped = trials[5].user_attrs["stopped"]
    assert len(trials[5].user_attrs["curve"]) == 5
    assert stopped["spent"] == pytest.approx(0.5 * full_cost)
    assert stopped["cost"] == pytest.approx(full_cost)
    best = min(trial.values[0] for trial in trials[:5])
    assert best < stopped["output"] < trials[5].user_attrs["curve"][-1][1]
    finished_cost = sum(trial.values[1] for trial in trials[:5])
    assert status.spent == pytest.approx(finished_cost + 0.5 * full_cost)
    (forecast,) = [o for o in status.records.observations if o.is_forecast]
    assert forecast not in measured(status)
    assert len(measured(status)) == 5
    assert all(best != forecast.output for _, best, _ in best_by_decade(status))
    starts, _ = counts(log)
    assert set(starts.values()) == {1}


def test_a_run_at_its_end_keeps_its_result(make_sweep: Callable[..., Path], tmp_path: Path) -> None:
    """Trial 5 is dear and bad, and says so at its end alone."""
    (tmp_path / "go").touch()
    body = REPORTING.replace("step in range(1, 10)", "step in range(10 if is_bad else 1, 11)")
    body = body.replace("step == 4", "step == 10")
    body += """
    if is_bad:
        (job.folder / "stop.json").touch()
        job.report(1.0, 60.0, 100.0)
"""
    settings = {"go": str(tmp_path / "go"), "waits": False}
    file = make_sweep(body, settings, executor="debug", early_stopping={"miss_share": 0.2})
    status = run(open_sweep(file))
    assert len(measured(status)) == 6
    assert "stopped" not in stored_trials(file.parent / "sweep")[5].user_attrs


def test_nothing_is_stopped_unless_the_sweep_file_says_so(
    make_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "go").touch()
    file = make_sweep(REPORTING, {"go": str(tmp_path / "go"), "waits": False})
    sweep = open_sweep(file, executor="debug")
    assert len(run(sweep).records.observations) == 6
    assert not list(sweep.folder.glob("jobs/*/stop.json"))


def test_a_run_that_stops_itself_is_a_failure(make_sweep: Callable[..., Path]) -> None:
    file = make_sweep('if job.folder.name != "00000-1": raise StoppedEarly(0.5)')
    sweep = open_sweep(file, executor="debug", max_trials=2)
    (failure,) = run(sweep).records.failures
    assert (failure.reason, failure.cost) == ("the run stopped itself, unasked", 0.5)
    failed = Controller(sweep).run_one({"x": 1.0}, "check")
    assert failed == BadConfiguration("the run stopped itself, unasked", 0.5)
