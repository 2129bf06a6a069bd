"""What watches over a run: spikes of the loss, gradients that are not finite, and divergence.

All of it is computed on the device, without waiting for it; the host reads the record of several
steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

WINDOW = 64  # losses, against which the next is a spike or not
N_SIGMA = 6.0
MAX_NON_FINITE = 5  # gradients, in a run
N_TOLD = 20  # steps of spikes in the record
SMOOTHING = 0.9  # share of the past in the running mean of the loss
DIVERGED_NATS = 0.5  # above the loss of the first step


class DivergedError(Exception):
    """The message says what was seen, and when."""


class Guards:
    """Looks at each step's loss and gradient, and may let them count for nothing.

    A loss is a spike if it is above the mean of the last 64 by six of their standard deviations, as
    in OLMo (Walsh et al. 2025, arXiv 2501.00656).

    Args:
        device: where losses and gradients lie.
        skip_spikes: whether a spike's batch counts for nothing.

    Attributes:
        losses: of each step that was read, in nats per token.
        spikes: the steps, from 1, whose loss was one.
        n_skipped: steps that counted for nothing.
        n_non_finite: gradients that were not finite; they always count for nothing.
    """

    def __init__(self, device: torch.device, *, skip_spikes: bool) -> None:
        self.skip_spikes = skip_spikes
        # The losses that counted, in a ring; NaN where there was none yet.
        self.recent = torch.full((WINDOW,), math.nan, device=device)
        self._unread: list[Tensor] = []
        self.losses: list[float] = []
        self.smoothed = 0.0
        self.spikes: list[int] = []
        self.n_skipped = self.n_non_finite = 0

    def check(self, step: int, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether the step, counted from 0, shall count for nothing: a boolean on the device."""
        recent = self.recent
        above = loss - recent.mean()  # NaN, and so no spike, before the window is full
        is_spike = above > N_SIGMA * recent.std()
        is_finite = gradient_norm.isfinite()
        is_skipped = ~is_finite
        if self.skip_spikes:
            is_skipped = is_skipped | is_spike
        place = step % WINDOW
        recent[place] = torch.where(is_skipped, recent[place], loss)
        self._unread.append(
            torch.stack([loss, *map(Tensor.float, (is_finite, is_spike, is_skipped))])
        )
        return is_skipped

    def read(self, steps: int) -> None:
        """Waits for the device, and reads what has gathered there.

        Args:
            steps: of the whole run.

        Raises:
            DivergedError: a loss is not finite, or their running mean is half a nat above the
                first after a tenth of the run; or too many gradients were not finite.
        """
        if not self._unread:
            return
        rows = torch.stack(self._unread).tolist()
        self._unread.clear()
        for loss, is_finite, is_spike, is_skipped in rows:
            step = len(self.losses)
            self.losses.append(loss)
            self.n_skipped += bool(is_skipped)
            self.n_non_finite += not is_finite
            if is_spike:
                self.spikes.append(step + 1)
            past = self.smoothed if step else loss
            counted = past if is_skipped and math.isfinite(loss) else loss
            self.smoothed = SMOOTHING * past + (1 - SMOOTHING) * counted
            where = f"at step {step + 1} of {steps}"
            rising = step >= steps / 10 and self.smoothed > self.losses[0] + DIVERGED_NATS
            if rising or not math.isfinite(loss):
                raise DivergedError(f"loss is {loss:.3g} {where}")
            if self.n_non_finite > MAX_NON_FINITE:
                raise DivergedError(f"gradient number {self.n_non_finite} was not finite {where}")

    def record(self) -> dict[str, Any]:
        """What a trial's metrics say of it."""
        return {
            "spikes": len(self.spikes),
            "spikes_at": self.spikes[:N_TOLD],
            "skipped_batches": self.n_skipped,
            "non_finite_gradients": self.n_non_finite,
        }

    def state(self) -> dict[str, Any]:
        """Plain values that :meth:`begin_at` takes; ``recent`` is a tensor beside them."""
        return {
            "losses": self.losses,
            "smoothed": self.smoothed,
            "spikes": self.spikes,
            "n_skipped": self.n_skipped,
            "n_non_finite": self.n_non_finite,
        }

    def begin_at(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from a state, whose ``recent`` is there already, or begins anew without one."""
        self._unread.clear()
        if state is None:
            self.recent.fill_(math.nan)
            return
        self.losses = list(state["losses"])
        self.smoothed = state["smoothed"]
        self.spikes = list(state["spikes"])
        self.n_skipped, self.n_non_finite = state["n_skipped"], state["n_non_finite"]


def zero(gradients: Iterable[Tensor], where: Tensor) -> None:
    """Sets the gradients to zero, in place, if the boolean on the device is true."""
    for gradient in gradients:
        gradient.masked_fill_(where, 0.0)
