"""How the best hyperparameters move with scale, from runs at several.

The notation is that of :mod:`carbs.analysis.laws.bowl`: the law is its W, exponents but for the
levels. They have a wide normal prior around zero (no dependence), which decides only where the runs
hardly differ in scale. How near to the optimum is near changes the answer more than noise does (a
wide window takes in the steep walls, a narrow one has few runs), so the law is the average over
several windows, and its intervals hold their spread beside that of the bootstrap: scales are
weighted at random (Rubin 1981, "The Bayesian Bootstrap") and runs resampled within them.

The published grid and its laws: Li et al. 2025, "Predictable Scale: Part I".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator

from carbs.analysis.laws.bowl import Bowl, RunsAtScales, bowl_form, fit_bowl, n_coefficients
from carbs.analysis.laws.fitting import descend
from carbs.analysis.laws.power import UndeterminedLawWarning
from carbs.analysis.laws.rows import check_level, names_of_rows
from carbs.analysis.laws.scales import distinct
from carbs.analysis.laws.shown import Shown
from carbs.analysis.laws.usual import OPTIMUM_EXPONENT
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

# Of log loss above the optimum.
_WINDOWS = (0.01, 0.02, 0.04)
_WIDEST = 30.0
# An exponent is a guess if resamples leave this share of its prior's width.
_GUESS, _ENOUGH_TO_TELL_WIDTHS = 0.7, 10
_ONLY_PRIOR = "hardly more than the prior"
_LEAST_RANGE = 1e-6
_SHARE_AT_EDGE = 0.1  # of the scales, whose best lies at the edge of what was tried
_N_NAMED = 5  # scales, in a sentence


@dataclass(frozen=True)
class OptimumLaw(Shown):
    """Log-linear optima ``h* = exp(W x)`` of several hyperparameters.

    Attributes:
        optimum_of: names of the hyperparameters, h.
        scales_with: names of what they depend on, k.
        exponents: shape ``(h, k)``, shared by all families.
        level: log optima where all scales are at their center, ``(h, f)``.
        center: mean log scales, ``(k,)``.
        scale_range: least and largest values of the scales, ``(2, k)``.
        resamples: W, of windows and bootstrap, ``(b, h, f + k)``.
        optima: where a scale has runs enough, its own optimum under the common bowl, with its
            interval; a row a scale.
        fitted_to: in words.
        family: name of the column that tells families apart; empty where all runs are of one.
        families: its values, f.
        doubts: what the runs do not tell, a sentence each.
        undetermined: exponents (``"lr ~ n_params"``) that are hardly more than their prior.
    """

    optimum_of: tuple[str, ...]
    scales_with: tuple[str, ...]
    exponents: FloatArray
    level: FloatArray
    center: FloatArray
    scale_range: FloatArray
    resamples: FloatArray = field(repr=False)
    optima: pd.DataFrame = field(repr=False)
    fitted_to: str
    family: str = ""
    families: tuple[Any, ...] = ("",)
    doubts: tuple[str, ...] = ()
    undetermined: tuple[str, ...] = ()

    def predict(self, **scales: Any) -> dict[str, FloatArray]:
        """The optimum of each hyperparameter, by name, in the common shape of the scales.

        Args:
            scales: positive numbers by name; and where the law is of several families, one of these
                by the name of their column.
        """
        W = np.column_stack([self.level, self.exponents])
        x = self._x(scales)
        return {name: np.exp(x @ W[i]) for i, name in enumerate(self.optimum_of)}

    def interval(
        self, level: float = 0.9, **scales: Any
    ) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Where each hyperparameter's optimum is expected: (low, high) by name."""
        check_level(level)
        x = self._x(scales)
        drawn = np.exp(np.einsum("...k,bhk->bh...", x, self.resamples))
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return {name: (low[i], high[i]) for i, name in enumerate(self.optimum_of)}

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row an exponent: coefficient (``"lr ~ n_params"``), estimate, low, high, note."""
        check_level(level)
        low, high = np.quantile(self.resamples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return pd.DataFrame(
            [
                {
                    "coefficient": f"{name} ~ {scale}",
                    "estimate": self.exponents[i, j],
                    "low": low[i, j + len(self.families)],
                    "high": high[i, j + len(self.families)],
                    "note": _ONLY_PRIOR * (f"{name} ~ {scale}" in self.undetermined),
                }
                for i, name in enumerate(self.optimum_of)
                for j, scale in enumerate(self.scales_with)
            ]
        )

    def _x(self, scales: Mapping[str, Any]) -> FloatArray:
        wanted = (self.family,) * bool(self.family) + self.scales_with
        if set(scales) != set(wanted):
            raise ValueError(
                f"this law depends on {', '.join(wanted)}, but was given "
                f"{', '.join(scales) or 'nothing'}"
            )
        own = np.ones(1)
        if self.family:
            if scales[self.family] not in self.families:
                known = ", ".join(map(str, self.families))
                raise ValueError(f"{self.family} is one of {known}, not {scales[self.family]!r}")
            own = np.array([one == scales[self.family] for one in self.families], dtype=float)
        values = [np.asarray(scales[name], dtype=float) for name in self.scales_with]
        for name, value in zip(self.scales_with, values, strict=True):
            if not (np.isfinite(value) & (value > 0)).all():
                raise ValueError(f"{name} must be finite and positive")
        logs = np.broadcast_arrays(
            *(np.log(v) - c for v, c in zip(values, self.center, strict=True))
        )
        return np.stack([*(np.full(logs[0].shape, one) for one in own), *logs], axis=-1)


@on_one_thread
def fit_optimum_law(
    runs: pd.DataFrame,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    loss: str = "loss",
    *,
    family: str | None = None,
    n_resamples: int = 100,
    seed: int = 0,
) -> OptimumLaw:
    """Fit how the best hyperparameters move with scale.

    Args:
        runs: one row a run, diverged ones with the (finite) loss they ended at: grids at some
            scales, or runs of which each has a scale of its own.
        optimum_of: columns of the hyperparameters, positive.
        scales_with: columns of what their optimum depends on, positive.
        loss: column of the loss, positive.
        family: column that tells apart kinds of runs, dense models and mixtures of experts, say:
            each has levels of its own, of the loss and of the optima; the exponents are shared.
        n_resamples: of the bootstrap, for each window.
        seed: of the bootstrap.

    Raises:
        ValueError: columns that are absent, rows that are not finite and positive (named), a
            hyperparameter that does not vary at any scale, one scale alone, or too few runs.
    """
    for argument, value in {"optimum_of": optimum_of, "scales_with": scales_with}.items():
        if isinstance(value, str):
            raise ValueError(f"{argument} is a list of columns: write [{value!r}]")
    h, k = len(optimum_of), len(scales_with)
    columns = [*optimum_of, *scales_with, loss]
    named = columns if family is None else [*columns, family]
    absent = [name for name in named if name not in runs.columns]
    if absent or not h or not k:
        raise ValueError(f"no column {', '.join(absent)} in {', '.join(map(str, runs.columns))}")
    table = runs[columns].to_numpy(dtype=float)
    wrong = ~(np.isfinite(table) & (table > 0)).all(axis=1)
    if wrong.any():
        rows = names_of_rows(len(runs), runs[loss])[wrong].tolist()
        raise ValueError(f"rows {rows} have a {' or '.join(columns)} not positive")
    families: tuple[Any, ...] = ("",)
    kind = np.zeros(len(table), dtype=int)
    if family is not None:
        if runs[family].isna().any():
            rows = names_of_rows(len(runs), runs[loss])[runs[family].isna()].tolist()
            raise ValueError(f"rows {rows} have no {family}")
        kind, found_families = pd.factorize(runs[family], sort=True)
        families = tuple(found_families.tolist())
    f = len(families)
    least = n_coefficients(h, f + k)
    if len(table) < least:
        raise ValueError(
            f"a law of {h} optima over {k} scales has {least} coefficients and needs as "
            f"many runs, but there are {len(table)}"
        )
    logs = np.log(table)
    scales, at, _ = distinct(logs[:, h : h + k], kind)
    if len(np.unique(scales, axis=0)) < 2:
        raise ValueError(
            f"all runs have one value of {', '.join(scales_with)}: a law over scale needs two"
        )
    n_values = _values_at_a_scale(logs[:, :h], scales, at)
    constant = [name for name, n in zip(optimum_of, n_values, strict=True) if n < 2]
    if constant:
        raise ValueError(
            f"{', '.join(constant)} has one value at each scale, and so no optimum: leave it out "
            "of optimum_of, or vary it"
        )
    data = RunsAtScales.of(logs[:, :h], logs[:, h : h + k], logs[:, -1], kind)
    bowls = [
        fit_bowl(data, data.near(window), n_resamples, seed + i)
        for i, window in enumerate(_WINDOWS)
    ]
    # The mean of the windows; each window's resamples around its own fit.
    W = np.mean([bowl.W for bowl in bowls], axis=0)
    drawn = np.concatenate([bowl.resamples for bowl in bowls])
    middle = bowls[len(bowls) // 2]
    optima = _own_optima(data, middle, optimum_of, scales_with, n_resamples, seed)
    doubts, undetermined = _doubts(data, optimum_of, scales_with, n_values, W, drawn, optima)
    if len(table) < 2 * least:
        doubts.append(f"{len(table)} runs are few for {least} coefficients")
    if doubts:
        warnings.warn("; ".join(doubts), UndeterminedLawWarning, stacklevel=3)
    own_family = [families[i] for i in data.x[optima.index, :f].argmax(axis=1)]
    W[:, :f] += data.z_center[:, None]
    drawn[:, :, :f] += data.z_center[:, None]
    ranges = ", ".join(
        f"{name} {_few(np.exp(values))}"
        for name, values in zip(scales_with, data.log_scales.T, strict=True)
    )
    return OptimumLaw(
        optimum_of=tuple(optimum_of),
        scales_with=tuple(scales_with),
        exponents=W[:, f:],
        level=W[:, :f],
        center=data.x_center,
        scale_range=np.exp([data.log_scales.min(axis=0), data.log_scales.max(axis=0)]),
        resamples=drawn,
        optima=optima.assign(**({family: own_family} if family else {})).reset_index(drop=True),
        fitted_to="; ".join(
            [
                f"{len(middle.rows)} of {len(table)} runs, those near the optimum (within "
                f"{100 * _WINDOWS[len(bowls) // 2]:.2g}% of the loss), at {len(data.x)} scales "
                f"({ranges}), residual {100 * middle.noise:.2g}% of the loss",
                *doubts,
            ]
        ),
        family=family or "",
        families=families,
        doubts=tuple(doubts),
        undetermined=undetermined,
    )


def _doubts(
    data: RunsAtScales,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    n_values: Sequence[int],
    W: FloatArray,
    drawn: FloatArray,
    optima: pd.DataFrame,
) -> tuple[list[str], tuple[str, ...]]:
    """What the runs do not tell, in sentences; and the exponents among it."""
    f = data.n_families
    doubts = []
    for name, values in zip(scales_with, data.log_scales.T, strict=True):
        if np.ptp(values) < _LEAST_RANGE:
            doubts.append(f"{name} is {math.exp(values[0]):.4g} in all runs")
    for i, name in enumerate(optimum_of):
        if n_values[i] == 2:
            doubts.append(f"{name} has no more than two values at a scale: a bowl needs three")
        lowest, highest = data.tried(i, optima.index.to_numpy())
        best = data.x @ W[i]
        best[optima.index] = np.log(optima[name].to_numpy()) - data.z_center[i]
        for beyond, ends, way in (
            (best < lowest + _LEAST_RANGE, lowest, "less"),
            (best > highest - _LEAST_RANGE, highest, "more"),
        ):
            if beyond.mean() > _SHARE_AT_EDGE:
                doubts.append(
                    f"the best {name} is at the edge of what was tried "
                    f"({_few(np.exp(ends[beyond] + data.z_center[i]))}) at {beyond.sum()} of "
                    f"{len(beyond)} scales, and may lie beyond: try {way}"
                )
    undetermined = tuple(
        f"{name} ~ {scale}"
        for i, name in enumerate(optimum_of)
        for j, scale in enumerate(scales_with)
        if len(drawn) >= len(_WINDOWS) * _ENOUGH_TO_TELL_WIDTHS
        # From quartiles: a few wild resamples of a small grid are no ignorance.
        and np.subtract(*np.quantile(drawn[:, i, f + j], [0.75, 0.25]))
        > _GUESS * 1.35 * OPTIMUM_EXPONENT
    )
    if undetermined:
        doubts.append(
            f"the runs hardly tell {', '.join(undetermined)}: {_ONLY_PRIOR}, around 0 with a "
            f"deviation of {OPTIMUM_EXPONENT:g}"
        )
    return doubts, undetermined


def _values_at_a_scale(z: FloatArray, scales: FloatArray, at: np.ndarray) -> list[int]:
    """How many values each hyperparameter has at a scale, at most.

    Where most runs have a scale of their own, in all, unless it follows the scale.
    """
    x = np.column_stack([np.ones(len(scales)), scales])
    found = []
    for column in z.T:
        values = pd.Series(column.round(9))
        most = int(values.groupby(at).nunique().max())
        if len(scales) > max(len(z) / 2, 2 * x.shape[1]):
            beside = column - x[at] @ np.linalg.lstsq(x[at], column, rcond=None)[0]
            most = int(values.nunique()) if np.ptp(beside) > _LEAST_RANGE else 1
        found.append(most)
    return found


def _few(values: FloatArray) -> str:
    """Distinct values, or their range where they are many."""
    few = np.unique(np.round(values, 12 - int(math.log10(values.max()))))
    if len(few) <= _N_NAMED:
        return ", ".join(f"{value:.4g}" for value in few)
    return f"{few[0]:.4g} to {few[-1]:.4g}"


def regret(runs: pd.DataFrame, params: Mapping[str, float], loss: str = "loss") -> float:
    """How much worse than the best run of a cell it would be to train with these hyperparameters.

    Args:
        runs: the runs of one cell.
        params: a value for each hyperparameter, by column.
        loss: column of the loss.

    Returns:
        The loss there over the least loss measured in the cell, less 1. Between runs the loss is
        linear in the logs of the hyperparameters, over the triangles of a Delaunay triangulation;
        beyond the grid it is that of the nearest point within its range. The least of some hundred
        noisy losses is a lucky one, so even the true optimum has a regret above zero.
    """
    z = np.log(runs[list(params)].to_numpy(dtype=float))
    y = runs[loss].to_numpy(dtype=float)
    at = np.clip(np.log([params[name] for name in params]), z.min(axis=0), z.max(axis=0))
    if z.shape[1] == 1:
        order = np.argsort(z[:, 0])
        there = float(np.interp(at[0], z[order, 0], y[order]))
    else:
        there = float(LinearNDInterpolator(z, y)(at[None, :])[0])
    if not math.isfinite(there):  # in a corner that the grid does not fill
        there = float(y[np.argmin(np.square(z - at).sum(axis=1))])
    return there / float(y.min()) - 1


def _own_optima(
    runs: RunsAtScales,
    bowl: Bowl,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    n_resamples: int,
    seed: int,
    level: float = 0.9,
) -> pd.DataFrame:
    """The optimum of each scale with runs enough: the common bowl, moved to where these want it.

    Indexed by the scale's place among all.
    """
    h = len(optimum_of)
    rng = np.random.default_rng(seed)
    found, places = [], []
    for i, x in enumerate(runs.x):
        mine = runs.at[bowl.rows] == i
        n = int(mine.sum())
        if n < 2 * h + 2:
            continue
        rows, weights = bowl.rows[mine], bowl.weights[mine]
        z, y = runs.z[rows], runs.y[rows]
        form, i_R, _, i_c, p = bowl_form(z, np.ones((n, 1)), np.ones((n, 1)))
        lower, upper = np.full(p, -_WIDEST), np.full(p, _WIDEST)
        lower[i_R:i_c] = upper[i_R:i_c] = bowl.shape
        # Within the runs: where the best lie on the edge of what was tried, so does the optimum.
        lower[:h], upper[:h] = z.min(axis=0), z.max(axis=0)
        start = np.concatenate([bowl.W @ x, bowl.shape, [bowl.levels[i]]])
        counts = rng.multinomial(n, np.full(n, 1 / n), n_resamples)
        fits = (
            descend(
                form,
                y,
                np.tile(start, (n_resamples + 1, 1)),
                lower=lower,
                upper=upper,
                delta=1.5 * bowl.noise,
                weights=weights * np.vstack([np.ones(n), counts]),
                tolerance=1e-5,
                max_steps=60,
            ).theta[:, :h]
            + runs.z_center
        )
        low, high = np.quantile(fits[1:], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        row = dict(zip(scales_with, np.exp(runs.log_scales[i]), strict=True))
        for j, name in enumerate(optimum_of):
            row |= {name: np.exp(fits[0, j]), f"{name}_low": np.exp(low[j])}
            row |= {f"{name}_high": np.exp(high[j])}
        found.append(row | {"n_runs": n})
        places.append(i)
    names = [f"{name}{end}" for name in optimum_of for end in ("", "_low", "_high")]
    return pd.DataFrame(
        found, index=np.array(places, dtype=int), columns=[*scales_with, *names, "n_runs"]
    )
