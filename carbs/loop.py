"""``carbs.minimize``: the loop of suggesting, training and observing, for those who want none.

Each run takes the way

    suggestion   of the optimizer, pending in the file
    call         of the user's function, here or in one of several processes (:class:`_Workers`)
    end          a loss and a cost, or a failure with its traceback (:class:`_End`)
    observation  or failure, in the optimizer and in the file

so that whatever is interrupted goes on from the file, its pending runs first.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carbs.constraints import Constraint, as_tuple
from carbs.earlier import EarlierSweep
from carbs.optimizer import CARBS
from carbs.records import Suggestion, as_number
from carbs.result import SearchResult
from carbs.search_space import Param

if TYPE_CHECKING:
    import os

# So many failures in a row are no matter of the configuration: before a run has ended well, and
# after.
_N_FIRST_FAILURES = 5
_N_FAILURES = 20


class FunctionFailsError(RuntimeError):
    """The function fails whatever it is given.

    Attributes:
        result: what was found before.
    """

    def __init__(self, message: str, result: SearchResult) -> None:
        super().__init__(message)
        self.result = result


def minimize(
    function: Callable[[dict[str, Any]], Any],
    params: Sequence[Param],
    *,
    max_cost: float | None = None,
    n_trials: int | None = None,
    budget: float | None = None,
    n_jobs: int = 1,
    path: str | os.PathLike[str] | None = None,
    constraints: Iterable[Constraint] = (),
    earlier: Sequence[EarlierSweep] = (),
    seed: int = 0,
    progress: bool = True,
) -> SearchResult:
    """Search for the lowest loss at each cost: call the function until a limit is reached.

    Args:
        function: takes a configuration, ``{"learning_rate": 0.003, ...}`` without what is inactive,
            and returns ``loss, cost``, or a mapping or an object with ``output`` and ``cost``. If
            it returns a loss alone, the cost is the seconds that the call took. A run that raises,
            ``SystemExit`` too, is a failure, which teaches the search where not to go; so is a loss
            that is not finite.
        params: what is searched. The first run is made of their centres.
        max_cost: of one run, in the same unit; None for no limit.
        n_trials: how many runs there are to be, failed ones too.
        budget: what all runs together may cost. This or ``n_trials`` is needed; with both, both are
            used up.
        n_jobs: how many processes run the function at a time. With 1 it runs in this one. With
            more, each process imports what the function needs, and one that dies (out of memory) is
            a failed run.
        path: of a file that holds every run as it ends, :meth:`CARBS.save`'s. If it exists the
            search goes on from there, first with the runs that were interrupted; limits count from
            the beginning, and may have been raised. So may earlier sweeps have come; constraints
            stay.
        constraints, earlier, seed: as :class:`CARBS` takes them.
        progress: whether to show a bar, where there is a terminal.

    Raises:
        ValueError: neither limit is given, the file holds another search, or what
            :class:`CARBS` refuses.
        FunctionFailsError: the first five runs have failed, or twenty in a row, with the last
            traceback. The first five are tried again when the search goes on from its file.
    """
    if n_trials is None and budget is None:
        raise ValueError("minimize needs n_trials or budget, or it would never end")
    if n_jobs < 1:
        raise ValueError(f"n_jobs is {n_jobs}, expected a whole number of at least 1")
    constraints = as_tuple(constraints)
    fresh = CARBS(
        params,
        constraints=constraints,
        max_cost=max_cost,
        n_trials=n_trials,
        budget=budget,
        earlier=earlier,
        seed=seed,
    )
    optimizer = fresh if path is None else _opened(Path(path), fresh, constraints)
    search = _Search(optimizer, None if path is None else Path(path))
    with _bar(optimizer, progress) as show, _Workers(function, n_jobs) as workers:
        while True:
            while workers.have_room and (suggestion := search.next()) is not None:
                workers.start(suggestion)
            if not workers.running:
                break
            search.record(*workers.wait())
            show()
    search.check_that_some_run_ended()
    return SearchResult(optimizer)


def _opened(path: Path, fresh: CARBS, constraints: Sequence[Constraint]) -> CARBS:
    if not path.exists():
        return fresh
    optimizer = CARBS.load(path, constraints=constraints)
    if optimizer.direction != fresh.direction:
        raise ValueError(f"{path} holds a search to {optimizer.direction}: name another path")
    if optimizer.space.params != fresh.space.params:
        raise ValueError(
            f"{path} holds a search over other parameters: there "
            f"{_difference(optimizer.space.params, fresh.space.params)}. Name another path, or "
            "learn from it by earlier=[EarlierSweep.load(path)]"
        )
    limits = ("n_trials", "budget", "max_cost", "seed")
    told = {name: getattr(fresh._state, name) for name in limits}
    if fresh._state.earlier:
        told["earlier"] = fresh._state.earlier
        optimizer._earlier = fresh._earlier
    optimizer._state = optimizer._state.model_copy(update=told)
    return optimizer


def _difference(saved: Sequence[Param], given: Sequence[Param]) -> str:
    """What one list has otherwise than the other."""
    old, new = ({param.name: param for param in params} for params in (saved, given))
    both = [name for name in old if name in new and old[name] != new[name]]
    parts = [f"is no {name!r}" for name in new if name not in old]
    parts += [f"is {name!r} as well" for name in old if name not in new]
    parts += [f"{name!r} is {old[name]}, where this call has {new[name]}" for name in both]
    return ", ".join(parts) or f"they stand in another order, {list(old)}"


class _Search:
    """The optimizer and its file, from one run to the next."""

    def __init__(self, optimizer: CARBS, path: Path | None) -> None:
        self._optimizer = optimizer
        self._path = path
        self._interrupted = list(optimizer.pending)
        self._in_a_row: list[tuple[Suggestion, _End]] = []
        self._n_ended_well = 0
        self._counts_seconds = False

    def next(self) -> Suggestion | None:
        """What to run next; None where the limits are reached."""
        if self._interrupted:
            return self._interrupted.pop(0)
        optimizer, limits = self._optimizer, self._optimizer._state
        costs = _costs(optimizer)
        if limits.n_trials is not None and len(costs) + len(limits.pending) >= limits.n_trials:
            return None
        if limits.budget is not None:
            dearest = max(costs, default=0.0)
            expected = [pending.predicted_cost or dearest for pending in limits.pending]
            if sum(costs) + sum(expected) >= limits.budget:
                return None
        suggestion = optimizer.suggest()
        self._save()
        return suggestion

    def record(self, suggestion: Suggestion, end: _End) -> None:
        if end.reason is None:
            assert end.output is not None
            self._optimizer.observe(
                suggestion, output=end.output, cost=end.seconds if end.cost is None else end.cost
            )
        else:
            # In which unit the function counts is known from a run that ended.
            cost = end.seconds if self._counts_seconds else None
            self._optimizer.observe_failure(suggestion, reason=end.reason, cost=cost)
        if end.is_measured:
            self._n_ended_well += 1
            self._counts_seconds = end.cost is None
            self._in_a_row = []
        else:
            self._in_a_row.append((suggestion, end))
        most = _N_FAILURES if self._n_ended_well else _N_FIRST_FAILURES
        if len(self._in_a_row) >= most:
            self._give_up()
        self._save()

    def check_that_some_run_ended(self) -> None:
        if self._in_a_row and not self._optimizer.observations:
            self._give_up()

    def _give_up(self) -> None:
        suggestion, end = self._in_a_row[-1]
        if not self._n_ended_well:
            # Most likely the function is wrong, and no configuration is to blame for that.
            self._optimizer._reopen([suggestion for suggestion, _ in self._in_a_row])
        self._save()
        n = len(self._in_a_row)
        again = "" if self._path is None else f" The same call goes on from {self._path}."
        raise FunctionFailsError(
            f"{'the only run' if n == 1 else f'all of the last {n} runs'} failed: mend the "
            f"function.{again} The last, of {suggestion.params}, ended with\n\n{end.trace}",
            SearchResult(self._optimizer),
        )

    def _save(self) -> None:
        if self._path is not None:
            self._optimizer.save(self._path)


def _costs(optimizer: CARBS) -> list[float]:
    """Of every run that has ended; a failure of unknown cost counts as nothing."""
    failures = [failure.cost or 0.0 for failure in optimizer.failures]
    return [run.cost for run in optimizer.observations] + failures


@dataclass(frozen=True)
class _End:
    """How a call ended: as plain values, which any process can send to another.

    Attributes:
        cost: that the function told; None where it told none.
        seconds: that the call took.
        reason: of a failure.
        trace: of the exception, if there was one.
    """

    output: float | None = None
    cost: float | None = None
    seconds: float = 0.0
    reason: str | None = None
    trace: str = ""

    @property
    def is_measured(self) -> bool:
        return self.output is not None and abs(self.output) < float("inf")


def _call(function: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> _End:
    started = time.perf_counter()
    try:
        returned = function(params)
        seconds = time.perf_counter() - started
        output, cost = _output_and_cost(returned)
    except (Exception, SystemExit) as error:  # trainings end themselves by sys.exit(1)
        seconds = time.perf_counter() - started
        reason = f"{type(error).__name__}: {error}"
        return _End(seconds=seconds, reason=reason, trace=traceback.format_exc())
    trace = f"a loss of {output}"
    return _End(output=output, cost=cost, seconds=max(seconds, 1e-9), trace=trace)


def _output_and_cost(returned: Any) -> tuple[float, float | None]:
    if isinstance(returned, Mapping):
        if not {"output", "cost"} <= set(returned):
            raise ValueError(
                f"the function returned a mapping with {sorted(map(str, returned))}, expected "
                "'output' and 'cost'"
            )
        returned = returned["output"], returned["cost"]
    elif hasattr(returned, "output") and hasattr(returned, "cost"):
        returned = returned.output, returned.cost
    if not isinstance(returned, (tuple, list)):
        return as_number("the loss that the function returned", returned), None
    if len(returned) != 2:
        raise ValueError(f"the function returned {len(returned)} values, expected loss, cost")
    output, cost = returned
    cost = as_number("the cost that the function returned", cost)
    if not 0 < cost < float("inf"):
        raise ValueError(
            f"the function returned a cost of {cost}, expected a positive, finite number"
        )
    return as_number("the loss that the function returned", output), cost


class _Workers:
    """Runs the function, in this process or in several, each of which takes one run at a time.

    Args:
        function: the user's.
        n_jobs: with 1, in this process.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Any], n_jobs: int) -> None:
        self._function = function
        self._n_jobs = n_jobs
        self._idle: list[Any] = []  # loky's executors, each with one process
        self.running: dict[Any, tuple[Suggestion, Any]] = {}

    @property
    def have_room(self) -> bool:
        return len(self.running) < self._n_jobs

    def start(self, suggestion: Suggestion) -> None:
        if self._n_jobs == 1:
            self.running[suggestion.id] = suggestion, None
            return
        import loky

        executor = self._idle.pop() if self._idle else loky.ProcessPoolExecutor(max_workers=1)
        future = executor.submit(_call, self._function, dict(suggestion.params))
        self.running[future] = suggestion, executor

    def wait(self) -> tuple[Suggestion, _End]:
        """The next run that ends."""
        if self._n_jobs == 1:
            suggestion, _ = self.running.pop(next(iter(self.running)))
            return suggestion, _call(self._function, dict(suggestion.params))
        from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait

        future = next(iter(wait(self.running, return_when=FIRST_COMPLETED).done))
        suggestion, executor = self.running.pop(future)
        try:
            end = future.result()
        except BrokenExecutor as error:
            executor.shutdown(kill_workers=True)
            text = " ".join(str(error).split())
            return suggestion, _End(reason=f"its process died: {text}", trace=text)
        self._idle.append(executor)
        return suggestion, end

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for _, executor in self.running.values():
            if executor is not None:
                executor.shutdown(kill_workers=True)
        for executor in self._idle:
            executor.shutdown()


@contextmanager
def _bar(optimizer: CARBS, is_wanted: bool) -> Iterator[Callable[[], None]]:
    """A bar over the trials, or over the budget; gives what draws it anew."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    state = optimizer._state
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    total = state.n_trials if state.n_trials is not None else state.budget
    with Progress(
        *columns, console=console, disable=not (is_wanted and console.is_terminal)
    ) as bar:
        task = bar.add_task("", total=total)

        def show() -> None:
            costs = _costs(optimizer)
            spent = sum(costs)
            front = optimizer.pareto_front()
            best = f", best {front[-1].output:.4g}" if front else ""
            failed = f", {len(optimizer.failures)} failed" if optimizer.failures else ""
            limit = "" if state.budget is None else f" of {state.budget:.4g}"
            trials = "" if state.n_trials is None else f" of {state.n_trials}"
            text = f"{len(costs)}{trials} runs{failed}, cost {spent:.4g}{limit}{best}"
            done = len(costs) if state.n_trials is not None else spent
            bar.update(task, completed=done, description=text)

        show()
        yield show
