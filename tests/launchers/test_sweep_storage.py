"""A sweep's study may lie in any database; a later controller finds it there."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.controller.trials import Ended
from carbs.storage import PatientStorage

TRAINING = """
def train(params, job):
    return {"output": 1 + params["x"] ** -0.5, "cost": 1 + params["x"], "metrics": {"a": [1, None]}}
"""


def test_a_sweep_in_any_database(
    write_module: Callable[[str], str], write_sweep: Callable[..., Path], database: str
) -> None:
    file = write_sweep(function=f"{write_module(TRAINING)}:train", executor="debug")
    for n_trials in (2, 5):
        config = load_sweep(file, storage=database, max_trials=n_trials)
        sweep = Sweep(config, file.parent / "sweep", (str(file.parent),))
        with Controller(sweep) as controller:
            status = controller.run()
        assert len(status.records.observations) == n_trials
        sweep.study._storage.remove_session()
        sweep.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    storage = PatientStorage(database)
    trials = optuna.load_study(study_name="small", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert trials[0].user_attrs["metrics"] == {"a": [1, None]}
    storage.engine.dispose()


# What is left of a cut connection is collected unclosed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_sweep_outlives_restarts_of_its_database(
    write_module: Callable[[str], str],
    write_sweep: Callable[..., Path],
    server: Callable[..., str],
) -> None:
    file = write_sweep(function=f"{write_module(TRAINING)}:train", executor="debug")
    config = load_sweep(file, storage=server("start.sh"), max_trials=5)
    sweep = Sweep(config, file.parent / "sweep", (str(file.parent),))
    back: list[threading.Thread] = []

    def restart(ended: Ended) -> None:
        if ended.number < 3:
            server("stop.sh", "restart")
        else:  # it is away while the next trial is asked for
            server("stop.sh")
            back.append(threading.Thread(target=server, args=("start.sh",)))
            back[-1].start()

    with Controller(sweep) as controller:
        status = controller.run(on_end=restart)
    for thread in back:
        thread.join()
    assert [observation.id for observation in status.records.observations] == list("01234")
    trials = sweep.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    sweep.study._storage.remove_session()
    sweep.study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    del sweep, trials
    gc.collect()
