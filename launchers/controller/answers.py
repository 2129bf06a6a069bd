"""What a sweep's trials have answered, read from their jobs' folders; and the sealed sets.

A sealed set's answers are read by nobody before :func:`unseal`, which writes into the study who
asked for them and when.
"""

from __future__ import annotations

import getpass
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from carbs.analysis.front.questions import AnsweredSet, Seal
from carbs.launchers.controller.attempts import kept_attempt
from carbs.launchers.controller.check import CHECK
from carbs.launchers.controller.ledger import JOB
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.errors import FolderError
from carbs.launchers.job.answers import answered, read_answers, read_questions
from carbs.study import kept_trials

UNSEALED = "unsealed"


def answered_sets(sweep: Sweep) -> list[AnsweredSet]:
    """The open sets that finished trials have answered, by name."""
    return _sets(sweep, is_sealed=False)


def read_seal(sweep: Sweep) -> Seal | None:
    """The sealed sets, opened or not; None where no trial has answered any."""
    finished = _finished(sweep)
    names = {name for _, folder in finished for name in answered(folder, is_sealed=True)}
    if not names:
        return None
    opened = sweep.study.user_attrs.get(UNSEALED)
    n_trials = sum(bool(answered(folder, is_sealed=True)) for _, folder in finished)
    if opened is None:
        return Seal(tuple(sorted(names)), n_trials)
    when = datetime.fromisoformat(opened["when"]).timestamp()
    ended = [trial.datetime_complete for trial, _ in finished]
    n_after = sum(end is not None and end.timestamp() > when for end in ended)
    sets = tuple(_sets(sweep, is_sealed=True))
    return Seal(tuple(sorted(names)), n_trials, opened, n_after, sets, _of_check(sweep, sets))


def unseal(sweep: Sweep) -> Mapping[str, Any]:
    """Open the sealed sets for good; the first time stays on record.

    Returns:
        ``who``, ``when`` (UTC, ISO), ``sets`` and the number of ``trials`` that had answered them.

    Raises:
        FolderError: there are none.
    """
    seal = read_seal(sweep)
    if seal is None:
        raise FolderError(
            f"no trial of {sweep.folder} has answered a sealed question set: name one in the "
            "settings, sealed: {name: file.jsonl}"
        )
    if seal.opened is not None:
        return seal.opened
    record = {
        "who": f"{getpass.getuser()}@{socket.gethostname()}",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "sets": list(seal.names),
        "trials": seal.n_trials,
    }
    sweep.study.set_user_attr(UNSEALED, record)
    sweep.backup.copy()  # what `carbs recover` would begin with
    return record


def with_unsealed(trials: pd.DataFrame, seal: Seal | None) -> pd.DataFrame:
    """A frame of trials with the scores of opened sets, ``sealed.NAME.nll_per_byte`` and others."""
    columns: dict[str, pd.Series] = {}
    for one in () if seal is None else seal.sets:
        values = {"nll_per_byte": one.scores, "accuracy": one.accuracies}
        for what, of_trials in values.items():
            known = dict(zip(one.trials.tolist(), of_trials.tolist(), strict=True))
            columns[f"sealed.{one.name}.{what}"] = trials["number"].map(known)
    return trials.assign(**columns)


def _finished(sweep: Sweep) -> list[tuple[FrozenTrial, Path]]:
    """Trials with a result, each with its job's folder."""
    return [
        (trial, sweep.folder / trial.user_attrs[JOB]["folder"])
        for trial in kept_trials(sweep.study)
        if trial.state == TrialState.COMPLETE and JOB in trial.user_attrs
    ]


def _of_check(sweep: Sweep, sets: Sequence[AnsweredSet]) -> dict[str, tuple[float, float]]:
    """Score and accuracy of the check run on each sealed set, where it was asked the same."""
    attempt = kept_attempt(sweep.folder, CHECK)
    if attempt is None:
        return {}
    found = {}
    for one in sets:
        answers = read_answers(sweep.folder / attempt.folder, one.name, is_sealed=True)
        if answers is not None and answers.version == one.version:
            right = float((answers.chosen == answers.right).mean())
            found[one.name] = (float(answers.right_nll.mean()), right)
    return found


def _sets(sweep: Sweep, *, is_sealed: bool) -> list[AnsweredSet]:
    finished = _finished(sweep)
    names = {name for _, folder in finished for name in answered(folder, is_sealed=is_sealed)}
    found = []
    for name in sorted(names):
        read = {
            trial.number: answers
            for trial, folder in finished
            if (answers := read_answers(folder, name, is_sealed=is_sealed)) is not None
        }
        if not read:
            continue
        newest = read[max(read)]
        kept = {n: a for n, a in sorted(read.items()) if a.version == newest.version}
        found.append(
            AnsweredSet(
                name,
                trials=np.array(list(kept)),
                nll=np.stack([answers.right_nll for answers in kept.values()]),
                chosen=np.stack([answers.chosen for answers in kept.values()]),
                right=newest.right.astype(np.int64),
                version=newest.version,
                questions=read_questions(sweep.folder / "shared", newest.version),
                n_other=len(read) - len(kept),
            )
        )
    return found
