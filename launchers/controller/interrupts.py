"""Ctrl-C and SIGTERM: noted when they come, and heeded between two steps of the control loop."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Self

# Between the first Ctrl-C and the second.
_SECOND_CTRL_C_S = 2.0


class Interrupted(Exception):  # noqa: N818  # a request by the user, not an error
    """Ctrl-C or SIGTERM: nothing more was submitted.

    Attributes:
        is_cancelled: whether the jobs were cancelled; else what runs goes on running.
        jobs: that there were, a few words for each.
        signal: that has come; SIGINT also for ``carbs cancel``.
    """

    def __init__(
        self,
        is_cancelled: bool = False,
        jobs: Sequence[str] = (),
        signal: signal.Signals = signal.SIGINT,
    ) -> None:
        super().__init__(is_cancelled)
        self.is_cancelled = is_cancelled
        self.jobs = tuple(jobs)
        self.signal = signal


class Interrupts:
    """While it is entered, the signals are noted and do nothing else.

    Attributes:
        n_ctrl_c: how often Ctrl-C was pressed.
        is_terminated: whether SIGTERM has come.
    """

    def __init__(self) -> None:
        self.n_ctrl_c = 0
        self.is_terminated = False

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # No more than a note: a handler that took a lock could wait for what it interrupts.
        if number == signal.SIGTERM:
            self.is_terminated = True
        else:
            self.n_ctrl_c += 1

    def have_come(self) -> bool:
        return self.n_ctrl_c > 0 or self.is_terminated

    def wait_for_second(self) -> None:
        """Give the user the time to press Ctrl-C once more."""
        last = time.monotonic() + _SECOND_CTRL_C_S
        while self.n_ctrl_c < 2 and not self.is_terminated and time.monotonic() < last:
            time.sleep(0.02)
