"""A study outlives the absence of its database."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import TrialState
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from carbs.storage import PatientStorage
from carbs.study import create_study


def run_trials(study: Study, first: int, n: int) -> None:
    for number in range(first, first + n):
        trial = study.ask()
        trial.suggest_float("x", 0, 1)
        trial.set_user_attr("number", number)
        study.tell(trial, [1.0, 2.0])


def assert_complete(study: Study, n: int) -> None:
    """None is lost, none is there twice."""
    assert [trial.user_attrs["number"] for trial in study.trials] == list(range(n))
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_restart_of_postgresql_is_waited_out(
    server: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    storage = PatientStorage(server("start.sh"), patience_s=60)
    study = create_study("restarted", storage)
    study.sampler = RandomSampler(seed=0)
    run_trials(study, 0, 2)
    # Between two operations the connection is simply made anew.
    server("stop.sh", "restart")
    run_trials(study, 2, 2)
    # In the middle of them, and away for as long as nobody has asked.
    server("stop.sh")
    asked = threading.Event()
    storage.give_up = lambda: asked.set() or False  # type: ignore[func-returns-value]
    back = threading.Thread(target=lambda: (asked.wait(), server("start.sh")))
    back.start()
    run_trials(study, 4, 2)
    back.join()
    assert_complete(study, 6)
    said = [record.getMessage() for record in caplog.records if record.name == "carbs.storage"]
    assert "does not answer (" in said[0]
    assert "trying again for 60 s" in said[0]
    assert "answers again after" in said[-1]
    storage.engine.dispose()


def test_a_connection_that_is_cut_while_all_trials_are_read(postgres: str) -> None:
    """Optuna catches that error itself, and goes on with the transaction that it has spoilt."""
    storage = PatientStorage(postgres, patience_s=60)
    study = create_study(f"cut-{uuid.uuid4().hex}", storage)
    study.sampler = RandomSampler(seed=0)
    run_trials(study, 0, 2)
    killer = create_engine(postgres)
    n_cuts = 0

    def cut(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        nonlocal n_cuts
        if "FROM trials" in statement and n_cuts == 0:
            n_cuts += 1
            pid = cursor.connection.info.backend_pid
            with killer.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    event.listen(storage.engine, "before_cursor_execute", cut)
    fresh = optuna.load_study(study_name=study.study_name, storage=storage)
    assert_complete(fresh, 2)
    assert n_cuts == 1
    killer.dispose()
    storage.engine.dispose()


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    storage = PatientStorage(f"sqlite:///{tmp_path / 'study.db'}", patience_s=60)
    study = create_study("study", storage)
    study.sampler = RandomSampler(seed=0)
    yield study
    storage.engine.dispose()


def gone() -> StorageInternalError:
    """What Optuna raises where the connection breaks."""
    error = StorageInternalError("an exception is raised during the commit")
    error.__cause__ = OperationalError("SELECT 1", {}, sqlite3.OperationalError("it is gone"))
    return error


def test_an_answer_that_was_lost_is_not_an_error(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told, but cut off before the answer: telling it again finds the trial finished."""
    tell, n = RDBStorage.set_trial_state_values, 0

    def tell_and_lose(self: RDBStorage, *arguments: Any, **options: Any) -> bool:
        nonlocal n
        n += 1
        answer = tell(self, *arguments, **options)
        if n == 1:
            raise gone()
        return answer

    monkeypatch.setattr(RDBStorage, "set_trial_state_values", tell_and_lose)
    run_trials(study, 0, 2)
    assert_complete(study, 2)
    with pytest.raises((UpdateFinishedTrialError, ValueError)):
        study.tell(0, [3.0, 4.0])


def test_patience_has_an_end(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 0

    def break_down(*_: Any, **__: Any) -> None:
        nonlocal n
        n += 1
        raise gone()

    monkeypatch.setattr(RDBStorage, "set_study_user_attr", break_down)
    backend = study._storage._backend  # type: ignore[attr-defined]
    backend.patience_s = 0.2
    with pytest.raises(StorageInternalError):
        study.set_user_attr("a", 1)
    assert n > 2
    n, backend.patience_s, backend.give_up = 0, 60, lambda: True
    with pytest.raises(StorageInternalError):
        study.set_user_attr("a", 1)
    assert n == 1


def test_what_is_simply_wrong_is_not_tried_again(
    study: Study, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyError):
        optuna.load_study(study_name="none", storage=study._storage)
    with pytest.raises(OperationalError):
        PatientStorage("sqlite:////proc/no/such/folder/study.db")
    assert not caplog.records
