"""The loggers of a sweep: each in a process of its own, so that none can hold up or fail the sweep.

What was written is noted in the sweep's folder. A controller that starts writes what the one before
has left, and nothing twice: every run has a name that the sweep and the trial give it.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from carbs.launchers.loggers.config import LogConfig
from carbs.launchers.loggers.process import Message, Start
from carbs.launchers.loggers.runs import Summary, TrialRun

# -P: nothing in the working directory takes the place of a module of the client's.
COMMAND = (sys.executable, "-P", "-m", "carbs.launchers.loggers.process")
PATIENCE_S = 120.0
_QUIET_S = 2.0


class Loggers:
    """All of a sweep's loggers.

    Args:
        configs: as the sweep file has them.
        sweep_id: that no other sweep has.
        name: of the sweep.
        folder: of the sweep.
        notify: told of a logger that is left out.
    """

    def __init__(
        self,
        configs: Sequence[LogConfig],
        sweep_id: str,
        name: str,
        folder: Path,
        notify: Callable[[str], None],
    ) -> None:
        self._notify = notify
        self._workers = [
            _Worker(Start(config=config, sweep_id=sweep_id, name=name, folder=folder), notify)
            for config in configs
        ]

    def log(self, trials: Iterable[TrialRun | None]) -> None:
        """Have written what is new of these trials; returns at once."""
        for trial in trials:
            for worker in self._workers:
                if trial is not None:
                    worker.give(trial)

    def close(self, summary: Callable[[], Summary]) -> None:
        """Have the summary written, and wait for what is still to be written, but not for ever."""
        if not self._workers:
            return
        found = summary()
        for worker in self._workers:
            worker.give(found)
        now = time.monotonic()
        with suppress(KeyboardInterrupt):  # whoever does not want to wait
            for worker in self._workers:
                worker.wait(now + _QUIET_S)
            slow = [worker for worker in self._workers if worker.is_at_work]
            if slow:
                names = ", ".join(worker.name for worker in slow)
                self._notify(f"log: writing the rest to {names}")
            for worker in slow:
                worker.wait(now + PATIENCE_S)
        for worker in self._workers:
            worker.end()


class _Worker:
    """One logger: its process, and a thread that waits for its answers."""

    def __init__(self, start: Start, notify: Callable[[str], None]) -> None:
        self.name, self._start, self._notify = start.config.name, start, notify
        self._files = start.folder / "loggers" / start.config.key
        self._files.parent.mkdir(exist_ok=True)
        note = self._files.with_suffix(".json")
        self._written = set(json.loads(note.read_text())) if note.exists() else set()
        self._given = set(self._written)
        self._is_killed = False
        # Numbers of trials wait in line, and what is to be written of each is the newest: a client
        # that is slower than the trials report falls behind by one message, and no more.
        self._waiting: queue.SimpleQueue[int | Summary] = queue.SimpleQueue()
        self._newest: dict[int, TrialRun] = {}
        self._lock = threading.Lock()
        with self._files.with_suffix(".log").open("a") as log:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the controller
            )
        self._thread = threading.Thread(target=self._work, name=f"log-{self.name}", daemon=True)
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def give(self, what: TrialRun | Summary) -> None:
        if isinstance(what, Summary):
            self._waiting.put(what)
        elif what.number not in self._given:
            if what.has_ended:
                self._given.add(what.number)
            with self._lock:
                is_in_line = what.number in self._newest
                self._newest[what.number] = what
            if not is_in_line:
                self._waiting.put(what.number)

    def wait(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """End the process, whether or not it has come to its end."""
        if self.is_at_work:
            self._notify(
                f"log: {self.name} does not come to an end and is left out; what it has not "
                "written is written when the sweep is started again"
            )
        self._is_killed = True
        self._process.kill()
        self._thread.join()
        self._process.communicate()

    def _work(self) -> None:
        """Nothing but waiting: what is slow, or fails, does so in the process."""
        problem = self._answer(self._start.model_dump_json())
        while problem == "":
            what = self._waiting.get()
            if isinstance(what, Summary):
                problem = self._answer(Message(summary=what).model_dump_json())
                break
            with self._lock:
                trial = self._newest.pop(what)
            problem = self._answer(Message(trial=trial).model_dump_json())
            if problem == "" and trial.has_ended:
                self._written.add(trial.number)
                self._take_note()
        if problem:
            self._notify(
                f"log: {self.name} fails and is left out, the sweep goes on ({problem}); what it "
                f"has not written is written when the sweep is started again. See "
                f"{self._files.with_suffix('.log')}"
            )

    def _answer(self, line: str) -> str | None:
        """What the process says: nothing where all went well; None where it was ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except OSError:
            return "its process has ended"
        answer = self._process.stdout.readline()
        if not answer:
            return None if self._is_killed else "its process has ended"
        return answer.strip()

    def _take_note(self) -> None:
        note = self._files.with_suffix(".json")
        temporary = note.with_suffix(".tmp")
        temporary.write_text(json.dumps(sorted(self._written)))
        temporary.replace(note)
