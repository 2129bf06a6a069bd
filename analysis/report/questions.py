"""The report's sections on what the trials were asked: doubtful questions, and sealed sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from carbs.analysis.front.questions import LEAST_TRIALS, AnsweredSet, Seal, rank_correlations
from carbs.analysis.report.markup import paragraph, section, table
from carbs.spaces import FloatArray

_MOST_QUESTIONS = 30
_MOST_LETTERS = 160  # of a prompt's end


def questions_section(answers: Sequence[AnsweredSet], seal: Seal | None) -> str:
    """Of sets with enough trials: which questions are doubtful, and what they change."""
    sets = [*answers, *(seal.sets if seal is not None else ())]
    judged = [one for one in sets if len(one.trials) >= LEAST_TRIALS and len(one.right) > 1]
    if not judged:
        return ""
    facts: list[list[Any]] = []
    doubtful: list[tuple[float, list[Any]]] = []
    for one in judged:
        found = one.evidence()
        is_good = (found["verdict"] == "").to_numpy()
        kept = one.nll[:, is_good].mean(axis=1) if is_good.any() else one.scores
        best = int(one.scores.argmin())
        order = _agreement(one.scores, kept)
        n_doubtful = int((~is_good).sum())
        scores = (float(one.scores[best]), float(kept[best]))
        facts.append([one.name, len(is_good), n_doubtful, len(one.trials), *scores, order])
        p = found["p_value"].to_numpy()
        for q in np.flatnonzero(~is_good):
            doubtful.append((float(p[q]), _doubtful_row(one, found.iloc[q])))
    doubtful.sort(key=lambda one: one[0])
    text = (
        "A good question is answered better by better models. Of these the marked answer gets "
        "less likely the better a trial is at the rest of its set (rank correlation over the "
        "trials, corrected for the number of questions; one false alarm in twenty sets). "
        "Mislabelled: most of the better half of the models choose one and the same other "
        "answer. Read them before you take them out: a question may also be of another kind "
        "than its set, and suffer where the mix favours the others."
    )
    few = [one.name for one in sets if one.n_other]
    header = ["set", "number", "verdict", "question", "marked", "preferred", "correlation", "p"]
    parts = [
        table(
            ["set", "questions", "doubtful", "trials", "best score", "without", "same order"],
            facts,
        ),
        paragraph(
            "Score: nats per byte of the best trial on the set, with all questions and without "
            "the doubtful ones. Same order: rank correlation of the trials' two scores."
        ),
    ]
    if doubtful:
        parts += [
            paragraph(text),
            table(header, [row for _, row in doubtful[:_MOST_QUESTIONS]]),
        ]
    else:
        parts.append(paragraph("No question's answer gets less likely as the models improve."))
    if len(doubtful) > _MOST_QUESTIONS:
        parts.append(paragraph(f"{len(doubtful) - _MOST_QUESTIONS} more are less certain."))
    if few:
        parts.append(paragraph(f"Trials asked another version of {', '.join(few)} are left out."))
    return section("The questions themselves", *parts)


def sealed_section(
    seal: Seal | None,
    done: pd.DataFrame,
    on_front: pd.DataFrame,
    check: Mapping[str, Any] | None,
    cost_unit: str,
) -> str:
    """The sealed sets: that they are, or what opened ones say of the trials on the front.

    Args:
        seal: of the sweep; None for none.
        done: its finished trials, ``on_front`` those on the front.
        check: the check run, as for :func:`carbs.analysis.report.report.write_report`.
        cost_unit: of the trials' costs.
    """
    if seal is None:
        return ""
    names = ", ".join(seal.names)
    if seal.opened is None:
        return section(
            "Sealed questions",
            paragraph(
                f"{seal.n_trials} trials have answered {names}. Their scores were shown to "
                "nobody, the search included; carbs unseal opens them, on the record."
            ),
        )
    text = f"{names}: opened by {seal.opened['who']} at {seal.opened['when']}. "
    text += (
        f"{seal.n_after} trials have finished since: choices between them may rest on what was "
        "seen."
        if seal.n_after
        else "No trial has finished since, so no choice of the search rests on them."
    )
    outputs = done.set_index("number")["output"]
    on_front = on_front[["number", "cost", "output"]]
    header = ["trial", f"cost ({cost_unit})", "output"]
    columns, agreements = [], []
    for one in seal.sets:
        numbers = one.trials.tolist()
        scores, accuracies = (
            dict(zip(numbers, values.tolist(), strict=True))
            for values in (one.scores, one.accuracies)
        )
        header += [f"{one.name} (nats per byte)", f"{one.name} (accuracy)"]
        columns += [scores, accuracies]
        known = [n for n in numbers if n in outputs.index]
        if len(known) > 2:
            order = _agreement(outputs[known].to_numpy(), np.array([scores[n] for n in known]))
            agreements.append(f"{order:.2f} for {one.name}")
    rows = [
        [int(number), cost, output, *(column.get(int(number)) for column in columns)]
        for number, cost, output in on_front.itertuples(index=False)
    ]
    if seal.check and check is not None:
        measured = (check.get(f"measured_{what}") for what in ("cost", "output"))
        of_sets = (seal.check.get(one.name, (None, None)) for one in seal.sets)
        rows.append(["check run", *measured, *(value for pair in of_sets for value in pair)])
    agreement = (
        "Rank correlation with the output, over all trials that have both: "
        f"{', '.join(agreements)}. Near 1, what the search found on its own questions holds on "
        "these."
    )
    return section(
        "Sealed questions",
        paragraph(text),
        paragraph(agreement) if agreements else "",
        paragraph(f"The trials on the front{', and the check run' * bool(seal.check)}:"),
        table(header, rows),
    )


def _agreement(first: FloatArray, second: FloatArray) -> float:
    """The rank correlation of two values of each trial."""
    return float(rank_correlations(first[:, None], second[:, None])[0])


def _doubtful_row(answered: AnsweredSet, row: pd.Series) -> list[Any]:
    """A line of the table of doubtful questions; their texts as far as they are there."""
    place, preferred = int(row["question"]), int(row["preferred"])
    marked, asked = int(answered.right[place]), ""
    texts = [f"choice {marked + 1}", f"choice {preferred + 1}"]
    if answered.questions is not None:
        question = answered.questions[place]
        prompt = str(question["prompt"])
        asked = "…" * (len(prompt) > _MOST_LETTERS) + prompt[-_MOST_LETTERS:]
        texts = [str(question["choices"][c])[:_MOST_LETTERS] for c in (marked, preferred)]
    return [
        *(answered.name, place + 1, row["verdict"], asked, texts[0]),
        f"{texts[1]} ({row['share']:.0%})",
        *(float(row["correlation"]), float(row["p_value"])),
    ]
