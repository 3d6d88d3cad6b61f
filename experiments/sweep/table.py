"""A study at a glance: what its runs have written so far, as a live table, study.json and trials.csv."""

import csv
import io
import json
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.sweep.guard import write_whole
from experiments.sweep.study import Study, Trial

STATES = ("running", "failed", "stopped", "waiting", "done")
"""Of a trial, in the order in which a table shows them."""


class Metrics:
    """What a run's metrics.csv says so far; only what is new in it is read.

    Args:
        path: Of the file, which may not be there yet.

    Attributes:
        steps: Environment steps taken, as of the last row.
        seconds: Time that training has taken, likewise.
        evaluation: Mean return of the last evaluation; None without one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next update reads the file from its beginning."""
        self.steps, self.seconds = 0, 0.0
        self.evaluation: float | None = None
        self._returns: deque[float] = deque(maxlen=10)
        self._clock: deque[tuple[float, int]] = deque(maxlen=30)
        self._columns: list[str] = []
        self._read, self._known = 0, (0, 0, 0)

    @property
    def episode_return(self) -> float | None:
        """Mean of the last ten episodes; None before there was one."""
        return sum(self._returns) / len(self._returns) if self._returns else None

    @property
    def steps_per_s(self) -> float | None:
        """Over the last rows that tell the time; None before there are two."""
        (first_s, first), (last_s, last) = (self._clock[0], self._clock[-1]) if self._clock else ((0.0, 0), (0.0, 0))
        return (last - first) / (last_s - first_s) if last_s > first_s else None

    def update(self) -> None:
        """Read what has been added. A file that was replaced, which happens when a run goes on, is read as a whole."""
        try:
            found = self.path.stat()
            if (found.st_ino, found.st_size, found.st_mtime_ns) == self._known:
                return
            if found.st_ino != self._known[0] or found.st_size < self._read:
                self.reset()
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):  # is being written
                        break
                    self._read += len(line)
                    self._take(next(csv.reader([line.decode()])))
        except (OSError, ValueError, StopIteration):  # in the midst of being replaced; the next update sees it whole
            return
        self._known = (found.st_ino, found.st_size, found.st_mtime_ns)

    def _take(self, cells: list[str]) -> None:
        if not self._columns:
            self._columns = cells
            return
        row = {name: float(cell) for name, cell in zip(self._columns, cells, strict=False) if cell}
        self.steps = int(row.get("n_total_env_steps", self.steps))
        if "time/seconds" in row:
            self.seconds = row["time/seconds"]
            self._clock.append((self.seconds, self.steps))
        if "env/episode_return" in row:
            self._returns.append(row["env/episode_return"])
        self.evaluation = row.get("eval/episode_return", self.evaluation)


@dataclass
class Progress:
    """How far a trial has come."""

    trial: Trial
    metrics: Metrics
    state: str = "waiting"
    """One of `STATES`."""
    tries: int = 0
    """Of this call of the command."""
    failures: int = 0
    """In a row, without getting further."""
    message: str = ""
    """What the last try has said, where something was wrong."""
    n_saved: int = -1
    """Environment steps of the newest checkpoint before the last try."""
    due_s: float = 0.0
    """When to try again, by the monotonic clock."""
    token: str = ""
    """Of the try that is under way."""


@dataclass
class StudyFiles:
    """Writes study.json and trials.csv into a study's folder, whole each time."""

    study: Study
    folder: Path
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, progress: Sequence[Progress]) -> None:
        """Write what is known."""
        rows = [self._row(one) for one in progress]
        summary = {
            "study": asdict(self.study),
            "begun": self.begun,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "states": dict(Counter(one.state for one in progress)),
            "trials": {one.trial.name: row for one, row in zip(progress, rows, strict=True)},
        }
        write_whole(self.folder / "study.json", json.dumps(summary, indent=2, default=str) + "\n", "new")
        text = io.StringIO()
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.folder / "trials.csv", text.getvalue(), "new")

    def _row(self, one: Progress) -> dict[str, Any]:
        trial, metrics = one.trial, one.metrics
        return {
            "trial": trial.name,
            "agent": trial.agent,
            "environment": trial.environment,
            "seed": trial.seed,
            **trial.settings,
            "state": one.state,
            "tries": one.tries,
            "steps": metrics.steps,
            "seconds": metrics.seconds,
            "steps_per_second": metrics.steps / metrics.seconds if metrics.seconds else None,
            "return": metrics.episode_return,
            "evaluation": metrics.evaluation,
            "message": one.message,
            "command": trial.command(self.folder),
        }


class StudyView:
    """Shows a study: a live table on a terminal; anywhere else a line for each event, and now and then one for all.

    Args:
        study: What is shown.
        console: Where to.
        line_interval_s: Seconds between two lines that sum up.
    """

    def __init__(self, study: Study, console: Console, line_interval_s: float = 30.0) -> None:
        self._name, self._console = study.name, console
        self._line_interval_s, self._last_line_s = line_interval_s, time.monotonic()
        self._live: Live | None = None
        if console.is_interactive and console.file.isatty():
            self._live = Live(console=console, auto_refresh=False)
            self._live.start()

    def say(self, line: str) -> None:
        """Tell of an event."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, progress: Sequence[Progress]) -> None:
        """Show how far the trials are."""
        now_s = time.monotonic()
        if self._live is not None:
            self._live.update(self._frame(progress), refresh=True)
        elif now_s - self._last_line_s >= self._line_interval_s:
            self._last_line_s = now_s
            self.say(self.summary(progress))

    def close(self) -> None:
        """Leave the terminal as it was, with the last table on it."""
        if self._live is not None:
            self._live.stop()

    def summary(self, progress: Sequence[Progress]) -> str:
        """How many trials are in which state."""
        counts = Counter(one.state for one in progress)
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        return f"{self._name}, {len(progress)} trials: {told}"

    def _frame(self, progress: Sequence[Progress]) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", no_wrap=True)
        table.add_column("state")
        for name in ("steps", "steps/s", "return"):
            table.add_column(name, justify="right")
        shown = sorted(progress, key=lambda one: STATES.index(one.state))[: max(self._console.height - 5, 5)]
        for one in shown:
            metrics = one.metrics
            speed = "" if metrics.steps_per_s is None else f"{metrics.steps_per_s:,.1f}"
            value = "" if metrics.episode_return is None else f"{metrics.episode_return:,.2f}"
            cells = (one.trial.name, one.state, f"{metrics.steps:,}" if metrics.steps else "", speed, value)
            table.add_row(*map(Text, cells))
        hidden = len(progress) - len(shown)
        return Group(Text(self.summary(progress)), table, Text(f"and {hidden} more" if hidden else ""))
