"""What the runs were trained on, where they say so: versions, repetition, contamination.

A run's metrics may hold ``data``, for each component its ``version``, ``unique_tokens`` and
``epochs``, and ``contamination``; the reference job's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from carbs.analysis.report.markup import paragraph, section, table
from carbs.study import kept_trials


def data_section(study: Study) -> str:
    """The section of the report; empty where no run has said anything of its data."""
    runs = [
        trial for trial in kept_trials(study) if trial.state == TrialState.COMPLETE and _data(trial)
    ]
    if not runs:
        return ""
    contamination = _mapping(runs[-1].user_attrs["metrics"].get("contamination"))
    return section(
        "Data",
        *_changes(runs),
        paragraph(
            "What the runs were trained on. Beyond four epochs, repeated tokens are worth less and "
            "less."
        ),
        _components(runs),
        *_near_duplicates(contamination),
        *_questions(contamination),
    )


def _changes(runs: Sequence[FrozenTrial]) -> list[str]:
    told = []
    for name in _names(runs):
        trials: dict[str, list[int]] = {}
        for run in runs:
            version = _data(run).get(name, {}).get("version")
            if version is not None:
                trials.setdefault(str(version), []).append(run.number)
        if len(trials) > 1:
            versions = "; ".join(
                f"{version} in {len(numbers)} trials, {min(numbers)} to {max(numbers)}"
                for version, numbers in trials.items()
            )
            told.append(
                paragraph(
                    f"The data of {name} changed while the sweep went on, and what was measured "
                    f"before and after does not compare: {versions}.",
                    "verdict missed",
                )
            )
    return told


def _components(runs: Sequence[FrozenTrial]) -> str:
    rows = []
    for name in _names(runs):
        facts = [_data(run)[name] for run in runs if name in _data(run)]
        epochs = [float(fact["epochs"]) for fact in facts if "epochs" in fact]
        newest = facts[-1]
        rows.append(
            [
                name,
                str(newest.get("version", "–")),
                newest.get("documents"),
                newest.get("held_out_documents"),
                newest.get("unique_tokens"),
                max(epochs, default=None),
            ]
        )
    header = ["component", "version", "documents", "held out", "unique tokens", "epochs at most"]
    return table(header, rows)


def _near_duplicates(contamination: Mapping[str, Any]) -> list[str]:
    near = _counted(contamination.get("near_duplicates"), "compared", "found", "share")
    if not near:
        if contamination.get("near_duplicates", near) is None:
            return [paragraph("Near-duplicates were not looked for: that needs the library rensa.")]
        return []
    n, compared = (sum(int(c[key]) for c in near.values()) for key in ("found", "compared"))
    text = (
        f"{n} of {compared} held-out documents that were compared have a near-duplicate among "
        f"those that are trained on: at least {contamination.get('similarity', 0):.0%} of their "
        "runs of five words are the same."
    )
    rows = [[name, c["compared"], c["found"], f"{c['share']:.1%}"] for name, c in near.items()]
    return [
        paragraph(text, _kind(n)),
        table(["component", "compared", "near-duplicates", "share"], rows),
    ]


def _questions(contamination: Mapping[str, Any]) -> list[str]:
    sets = _counted(contamination.get("questions"), "n", "overlapping", "share")
    if not sets:
        return []
    n, asked = (sum(int(s[key]) for s in sets.values()) for key in ("overlapping", "n"))
    text = (
        f"{n} of {asked} questions overlap with what is trained on: prompt and right answer share "
        f"{contamination.get('ngram_words')} words that follow each other with a document there. "
        "A model may know their answers by heart."
    )
    rows = [
        [
            name,
            found["n"],
            found["overlapping"],
            f"{found['share']:.1%}",
            ", ".join(f"{c} ({k})" for c, k in _mapping(found.get("components")).items()) or "–",
        ]
        for name, found in sets.items()
    ]
    header = ["questions", "asked", "overlapping", "share", "with"]
    return [paragraph(text, _kind(n)), table(header, rows)]


def _kind(n: int) -> str:
    return "verdict missed" if n else "verdict held"


def _names(runs: Sequence[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in _data(run)))


def _data(trial: FrozenTrial) -> dict[str, Mapping[str, Any]]:
    """What a run says of its components."""
    data = _mapping(_mapping(trial.user_attrs.get("metrics")).get("data"))
    return {name: facts for name, facts in data.items() if isinstance(facts, Mapping)}


def _counted(value: Any, *keys: str) -> dict[str, Mapping[str, Any]]:
    """Those that have these counts: a function of one's own may mean something else by the name."""
    return {
        name: counts
        for name, counts in _mapping(value).items()
        if isinstance(counts, Mapping) and all(key in counts for key in keys)
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
