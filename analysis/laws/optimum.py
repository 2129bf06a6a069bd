"""How the best hyperparameters move with scale, from grids of runs.

Notation
--------
cell     runs at one scale (one N and D, say), over a grid of hyperparameters
x        logs of the cell's scale, centred, with a leading 1, shape ``(k + 1,)``
z        logs of a run's hyperparameters, centred, shape ``(h,)``
W        the law ``z* = W x``, shape ``(h, k + 1)``: exponents but for the first column
u        ``z - W x``, distance from the optimum
R, t     curvature and tilt of the bowl: ``y = c_cell + |R' u|^2 / 2 + t . u^3``, R lower triangular

A cell's own best run says little: around the optimum the loss is flat, so that its noise moves the
argmin over several grid points. What the cells share says much. All runs near their cell's best are
therefore fitted at once, by one bowl that moves with scale along power laws; each cell has a level
of its own. The bowl is steeper towards divergence than towards timidity, hence its cubic part.
Exponents have a wide normal prior around zero (no dependence), which decides only where the cells
hardly differ in scale.

How near is near changes the answer more than noise does (a wide window takes in the steep walls, a
narrow one has few runs), so the law is the average over several windows, and its intervals hold
their spread beside that of the bootstrap: cells are weighted at random (Rubin 1981, "The Bayesian
Bootstrap") and runs resampled within them.

The published grid and its laws: Li et al. 2025, "Predictable Scale: Part I".
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.interpolate import LinearNDInterpolator

from carbs.analysis.laws.fitting import Form, descend
from carbs.analysis.laws.power import UndeterminedLawWarning, check_level, names_of_rows
from carbs.analysis.laws.shown import Shown
from carbs.analysis.laws.usual import OPTIMUM_EXPONENT
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

# Of log loss above the cell's best.
_WINDOWS = (0.01, 0.02, 0.04)
# Deviation of the tilt, as a share of the curvature.
_TILT_PRIOR = 0.15
_N_BEST = 5  # whose mean is the level that windows begin at: the best alone is lucky
_WIDEST = 30.0
# An exponent is a guess if resamples leave this share of its prior's width.
_GUESS, _ENOUGH_TO_TELL_WIDTHS = 0.7, 10
_ONLY_PRIOR = "hardly more than the prior"
_LEAST_RANGE = 1e-6
_N_NAMED = 10  # cells, in a sentence


@dataclass(frozen=True)
class OptimumLaw(Shown):
    """Log-linear optima ``h* = exp(W x)`` of several hyperparameters.

    Attributes:
        optimum_of: names of the hyperparameters, h.
        scales_with: names of what they depend on, k.
        exponents: shape ``(h, k)``.
        level: log optima where all scales are at their center, ``(h,)``.
        center: mean log scales of the cells, ``(k,)``.
        resamples: W, of windows and bootstrap, ``(b, h, k + 1)``.
        optima: each cell's own optimum under the common bowl, with its interval; a row a cell.
        fitted_to: in words.
        left_out: cells that were too small to use, their scales and ``n_runs``; a row a cell.
        doubts: what the runs do not tell, a sentence each.
        undetermined: exponents (``"lr ~ n_params"``) that are hardly more than their prior.
    """

    optimum_of: tuple[str, ...]
    scales_with: tuple[str, ...]
    exponents: FloatArray
    level: FloatArray
    center: FloatArray
    resamples: FloatArray = field(repr=False)
    optima: pd.DataFrame = field(repr=False)
    fitted_to: str
    left_out: pd.DataFrame = field(repr=False)
    doubts: tuple[str, ...] = ()
    undetermined: tuple[str, ...] = ()

    def predict(self, **scales: ArrayLike) -> dict[str, FloatArray]:
        """The optimum of each hyperparameter, by name, in the common shape of the scales."""
        W = np.column_stack([self.level, self.exponents])
        x = self._x(scales)
        return {name: np.exp(x @ W[i]) for i, name in enumerate(self.optimum_of)}

    def interval(
        self, level: float = 0.9, **scales: ArrayLike
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
                    "low": low[i, j + 1],
                    "high": high[i, j + 1],
                    "note": _ONLY_PRIOR * (f"{name} ~ {scale}" in self.undetermined),
                }
                for i, name in enumerate(self.optimum_of)
                for j, scale in enumerate(self.scales_with)
            ]
        )

    def _x(self, scales: Mapping[str, ArrayLike]) -> FloatArray:
        if set(scales) != set(self.scales_with):
            raise ValueError(
                f"this law depends on {', '.join(self.scales_with)}, but was given "
                f"{', '.join(scales) or 'nothing'}"
            )
        values = [np.asarray(scales[name], dtype=float) for name in self.scales_with]
        for name, value in zip(self.scales_with, values, strict=True):
            if not (np.isfinite(value) & (value > 0)).all():
                raise ValueError(f"{name} must be finite and positive")
        logs = [np.log(v) - c for v, c in zip(values, self.center, strict=True)]
        return np.stack(np.broadcast_arrays(np.ones(()), *logs), axis=-1)


@on_one_thread
def fit_optimum_law(
    runs: pd.DataFrame,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    loss: str = "loss",
    *,
    n_resamples: int = 100,
    seed: int = 0,
) -> OptimumLaw:
    """Fit how the best hyperparameters move with scale.

    Args:
        runs: one row a run, diverged ones with the (finite) loss they ended at.
        optimum_of: columns of the hyperparameters, positive.
        scales_with: columns of what their optimum depends on, positive. Runs that are alike in
            these are a cell.
        loss: column of the loss, positive.
        n_resamples: of the bootstrap, for each window.
        seed: of the bootstrap.

    Raises:
        ValueError: columns that are absent, rows that are not finite and positive (named), a
            hyperparameter that varies in no cell, or fewer than two cells of enough runs.
    """
    for argument, value in {"optimum_of": optimum_of, "scales_with": scales_with}.items():
        if isinstance(value, str):
            raise ValueError(f"{argument} is a list of columns: write [{value!r}]")
    h, k = len(optimum_of), len(scales_with)
    columns = [*optimum_of, *scales_with, loss]
    absent = [name for name in columns if name not in runs.columns]
    if absent or not h or not k:
        raise ValueError(f"no column {', '.join(absent)} in {', '.join(map(str, runs.columns))}")
    table = runs[columns].to_numpy(dtype=float)
    wrong = ~(np.isfinite(table) & (table > 0)).all(axis=1)
    if wrong.any():
        rows = names_of_rows(len(runs), runs[loss])[wrong].tolist()
        raise ValueError(f"rows {rows} have a {' or '.join(columns)} not positive")
    logs = np.log(table)
    grid = _Grid.of(logs[:, :h], logs[:, h : h + k], logs[:, -1])
    n_values = grid.most_values()
    constant = [name for name, n in zip(optimum_of, n_values, strict=True) if n < 2]
    if constant:
        raise ValueError(
            f"{', '.join(constant)} has one value in each cell, and so no optimum: leave it out of "
            "optimum_of, or vary it"
        )
    rng = np.random.default_rng(seed)
    bowls = [_fit_bowl(grid, grid.near(window), n_resamples, rng) for window in _WINDOWS]
    # The mean of the windows; each window's resamples around its own fit.
    W = np.mean([bowl.W for bowl in bowls], axis=0)
    drawn = np.concatenate([bowl.resamples for bowl in bowls])
    W[:, 0] += grid.z_center
    drawn[:, :, 0] += grid.z_center
    middle = bowls[len(bowls) // 2]
    left_out = grid.left_out(scales_with)
    doubts = []
    if len(left_out):
        cells = "; ".join(
            ", ".join(f"{name} {row[name]:.4g}" for name in scales_with)
            for row in left_out.head(_N_NAMED).to_dict("records")
        )
        more = ", ..." * (len(left_out) > _N_NAMED)
        doubts.append(
            f"{left_out['n_runs'].sum()} of {len(table)} runs are left out, in {len(left_out)} "
            f"cells of fewer than {2 * h + 2} ({cells}{more})"
        )
    for j, name in enumerate(scales_with):
        values = np.unique(grid.x[:, j + 1] + grid.x_center[j])
        if np.ptp(values) < _LEAST_RANGE:
            doubts.append(f"{name} is {math.exp(values[0]):.4g} in all cells that are left")
    optima = _cell_optima(grid, middle, optimum_of, scales_with, n_resamples, rng)
    for i, name in enumerate(optimum_of):
        if n_values[i] == 2:
            doubts.append(f"{name} has no more than two values in a cell: a bowl needs three")
        lowest, highest = grid.tried(i)
        found = np.log(optima[name].to_numpy()) - grid.z_center[i]
        for ends, way in ((lowest, "less"), (highest, "more")):
            edge = np.abs(found - ends) < _LEAST_RANGE
            if edge.any():
                doubts.append(
                    f"the best {name} is at the edge of what was tried "
                    f"({_few(np.exp(ends[edge] + grid.z_center[i]))}) in {edge.sum()} of "
                    f"{len(edge)} cells, and may lie beyond: try {way}"
                )
    undetermined = tuple(
        f"{name} ~ {scale}"
        for i, name in enumerate(optimum_of)
        for j, scale in enumerate(scales_with)
        if n_resamples >= _ENOUGH_TO_TELL_WIDTHS
        # From quartiles: a few wild resamples of a small grid are no ignorance.
        and np.subtract(*np.quantile(drawn[:, i, j + 1], [0.75, 0.25]))
        > _GUESS * 1.35 * OPTIMUM_EXPONENT
    )
    if undetermined:
        doubts.append(
            f"the runs hardly tell {', '.join(undetermined)}: {_ONLY_PRIOR}, around 0 with a "
            f"deviation of {OPTIMUM_EXPONENT:g}"
        )
    if doubts:
        warnings.warn("; ".join(doubts), UndeterminedLawWarning, stacklevel=3)
    used = ", ".join(
        f"{name} {_few(np.exp(grid.x[:, j + 1] + grid.x_center[j]))}"
        for j, name in enumerate(scales_with)
    )
    return OptimumLaw(
        optimum_of=tuple(optimum_of),
        scales_with=tuple(scales_with),
        exponents=W[:, 1:],
        level=W[:, 0],
        center=grid.x_center,
        resamples=drawn,
        optima=optima,
        fitted_to="; ".join(
            [
                f"{len(grid.y)} of {len(table)} runs in {len(grid.x)} cells ({used}), of them "
                f"{len(middle.rows)} near their cell's best "
                f"(within {100 * _WINDOWS[len(bowls) // 2]:.2g}%, or its {2 * h + 2} best), "
                f"residual {100 * middle.noise:.2g}% of the loss",
                *doubts,
            ]
        ),
        left_out=left_out,
        doubts=tuple(doubts),
        undetermined=undetermined,
    )


def _few(values: FloatArray) -> str:
    """Distinct values, or their range where they are many."""
    distinct = np.unique(np.round(values, 12 - int(math.log10(values.max()))))
    if len(distinct) <= _N_NAMED // 2:
        return ", ".join(f"{value:.4g}" for value in distinct)
    return f"{distinct[0]:.4g} to {distinct[-1]:.4g}"


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
class _Grid:
    """Runs in cells: z ``(n, h)`` and x ``(m, k + 1)`` centred, y ``(n,)``, cell ``(n,)``."""

    z: FloatArray
    x: FloatArray
    y: FloatArray
    cell: np.ndarray
    above: FloatArray
    z_center: FloatArray
    x_center: FloatArray
    too_small: FloatArray  # cells: their log scales and how many runs, (l, k + 1)

    @classmethod
    def of(cls, z: FloatArray, scale: FloatArray, y: FloatArray) -> _Grid:
        scales, cell = np.unique(scale, axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        sizes = np.bincount(cell)
        least = 2 * z.shape[1] + 2
        enough = sizes >= least
        if enough.sum() < 2:
            raise ValueError(
                f"a law of optima needs two cells of {least} runs or more, but of "
                f"{len(scales)} cells {int(enough.sum())} have as many"
            )
        kept, all_scales = enough[cell], scales
        z, y = z[kept], y[kept]
        scales, cell = scales[enough], np.unique(cell[kept], return_inverse=True)[1].reshape(-1)
        too_small = np.column_stack([all_scales[~enough], sizes[~enough]])
        best = np.array([np.sort(y[cell == i])[:_N_BEST].mean() for i in range(len(scales))])
        above = y - best[cell]
        z_center = z[above <= _WINDOWS[-1]].mean(axis=0)
        x_center = scales.mean(axis=0)
        x = np.column_stack([np.ones(len(scales)), scales - x_center])
        return cls(z - z_center, x, y, cell, above, z_center, x_center, too_small)

    def left_out(self, scales_with: Sequence[str]) -> pd.DataFrame:
        """Cells of too few runs."""
        frame = pd.DataFrame(np.exp(self.too_small[:, :-1]), columns=list(scales_with))
        return frame.assign(n_runs=self.too_small[:, -1].astype(int))

    def most_values(self) -> list[int]:
        """How many values each hyperparameter has in a cell, at most."""
        return [
            max(len(np.unique(np.round(column[self.cell == i], 9))) for i in range(len(self.x)))
            for column in self.z.T
        ]

    def tried(self, hyperparameter: int) -> tuple[FloatArray, FloatArray]:
        """The least and the most of it in each cell, ``(m,)`` each."""
        z = pd.Series(self.z[:, hyperparameter]).groupby(self.cell)
        return np.asarray(z.min(), dtype=float), np.asarray(z.max(), dtype=float)

    def near(self, window: float) -> np.ndarray:
        """Rows within the window, or where those are few a cell's best, ``(n',)``."""
        least = 2 * self.z.shape[1] + 2
        rows = []
        for i in range(len(self.x)):
            own = np.flatnonzero(self.cell == i)
            best = own[np.argsort(self.above[own], kind="stable")]
            rows.append(best[: max(least, int((self.above[own] <= window).sum()))])
        return np.sort(np.concatenate(rows))


@dataclass(frozen=True)
class _Bowl:
    """A fit: W ``(h, k + 1)``, its resamples, (R, t) as in theta, noise, rows and their weights."""

    W: FloatArray
    resamples: FloatArray
    shape: FloatArray
    noise: float
    rows: np.ndarray
    weights: FloatArray


def _fit_bowl(grid: _Grid, rows: np.ndarray, n_resamples: int, rng: np.random.Generator) -> _Bowl:
    z, y, cell = grid.z[rows], grid.y[rows], grid.cell[rows]
    h, k1 = z.shape[1], grid.x.shape[1]
    m = len(grid.x)
    form, i_R, i_t, i_c, p = _bowl_form(z, grid.x, cell)
    above = np.maximum(grid.above[rows], 0)
    weights = 1 / (1 + 3 * above / max(float(above.max()), 1e-12))
    lower, upper = np.full(p, -_WIDEST), np.full(p, _WIDEST)
    diagonal = i_R + np.array([i * (i + 1) // 2 + i for i in range(h)])
    lower[diagonal] = 1e-4
    lower[i_t:i_c] = upper[i_t:i_c] = 0.0
    level = np.array([y[cell == i].min() for i in range(m)])
    start = np.zeros(p)
    # A parabola as wide as the runs that are there.
    start[diagonal] = np.sqrt(2 * max(above.max(), 1e-6)) / np.maximum(np.ptp(z, axis=0) / 2, 1e-3)
    start[i_c:] = level
    mean, deviation = np.zeros(p), np.full(p, np.inf)
    exponents = np.array([i * k1 + j for i in range(h) for j in range(1, k1)])
    noise = max(float(np.median(above)) / 5, 1e-6)
    first = start[None]
    for tilted in (False, True, True):
        deviation[exponents] = OPTIMUM_EXPONENT / noise
        if tilted:
            curvature = first[0, diagonal] ** 2
            lower[i_t:i_c], upper[i_t:i_c] = -_WIDEST, _WIDEST
            deviation[i_t:i_c] = _TILT_PRIOR * curvature / noise
        first = descend(
            form,
            y,
            first,
            lower=lower,
            upper=upper,
            delta=1.5 * noise,
            weights=weights,
            prior=(mean, deviation),
        ).theta
        rest = form(first)[0][0] - y
        noise = max(
            float(1.48 * np.sqrt(weights) @ np.abs(rest) / np.sqrt(weights).sum()) / 1.2, 1e-6
        )
    # Runs within cells, and the cells' say.
    counts = np.zeros((n_resamples, len(y)))
    for i in range(m):
        own = np.flatnonzero(cell == i)
        counts[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), n_resamples)
    counts *= (m * rng.dirichlet(np.ones(m), n_resamples))[:, cell]
    # The prior's mean is drawn too: where only the prior knows an exponent, so is its interval.
    means = np.zeros((n_resamples, p))
    means[:, exponents] = OPTIMUM_EXPONENT * rng.standard_normal((n_resamples, len(exponents)))
    drawn = descend(
        form,
        y,
        np.tile(first, (n_resamples, 1)),
        lower=lower,
        upper=upper,
        delta=1.5 * noise,
        weights=weights * counts,
        prior=(means, deviation),
        tolerance=1e-4,
        max_steps=60,
    ).theta
    return _Bowl(
        W=first[0, :i_R].reshape(h, k1),
        resamples=drawn[:, :i_R].reshape(-1, h, k1),
        shape=first[0, i_R:i_c],
        noise=noise,
        rows=rows,
        weights=weights,
    )


def _bowl_form(z: FloatArray, x: FloatArray, cell: np.ndarray) -> tuple[Form, int, int, int, int]:
    """The form for runs z ``(n, h)`` in cells x ``(m, k + 1)``.

    Returns:
        The form of theta = (W, R, t, c); where R, t and c begin; the length of theta.
    """
    n, h = z.shape
    m, k1 = x.shape
    pairs = [(i, j) for i in range(h) for j in range(i + 1)]
    i_R = h * k1
    i_t = i_R + len(pairs)
    i_c = i_t + h
    own = x[cell]
    level = np.eye(m)[cell]

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        b = len(theta)
        W = theta[:, :i_R].reshape(b, h, k1)
        R = np.zeros((b, h, h))
        for index, (i, j) in enumerate(pairs):
            R[:, i, j] = theta[:, i_R + index]
        t = theta[:, i_t:i_c]
        u = z - np.einsum("nk,bhk->bnh", own, W)
        v = u @ R
        values = (
            theta[:, i_c:][:, cell] + 0.5 * np.square(v).sum(-1) + (u**3 @ t[:, :, None])[..., 0]
        )
        J = np.empty((b, n, i_c + m))
        slope = v @ R.transpose(0, 2, 1) + 3 * t[:, None] * u**2  # dy/du
        J[..., :i_R] = -(slope[..., :, None] * own[:, None, :]).reshape(b, n, i_R)
        for index, (i, j) in enumerate(pairs):
            J[..., i_R + index] = v[..., j] * u[..., i]
        J[..., i_t:i_c] = u**3
        J[..., i_c:] = level
        return values, J

    return form, i_R, i_t, i_c, i_c + m


def _cell_optima(
    grid: _Grid,
    bowl: _Bowl,
    optimum_of: Sequence[str],
    scales_with: Sequence[str],
    n_resamples: int,
    rng: np.random.Generator,
    level: float = 0.9,
) -> pd.DataFrame:
    """Each cell's optimum with the common bowl's shape, moved to where its own runs want it."""
    h = len(optimum_of)
    found = []
    for i, x in enumerate(grid.x):
        mine = grid.cell[bowl.rows] == i
        rows, weights = bowl.rows[mine], bowl.weights[mine]
        z, y = grid.z[rows], grid.y[rows]
        form, i_R, _, i_c, p = _bowl_form(z, np.ones((1, 1)), np.zeros(len(rows), dtype=int))
        lower, upper = np.full(p, -_WIDEST), np.full(p, _WIDEST)
        lower[i_R:i_c] = upper[i_R:i_c] = bowl.shape
        # Within the runs: where a cell's best lie on the edge of its grid, so does its optimum.
        lower[:h], upper[:h] = z.min(axis=0), z.max(axis=0)
        start = np.concatenate([bowl.W @ x, bowl.shape, [y.min()]])
        n = len(rows)
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
            + grid.z_center
        )
        low, high = np.quantile(fits[1:], [0.5 - level / 2, 0.5 + level / 2], axis=0)
        row = dict(zip(scales_with, np.exp(x[1:] + grid.x_center), strict=True))
        for j, name in enumerate(optimum_of):
            row |= {name: np.exp(fits[0, j]), f"{name}_low": np.exp(low[j])}
            row |= {f"{name}_high": np.exp(high[j])}
        found.append(row | {"n_runs": n})
    return pd.DataFrame(found)
