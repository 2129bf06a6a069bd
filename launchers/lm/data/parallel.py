"""The same done with each piece of the data, in as many processes as there are processors."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from typing import TypeVar

from carbs.launchers.lm.data.sources import Piece

Found = TypeVar("Found")

# Less than this is done before other processes have started.
_ALONE_BYTES = 8_000_000
_SAY_EVERY_S = 15.0


def for_each(
    function: Callable[[Piece], Found],
    pieces: Sequence[Piece],
    what: str,
    n_processes: int | None = None,
) -> list[Found]:
    """``function(piece)`` for each, in their order; the first exception ends all.

    Progress is shown as a bar on a terminal, and as a line now and then elsewhere.

    Args:
        function: can be pickled.
        pieces: to give it.
        what: is being done, for people.
        n_processes: as many as the processors that this process may use by default.
    """
    import loky

    n_processes = min(n_processes or loky.cpu_count(), len(pieces))
    with _progress(what, sum(piece.size for piece in pieces)) as advance:
        if n_processes < 2 or sum(piece.size for piece in pieces) < _ALONE_BYTES:
            found = []
            for piece in pieces:
                found.append(function(piece))
                advance(piece.size)
            return found
        executor = loky.ProcessPoolExecutor(
            n_processes, initializer=_follow, initargs=(os.getpid(),)
        )
        try:
            futures = {executor.submit(function, piece): piece for piece in pieces}
            for future in as_completed(futures):
                future.result()
                advance(futures[future].size)
            return [future.result() for future in futures]
        finally:
            executor.shutdown(kill_workers=True)


_parent: int | None = None


def _follow(parent: int) -> None:
    global _parent
    _parent = parent
    os.environ["OMP_NUM_THREADS"] = "1"


def raise_if_orphaned() -> None:
    """In a process of :func:`for_each`: ends it where the one that it works for is dead."""
    if _parent is not None and os.getppid() != _parent:
        raise RuntimeError(f"the process {_parent} that this one works for has ended")


@contextmanager
def _progress(what: str, n_bytes: int) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield _Lines(what, n_bytes).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=n_bytes)
        yield lambda size: bar.advance(task, size)


class _Lines:
    """Progress in a log: nothing of what takes a moment."""

    def __init__(self, what: str, n_bytes: int) -> None:
        self._what, self._n_bytes, self._done = what, n_bytes, 0
        self._began = self._said = time.monotonic()

    def advance(self, n_bytes: int) -> None:
        self._done += n_bytes
        now = time.monotonic()
        if not self._n_bytes or now - self._said < _SAY_EVERY_S:  # what is built in has no files
            return
        self._said = now
        rate = self._done / (now - self._began)
        print(
            f"{self._what}: {self._done / 1e6:.0f} of {self._n_bytes / 1e6:.0f} MB, "
            f"{rate / 1e6:.1f} MB/s, {(self._n_bytes - self._done) / max(rate, 1):.0f} s to go",
            file=sys.stderr,
            flush=True,
        )
