"""How the best hyperparameters move with scale, from runs at several.

Notation
--------
scale    N and D of a run, say; runs within a hundredth of each other's are at one scale
x        logs of a scale, centred, with a leading 1 (or 1 for its family and 0 for each other one)
z        logs of a run's hyperparameters, centred, shape ``(h,)``
W        the law ``z* = W x``, shape ``(h, f + k)``: f levels, and k exponents
u        ``z - W x``, distance from the optimum
R, t     curvature and tilt of the bowl: ``y = c(x) + |R' u|^2 / 2 + t . u^3``, R lower triangular
c        log loss at the optimum: a plane in x and a Gaussian process beside it

The best run of a scale says little: around the optimum the loss is flat, so that its noise moves
the argmin over several grid points, and where nobody has run a grid there is one run at a scale, or
a few. What all runs share says much. Those near the optimum are therefore fitted at once, by one
bowl that moves with scale along power laws, and a level that is smooth over scale: with many runs
at each scale it is as good as free, with one at each it tells what the loss would be at the
optimum. The bowl is steeper towards divergence than towards timidity, hence its cubic part.
Exponents have a wide normal prior around zero (no dependence), which decides only where the runs
hardly differ in scale.

Which runs are near is found by fits to ever nearer ones. How near is near changes the answer more
than noise does (a wide window takes in the steep walls, a narrow one has few runs), so the law is
the average over several windows, and its intervals hold their spread beside that of the bootstrap:
scales are weighted at random (Rubin 1981, "The Bayesian Bootstrap") and runs resampled within them.

The published grid and its laws: Li et al. 2025, "Predictable Scale: Part I".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.interpolate import LinearNDInterpolator

from carbs.analysis.laws.fitting import Form, descend
from carbs.analysis.laws.power import UndeterminedLawWarning, check_level, names_of_rows
from carbs.analysis.laws.scales import distinct
from carbs.analysis.laws.shown import Shown
from carbs.analysis.laws.usual import OPTIMUM_EXPONENT
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

# Of log loss above the optimum; the first ones find which runs are within the others.
_ZOOM, _WINDOWS = (0.3, 0.1, 0.04, 0.04), (0.01, 0.02, 0.04)
_LEAST_RUNS = 3  # in a window, for each coefficient
# Deviation of the tilt, as a share of the curvature.
_TILT_PRIOR = 0.15
# Diagonal of R, and deviation of what is beside it.
_CURVE_PRIOR, _TURN_PRIOR = (0.12, 0.08), 0.1
_LEVEL_PRIOR = 1.5  # deviation of a log optimum from the middle of the runs near it
# The level c, in log loss: deviations of its plane, of a family's own slope, and of the process.
_INTERCEPT, _SLOPE, _OWN_SLOPE, _MISFIT = 1.0, 0.3, 0.1, 0.1
_LENGTH = math.log(10)  # of the process
_MOST_KNOTS, _LEAST_VARIANCE = 200, 1e-8
_RIDGE = 1e-2  # of the levels that a fit begins at
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
    n_coefficients = h * (f + k) + h * (h + 1) // 2 + f + k
    if len(table) < n_coefficients:
        raise ValueError(
            f"a law of {h} optima over {k} scales has {n_coefficients} coefficients and needs as "
            f"many runs, but there are {len(table)}"
        )
    logs = np.log(table)
    means, at, first = distinct(logs[:, h : h + k], kind)
    scales = np.column_stack([np.eye(f)[kind[first]], means])
    if len(np.unique(means, axis=0)) < 2:
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
    data = _Runs.of(logs[:, :h], scales, at, logs[:, -1], f)
    rng = np.random.default_rng(seed)
    bowls = [_fit_bowl(data, data.near(window), n_resamples, rng) for window in _WINDOWS]
    # The mean of the windows; each window's resamples around its own fit.
    W = np.mean([bowl.W for bowl in bowls], axis=0)
    drawn = np.concatenate([bowl.resamples for bowl in bowls])
    middle = bowls[len(bowls) // 2]
    optima = _cell_optima(data, middle, optimum_of, scales_with, n_resamples, rng)
    doubts, undetermined = _doubts(data, optimum_of, scales_with, n_values, W, drawn, optima)
    if len(table) < 2 * n_coefficients:
        doubts.append(f"{len(table)} runs are few for {n_coefficients} coefficients")
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
    data: _Runs,
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
    found = []
    for column in z.T:
        values = pd.Series(column.round(9))
        most = int(values.groupby(at).nunique().max())
        if len(scales) > max(len(z) / 2, 2 * scales.shape[1]):
            beside = column - scales[at] @ np.linalg.lstsq(scales[at], column, rcond=None)[0]
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


@dataclass(frozen=True)
class _Runs:
    """Runs at scales.

    Attributes:
        z: shape ``(n, h)``, around ``z_center``; y: shape ``(n,)``.
        x: of the scales, shape ``(m, f + k)``, logs around ``x_center``; n_families: f.
        at: which scale a run is at, ``(n,)``.
        above: how far it lies above the optimum there, in log loss, ``(n,)``.
        root: the level of scale i is ``root[i] @ v``, v normal with deviation one; ``(m, r)``.
    """

    z: FloatArray
    x: FloatArray
    y: FloatArray
    at: np.ndarray
    above: FloatArray
    root: FloatArray
    z_center: FloatArray
    x_center: FloatArray
    n_families: int

    @classmethod
    def of(
        cls, z: FloatArray, scales: FloatArray, at: np.ndarray, y: FloatArray, n_families: int
    ) -> _Runs:
        x = scales.copy()
        x_center = x[:, n_families:].mean(axis=0)
        x[:, n_families:] -= x_center
        y = y - np.median(y)
        above = y - pd.Series(y).groupby(at).min().to_numpy()[at]
        z_center = z[above <= np.median(above)].mean(axis=0)
        root = _level_root(x, n_families)
        runs = cls(z - z_center, x, y, at, above, root, z_center, x_center, n_families)
        for window in _ZOOM:
            bowl = _fit_bowl(runs, runs.near(window), 0, np.random.default_rng(0))
            runs = replace(runs, above=runs.y - bowl.levels[at])
        return runs

    @property
    def log_scales(self) -> FloatArray:
        return np.asarray(self.x[:, self.n_families :] + self.x_center)

    def tried(self, hyperparameter: int, own: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """The least and the most of it at those scales, elsewhere of all runs; ``(m,)`` each."""
        values = self.z[:, hyperparameter]
        lowest, highest = (np.full(len(self.x), end) for end in (values.min(), values.max()))
        at_scale = pd.Series(values).groupby(self.at)
        lowest[own], highest[own] = at_scale.min()[own], at_scale.max()[own]
        return lowest, highest

    def near(self, window: float) -> np.ndarray:
        """Rows within the window, or where those are too few for the bowl the best, ``(n',)``."""
        h, k1 = self.z.shape[1], self.x.shape[1]
        least = _LEAST_RUNS * (h * k1 + h * (h + 1) // 2 + h + k1)
        order = np.argsort(self.above, kind="stable")
        return np.sort(order[: max(least, int((self.above <= window).sum()))])


def _level_root(x: FloatArray, n_families: int) -> FloatArray:
    """Root of the covariance of levels at scales ``(m, f + k)``, shape ``(m, r)``."""
    own, logs = x[:, :n_families], x[:, n_families:]
    plane = [_INTERCEPT * own, _SLOPE * logs]
    if n_families > 1:
        plane += [_OWN_SLOPE * own[:, [i]] * logs for i in range(n_families)]
    knots = np.unique(x, axis=0)
    knots = knots[np.linspace(0, len(knots) - 1, min(len(knots), _MOST_KNOTS)).astype(int)]

    def covariance(a: FloatArray, b: FloatArray) -> FloatArray:
        apart = np.square((a[:, None, n_families:] - b[:, n_families:]) / _LENGTH).sum(axis=2)
        alike = a[:, :n_families] @ b[:, :n_families].T
        return np.asarray(_MISFIT**2 * alike * np.exp(-0.5 * apart))

    variances, vectors = np.linalg.eigh(covariance(knots, knots))
    kept = variances > _LEAST_VARIANCE
    process = covariance(x, knots) @ vectors[:, kept] / np.sqrt(variances[kept])
    return np.column_stack([*plane, process])


@dataclass(frozen=True)
class _Bowl:
    """A fit: W ``(h, f + k)``, its resamples, (R, t) as in theta, noise, rows and their weights.

    ``levels`` are those of the scales, ``(m,)``.
    """

    W: FloatArray
    resamples: FloatArray
    shape: FloatArray
    levels: FloatArray
    noise: float
    rows: np.ndarray
    weights: FloatArray


def _fit_bowl(runs: _Runs, rows: np.ndarray, n_resamples: int, rng: np.random.Generator) -> _Bowl:
    z, y, at = runs.z[rows], runs.y[rows], runs.at[rows]
    h, k1 = z.shape[1], runs.x.shape[1]
    form, i_R, i_t, i_c, p = _bowl_form(z, runs.x[at], runs.root[at])
    above = np.maximum(runs.above[rows], 0)
    weights = 1 / (1 + 3 * above / max(float(above.max()), 1e-12))
    lower, upper = np.full(p, -_WIDEST), np.full(p, _WIDEST)
    diagonal = i_R + np.array([i * (i + 1) // 2 + i for i in range(h)])
    lower[diagonal] = 1e-4
    lower[i_t:i_c] = upper[i_t:i_c] = 0.0
    start = np.zeros(p)
    # A parabola as wide as the runs that are there, on the levels that they lie above.
    start[diagonal] = np.sqrt(2 * max(above.max(), 1e-6)) / np.maximum(np.ptp(z, axis=0) / 2, 1e-3)
    level = runs.root[at]
    start[i_c:] = np.linalg.solve(
        level.T @ (weights[:, None] * level) + _RIDGE * np.eye(level.shape[1]),
        level.T @ (weights * (y - above)),
    )
    mean, width = np.zeros(p), np.full(p, np.inf)
    f = runs.n_families
    exponents = np.array([i * k1 + j for i in range(h) for j in range(f, k1)])
    width[:i_R] = _LEVEL_PRIOR
    width[exponents] = OPTIMUM_EXPONENT
    width[i_R:i_t] = _TURN_PRIOR
    mean[diagonal], width[diagonal] = _CURVE_PRIOR
    width[i_c:] = 1.0
    noise = max(float(np.median(above)) / 5, 1e-6)
    first = start[None]
    for tilted in (False, True, True):
        if tilted:
            lower[i_t:i_c], upper[i_t:i_c] = -_WIDEST, _WIDEST
            width[i_t:i_c] = _TILT_PRIOR * first[0, diagonal] ** 2
        first = descend(
            form,
            y,
            first,
            lower=lower,
            upper=upper,
            delta=1.5 * noise,
            weights=weights,
            prior=(mean, width / noise),
        ).theta
        rest = form(first)[0][0] - y
        noise = max(
            float(1.48 * np.sqrt(weights) @ np.abs(rest) / np.sqrt(weights).sum()) / 1.2, 1e-6
        )
    # Runs within scales, and the scales' say.
    counts = np.zeros((n_resamples, len(y)))
    scales, of = np.unique(at, return_inverse=True)
    for i in range(len(scales)):
        own = np.flatnonzero(of == i)
        counts[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), n_resamples)
    counts *= (len(scales) * rng.dirichlet(np.ones(len(scales)), n_resamples))[:, of]
    # The prior's mean is drawn too: where only the prior knows an exponent, so is its interval.
    means = np.tile(mean, (n_resamples, 1))
    means[:, exponents] = OPTIMUM_EXPONENT * rng.standard_normal((n_resamples, len(exponents)))
    drawn = descend(
        form,
        y,
        np.tile(first, (n_resamples, 1)),
        lower=lower,
        upper=upper,
        delta=1.5 * noise,
        weights=weights * counts,
        prior=(means, width / noise),
        tolerance=1e-4,
        max_steps=60,
    ).theta
    return _Bowl(
        W=first[0, :i_R].reshape(h, k1),
        resamples=drawn[:, :i_R].reshape(-1, h, k1),
        shape=first[0, i_R:i_c],
        levels=runs.root @ first[0, i_c:],
        noise=noise,
        rows=rows,
        weights=weights,
    )


def _bowl_form(z: FloatArray, x: FloatArray, level: FloatArray) -> tuple[Form, int, int, int, int]:
    """The form for runs z ``(n, h)`` at scales x ``(n, k1)``, with levels ``level @ v``.

    Args:
        level: shape ``(n, r)``.

    Returns:
        The form of theta = (W, R, t, v); where R, t and v begin; the length of theta.
    """
    n, h = z.shape
    k1, r = x.shape[1], level.shape[1]
    pairs = [(i, j) for i in range(h) for j in range(i + 1)]
    i_R = h * k1
    i_t = i_R + len(pairs)
    i_c = i_t + h

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        b = len(theta)
        W = theta[:, :i_R].reshape(b, h, k1)
        R = np.zeros((b, h, h))
        for index, (i, j) in enumerate(pairs):
            R[:, i, j] = theta[:, i_R + index]
        t = theta[:, i_t:i_c]
        u = z - np.einsum("nk,bhk->bnh", x, W)
        v = u @ R
        values = (
            theta[:, i_c:] @ level.T + 0.5 * np.square(v).sum(-1) + (u**3 @ t[:, :, None])[..., 0]
        )
        J = np.empty((b, n, i_c + r))
        slope = v @ R.transpose(0, 2, 1) + 3 * t[:, None] * u**2  # dy/du
        J[..., :i_R] = -(slope[..., :, None] * x[:, None, :]).reshape(b, n, i_R)
        for index, (i, j) in enumerate(pairs):
            J[..., i_R + index] = v[..., j] * u[..., i]
        J[..., i_t:i_c] = u**3
        J[..., i_c:] = level
        return values, J

    return form, i_R, i_t, i_c, i_c + r


def _cell_optima(
    runs: _Runs,
    bowl: _Bowl,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    n_resamples: int,
    rng: np.random.Generator,
    level: float = 0.9,
) -> pd.DataFrame:
    """The optimum of each scale with runs enough: the common bowl, moved to where these want it.

    Indexed by the scale's place among all.
    """
    h = len(optimum_of)
    found, places = [], []
    for i, x in enumerate(runs.x):
        mine = runs.at[bowl.rows] == i
        n = int(mine.sum())
        if n < 2 * h + 2:
            continue
        rows, weights = bowl.rows[mine], bowl.weights[mine]
        z, y = runs.z[rows], runs.y[rows]
        form, i_R, _, i_c, p = _bowl_form(z, np.ones((n, 1)), np.ones((n, 1)))
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
