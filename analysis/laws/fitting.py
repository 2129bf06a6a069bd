"""One fitter for every law: robust least squares on log residuals, many fits at once.

Notation
--------
theta    coefficients of one fit, shape ``(p,)``; of b fits at once ``(b, p)``
y        what is fitted, most often the logarithm of a loss, shape ``(n,)`` or ``(b, n)``
r        residual, ``form(theta) - y``
w        weight of a row: how many measurements it stands for
J        derivatives of the form by theta, shape ``(b, n, p)``

The objective is ``sum_i w_i huber_delta(r_i) + sum_j (theta_j - m_j)^2 / 2 s_j^2``: the Huber loss
of Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", eq. 3), summed over rows,
and for those coefficients that have one a normal prior. (A mean in place of the sum shrinks the
gradient until a minimiser stops early: Besiroglu et al. 2024, "Chinchilla Scaling: A replication
attempt", sec. 3.)

Each step is Gauss-Newton's on the weights that the Huber loss gives the present residuals, damped
as by Levenberg and Marquardt until the objective falls. All starts and all resamples take their
steps together, so that a thousand fits are a few hundred matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carbs.spaces import FloatArray

# (b, p) -> values (b, n), derivatives (b, n, p)
Form = Callable[[FloatArray], tuple[FloatArray, FloatArray]]

_MAX_STEPS = 400
_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e9


@dataclass(frozen=True)
class Fits:
    """Where several descents ended.

    Attributes:
        theta: shape ``(b, p)``.
        objective: shape ``(b,)``.
    """

    theta: FloatArray
    objective: FloatArray

    def best(self) -> FloatArray:
        """The coefficients with the least objective, shape ``(p,)``."""
        return np.asarray(self.theta[np.argmin(self.objective)])


def descend(
    form: Form,
    y: FloatArray,
    starts: FloatArray,
    *,
    lower: FloatArray,
    upper: FloatArray,
    delta: float,
    weights: FloatArray | None = None,
    prior: tuple[FloatArray, FloatArray] | None = None,
    tolerance: float = 1e-10,
    max_steps: int = _MAX_STEPS,
) -> Fits:
    """Minimise the objective from each start, within bounds.

    Args:
        form: the law, with its derivatives.
        y: shape ``(n,)``, or ``(b, n)`` where each start has its own.
        starts: shape ``(b, p)``.
        lower, upper: bounds of theta, shape ``(p,)``; a coefficient whose bounds meet is held.
        delta: where the Huber loss turns from a square into a line.
        weights: of the rows, in the shapes that ``y`` may have.
        prior: mean ``(p,)``, or ``(b, p)`` where each start has its own, and deviation ``(p,)``; an
            infinite deviation is no prior.
        tolerance: relative fall of the objective at which a descent ends.
    """
    theta = np.clip(starts, lower, upper)
    b, p = theta.shape
    y = np.broadcast_to(y, (b, y.shape[-1]))
    weights = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    mean, deviation = prior if prior is not None else (np.zeros(p), np.full(p, np.inf))
    mean = np.broadcast_to(mean, (b, p))
    precision = deviation**-2.0

    def objective(rows: NDArray[np.integer], theta: FloatArray, r: FloatArray) -> FloatArray:
        size = np.abs(r)
        huber = np.where(size < delta, 0.5 * r * r, delta * (size - 0.5 * delta))
        penalty = 0.5 * np.square(theta - mean[rows]) @ precision
        return np.asarray(np.einsum("bn,bn->b", weights[rows], huber) + penalty)

    everyone = np.arange(b)
    values, J = form(theta)
    r = values - y
    current = objective(everyone, theta, r)
    damping = np.full(b, 1e-3)
    calm = np.zeros(b, dtype=int)
    active = everyone
    diagonal = np.arange(p)
    for _ in range(max_steps):
        w = weights[active] * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
        wJ = w[:, :, None] * J
        gradient = np.einsum("bnp,bn->bp", wJ, r) + precision * (theta[active] - mean[active])
        H = np.matmul(wJ.transpose(0, 2, 1), J)
        H[:, diagonal, diagonal] += precision
        at = theta[active]
        held = ((at <= lower) & (gradient > 0)) | ((at >= upper) & (gradient < 0))
        held |= lower == upper
        # In units that make H's diagonal one: a coefficient that hardly counts must not make the
        # system singular.
        unit = np.sqrt(np.maximum(H[:, diagonal, diagonal], 1e-200))
        unit = np.where(held | (unit < 1e-12 * unit.max(axis=1, keepdims=True)), 1.0, unit)
        H /= unit[:, :, None] * unit[:, None, :]
        H *= ~held[:, :, None] & ~held[:, None, :]
        H[:, diagonal, diagonal] += damping[active, None] + held
        downhill = np.where(held, 0.0, -gradient / unit)
        step = np.linalg.solve(H, downhill[:, :, None])[:, :, 0] / unit
        tried = np.clip(at + step, lower, upper)
        values, tried_J = form(tried)
        tried_r = values - y[active]
        reached = objective(active, tried, tried_r)
        better = reached < current[active]
        fall = np.where(better, current[active] - reached, 0.0)
        theta[active[better]] = tried[better]
        r[better], J[better] = tried_r[better], tried_J[better]
        damping[active] = np.clip(
            damping[active] * np.where(better, 0.2, 8.0), _LEAST_DAMPING, _MOST_DAMPING
        )
        small = fall <= tolerance * current[active]
        # A step that was refused is no sign of having arrived, until the damping is large.
        stuck = small & (better | (damping[active] > 1e4))
        calm[active] = np.where(stuck, calm[active] + 1, 0)
        current[active] = np.where(better, reached, current[active])
        going = (calm[active] < 3) & (damping[active] < _MOST_DAMPING)
        if not going.any():
            break
        if not going.all():
            active, r, J = active[going], r[going], J[going]
    return Fits(theta, current)


def stacked(first: Form, second: Form) -> Form:
    """The values of two forms of the same coefficients, one after the other."""

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        (values, J), (others, J_others) = first(theta), second(theta)
        return np.concatenate([values, others], axis=1), np.concatenate([J, J_others], axis=1)

    return form
