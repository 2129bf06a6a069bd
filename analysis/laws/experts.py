"""The scaling law of mixtures of experts: active and total parameters, tokens, granularity.

Notation
--------
N, D     active parameters and training tokens of a run;  C = 6 N D its compute
X        its expansion, total over active parameters, or the number of experts where given
E^       what the expansion is worth: ``1/E^ = 1/(X - 1 + 1/(1 - 1/X_max)) + 1/X_max``, which
         saturates (Clark et al. 2022, "Unified Scaling Laws for Routed Language Models", sec. 4.2)
G        granularity: how many smaller experts one is split into
n, d, e, g   logs of N, D, E^ and G over their means among the runs

``L = E + exp(a - alpha n - delta e - kappa g + gamma n e) + exp(b - beta d - omega e + zeta d e)``

With E^ in both terms and both interactions it is the joint law of Ludziejewski et al. 2025 ("Joint
MoE Scaling Laws: Mixture of Experts Can Be Memory Efficient"); with kappa it is, to first order,
that of Krajewski et al. 2024 ("Scaling Laws for Fine-Grained Mixture of Experts"); ``gamma n e`` is
the interaction of Clark et al. What runs do not tell of delta, omega, kappa, gamma and zeta stays
near what is usual.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from carbs.analysis.laws.fitting import Form, stacked
from carbs.analysis.laws.forecast import Family, Member, Prior, Runs
from carbs.analysis.laws.power import FLOPS_PER_TOKEN, Law, least_along_budget
from carbs.analysis.laws.power_fits import Told, as_runs, enough, fit_form
from carbs.analysis.laws.power_forms import LOSS_FAMILY, loss_terms, off_usual
from carbs.analysis.laws.rows import check_level, names_of_rows, positive, positive_rows
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

_MOST_EXPANSION = 512.0  # X_max
_NAMES = ("delta", "omega", "gamma", "zeta", "kappa")
# Before any run says something: means and deviations.
_USUAL = ((0.1, 0.15), (0.1, 0.15), (0.0, 0.03), (0.0, 0.03), (0.1, 0.1))
_LARGEST = 3.0


@dataclass(frozen=True)
class ExpertAllocation:
    """How a budget of compute is best spent at one expansion.

    Attributes:
        compute_flops: the budget, ``6 N D``.
        n_active, n_tokens: N and D, each with the interval it is known to.
        loss: predicted, with the interval of a new run.
    """

    compute_flops: float
    n_active: float
    n_active_interval: tuple[float, float]
    n_tokens: float
    n_tokens_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]


@dataclass(frozen=True)
class ExpertLaw(Law):
    """The loss in active parameters, expansion and tokens, and in granularity where it was given.

    Attributes:
        E: irreducible loss, in the unit of the loss.
        alpha, beta: exponents of active parameters and tokens, at the runs' mean expansion.
        delta, omega: of the expansion in the terms of parameters and of tokens, at the runs' means.
        gamma, zeta: how alpha and beta fall with the log of the expansion.
        kappa: exponent of granularity; none where it was not given.
        n_active, expansion, n_tokens: of the runs it was fitted to, each ``(n,)``.
    """

    alpha: float
    beta: float
    delta: float
    omega: float
    gamma: float
    zeta: float
    n_active: FloatArray = field(repr=False)
    expansion: FloatArray = field(repr=False)
    n_tokens: FloatArray = field(repr=False)
    kappa: float | None = None

    def predict(
        self,
        n_active: ArrayLike,
        expansion: ArrayLike,
        n_tokens: ArrayLike,
        granularity: ArrayLike = 1.0,
    ) -> FloatArray:
        """The loss to expect, in the common shape of the arguments."""
        return self._predict(*self._scales(n_active, expansion, n_tokens, granularity))

    def interval(
        self,
        n_active: ArrayLike,
        expansion: ArrayLike,
        n_tokens: ArrayLike,
        granularity: ArrayLike = 1.0,
        level: float = 0.9,
        new_measurement: bool = True,
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's loss is expected, or with ``new_measurement=False`` where the law is.

        Returns:
            (low, high), each in the common shape of the arguments.
        """
        scales, C = self._scales(n_active, expansion, n_tokens, granularity)
        return self._interval(scales, C, level, new_measurement)

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate, low, high, and a note where the runs do not tell it."""
        names = ["E", "alpha", "beta", *(_NAMES if self.kappa is not None else _NAMES[:-1])]
        return self._summary(names, level)

    @cached_property
    def fitted_to(self) -> str:
        """In words: rows, range, residual."""
        return self._fitted_to(FLOPS_PER_TOKEN * self.n_active * self.n_tokens)

    def compute_optimal(
        self,
        compute_flops: float,
        expansion: float,
        granularity: float = 1.0,
        level: float = 0.9,
    ) -> ExpertAllocation:
        """The active parameters and the tokens with the least loss to expect for a budget.

        Args:
            compute_flops: C = 6 N D.
            expansion: total over active parameters, or the number of experts, as in the fit.
            granularity: as in the fit.
            level: of the intervals.

        Raises:
            ValueError: a budget, expansion or granularity not positive, a level not in (0, 1).
        """
        positive(compute_flops=compute_flops)
        check_level(level)

        def along(log_N: FloatArray) -> FloatArray:
            N = np.exp(log_N)
            D = compute_flops / (FLOPS_PER_TOKEN * N)
            return self._scales(N, expansion, D, granularity)[0] - self.center

        middle = 0.5 * math.log(compute_flops / FLOPS_PER_TOKEN)
        best, low, high = least_along_budget(self.forecast, along, middle, level)
        N = np.exp([best, low, high])
        D = compute_flops / (FLOPS_PER_TOKEN * N)
        self._say_if_far(np.array([compute_flops]), stacklevel=3)
        x = along(np.array([best]))
        loss_low, loss_high = self._range(x, level)
        return ExpertAllocation(
            compute_flops=compute_flops,
            n_active=float(N[0]),
            n_active_interval=(float(N[1]), float(N[2])),
            n_tokens=float(D[0]),
            n_tokens_interval=(float(D[2]), float(D[1])),
            loss=float(self._expected(x)[0]),
            loss_interval=(float(loss_low[0]), float(loss_high[0])),
        )

    def _scales(
        self,
        n_active: ArrayLike,
        expansion: ArrayLike,
        n_tokens: ArrayLike,
        granularity: ArrayLike,
    ) -> tuple[FloatArray, FloatArray]:
        N, X, D, G = np.broadcast_arrays(
            *positive(
                n_active=n_active, expansion=expansion, n_tokens=n_tokens, granularity=granularity
            )
        )
        if self.kappa is None and (G != 1).any():
            raise ValueError(
                "this law was fitted without granularity, and cannot tell what it is worth: leave "
                "it out, or give fit_expert_law the runs'"
            )
        if (X < 1).any():
            raise ValueError(f"an expansion is 1 or more, but is {X.min():g}")
        columns = [np.log(N), np.log(D), np.log(worth_of_expansion(X)), np.log(G)]
        return np.stack(columns[: len(self.center)], axis=-1), FLOPS_PER_TOKEN * N * D


def worth_of_expansion(expansion: ArrayLike) -> FloatArray:
    """E^ of an expansion of 1 or more, in its shape: 1 for dense models, at most 512."""
    X = np.asarray(expansion, dtype=float)
    start = 1 / (1 - 1 / _MOST_EXPANSION)
    return np.asarray(1 / (1 / (X - 1 + start) + 1 / _MOST_EXPANSION))


@on_one_thread
def fit_expert_law(
    n_params: ArrayLike,
    n_active: ArrayLike,
    n_tokens: ArrayLike,
    loss: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n_experts: ArrayLike | None = None,
    granularity: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    n_resamples: int = 200,
    seed: int = 0,
) -> ExpertLaw:
    """Fit the loss of mixtures of experts, with dense models among them or not.

    Args:
        n_params: total parameters, at least the active ones, shape ``(n,)``, n >= 11.
        n_active: parameters that a token passes through, shape ``(n,)``.
        n_tokens: D, shape ``(n,)``.
        loss: positive, shape ``(n,)``.
        groups: marks rows of one run, shape ``(n,)``; each row is one by default.
        n_experts: 1 for dense models; is then the expansion, in place of total over active
            parameters; shape ``(n,)``.
        granularity: how many smaller experts one is split into, 1 or more, shape ``(n,)``.
        weights: how many measurements a row stands for, positive, shape ``(n,)``.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: too few rows, rows that are not finite and positive, or with more active than
            total parameters; names them.
    """
    P, N, D, L = positive_rows(n_params=n_params, n_active=n_active, n_tokens=n_tokens, loss=loss)
    X = P / N if n_experts is None else positive_rows(loss=L, n_experts=n_experts)[1]
    wrong = np.flatnonzero(X < 1)
    if len(wrong):
        what = "more active than total parameters" if n_experts is None else "less than one expert"
        rows = names_of_rows(len(X), n_params, n_active, n_experts)[wrong]
        raise ValueError(f"rows {rows.tolist()} have {what}")
    scales = [N, D, worth_of_expansion(X)]
    if granularity is not None:
        scales.append(positive_rows(loss=L, granularity=granularity)[1])
    runs = as_runs(scales, FLOPS_PER_TOKEN * N * D, L, groups, weights)
    enough(runs, 10)
    axes: dict[str, tuple[str, ...]] = {
        "n_active": ("alpha",),
        "n_tokens": ("beta",),
        "expansion": ("delta", "omega", "gamma", "zeta"),
    }
    if granularity is not None:
        axes["granularity"] = ("kappa",)
    told = Told({0: "E", 3: "alpha", 4: "beta"}, axes, {1: ("alpha",), 2: ("beta",)})
    fitted = fit_form(_family(granularity is not None), runs, told, n_resamples, seed)

    def coefficients(theta: FloatArray) -> FloatArray:
        e, _, _, log_alpha, log_ratio = theta.T[:5]
        exponents = np.exp(log_alpha), np.exp(log_alpha + log_ratio)
        return np.stack([np.exp(e), *exponents, *theta.T[5:]], axis=1)

    names = ["E", "alpha", "beta", *(_NAMES if granularity is not None else _NAMES[:-1])]
    return fitted.law(ExpertLaw, names, coefficients, n_active=N, expansion=X, n_tokens=D, loss=L)


def _family(with_granularity: bool) -> Family:
    k = 4 if with_granularity else 3
    n_others = k + 1
    usual = dict(enumerate(_USUAL[:n_others], start=5))
    mean = np.array([m for m, _ in usual.values()])

    def form_at(x: FloatArray) -> Form:
        n, d, e = x[:, :3].T
        none = np.zeros_like(n)
        on_N = np.stack([-e, none, n * e, none, *(-column for column in x[:, 3:].T)])
        on_D = np.stack([none, -e, none, d * e, *(none for _ in x[:, 3:].T)])

        def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
            others = theta[:, 5:]
            values, J = loss_terms(theta[:, :5], n, d, others @ on_N, others @ on_D)
            of_others = J[:, :, 1, None] * on_N.T + J[:, :, 2, None] * on_D.T
            return values, np.concatenate([J, of_others], axis=2)

        return form

    def bounds(y: FloatArray) -> tuple[FloatArray, FloatArray]:
        lower, upper = LOSS_FAMILY.bounds(y)
        wide = np.full(n_others, _LARGEST)
        return np.concatenate([lower, -wide]), np.concatenate([upper, wide])

    def starts(y: FloatArray) -> FloatArray:
        first = LOSS_FAMILY.starts(y)
        return np.column_stack([first, np.tile(mean, (len(first), 1))])

    def expected(prior: Prior, runs: Runs) -> Form:
        return stacked(LOSS_FAMILY.expected(prior, runs), off_usual(usual))

    directions = np.eye(k)
    directions[:2, :2] = LOSS_FAMILY.directions
    return Family(
        form=form_at,
        bounds=bounds,
        starts=starts,
        published=Member(delta=LOSS_FAMILY.published.delta, prior=usual),
        usual=lambda y: {**LOSS_FAMILY.usual(y), **usual},
        expected=expected,
        directions=directions,
        tail=LOSS_FAMILY.tail,
    )
