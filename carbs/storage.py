"""A study's database, which may be away for a while: restarted, failed over, locked, or full."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    SQLAlchemyError,
)

PATIENCE_S = 600.0
_LOCK_TIMEOUT_S = 60
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_logger = logging.getLogger(__name__)


def _never() -> bool:
    return False


class PatientStorage(RDBStorage):
    """Optuna's database storage, which tries again for a while where its server does not answer.

    Each operation is one transaction, and one that was cut off is made anew. What happens is said
    once, as a warning of the logger ``carbs.storage``, and once more when it is over. Opening is
    tried once: a URL that leads nowhere is known at once.

    Args:
        url: SQLAlchemy's, such as ``sqlite:///study.db`` or ``postgresql+psycopg://host/name``.
        patience_s: how long an operation is tried again before its error is raised.
        give_up: asked while waiting; where it is true the error is raised at once.

    Raises:
        StorageInternalError: the patience is at its end, or something else is wrong.
    """

    def __init__(
        self,
        url: str,
        *,
        patience_s: float = PATIENCE_S,
        give_up: Callable[[], bool] = _never,
    ) -> None:
        self.patience_s = patience_s
        self.give_up = give_up
        is_sqlite = make_url(url).get_backend_name() == "sqlite"
        # A connection that a restart has cut is replaced before it is used.
        lock: dict[str, Any] = {"connect_args": {"timeout": _LOCK_TIMEOUT_S}}
        super().__init__(url, lock if is_sqlite else {"pool_pre_ping": True})

    def _patiently(self, name: str, *arguments: Any, **options: Any) -> Any:
        operation = getattr(super(), name)
        started, pause_s, n_tries = time.monotonic(), _FIRST_PAUSE_S, 0
        while True:
            try:
                answer = operation(*arguments, **options)
            except UpdateFinishedTrialError:
                # The try before was written down, but its answer was lost.
                if (
                    n_tries
                    and name == "set_trial_state_values"
                    and self._is_told(*arguments, **options)
                ):
                    return True
                raise
            except (StorageInternalError, SQLAlchemyError) as error:
                cause = _cause(error)
                is_over = time.monotonic() - started > self.patience_s
                if cause is None or is_over or self.give_up():
                    raise
                if not n_tries:
                    _logger.warning(
                        "the study's database does not answer (%s): trying again for %.0f s",
                        cause,
                        self.patience_s,
                    )
                n_tries += 1
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                if n_tries:
                    waited_s = time.monotonic() - started
                    _logger.warning("the study's database answers again after %.1f s", waited_s)
                return answer

    def _is_told(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        trial = self.get_trial(trial_id)
        return trial.state == state and (values is None or trial.values == list(values))


# Those in which RDBStorage opens a transaction of its own.
_OPERATIONS = (
    "create_new_study",
    "delete_study",
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "set_study_user_attr",
    "set_study_system_attr",
    "_create_new_trial",
    "get_trial",
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial_id_from_study_id_trial_number",
    "_get_trials",
    "_get_best_trial_id",
    "_set_trial_param",
    "set_trial_param",
    "set_trial_state_values",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)


def _patient(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(RDBStorage, name))
    def operation(self: PatientStorage, *arguments: Any, **options: Any) -> Any:
        return self._patiently(name, *arguments, **options)

    return operation


for _name in _OPERATIONS:
    setattr(PatientStorage, _name, _patient(_name))


def _cause(error: Exception) -> str | None:
    """In a line, where waiting may help; None where the operation itself is wrong."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    if isinstance(cause, PendingRollbackError):  # Optuna went on after the connection was lost
        return "the connection was lost in the middle of an operation"
    if not isinstance(cause, OperationalError | InterfaceError):
        return None
    lines = str(cause.orig).strip().splitlines() or [""]
    return f"{type(cause.orig).__name__}: {lines[0]}"
