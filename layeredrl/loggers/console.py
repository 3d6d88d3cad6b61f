"""Progress of a run: a live progress bar on a terminal, a plain line now and then anywhere else."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from layeredrl.loggers.logger import Logger

EPISODE_RETURN = "env/episode_return"
MODEL_LOSS = "model/loss"


class ConsoleLogger(Logger):
    """Shows progress, speed, the last and the best episode return, the model's loss, elapsed and remaining time.

    Progress follows every call of `log`, also without metrics. An output that is not a terminal gets plain lines:
    at most one per `line_interval_s`, and one at the end, without control characters even if FORCE_COLOR is set.

    Args:
        n_total_env_steps_end: Environment steps at the end of the run.
        console: Console to write to; standard output by default.
        line_interval_s: Seconds between two lines if the output is not a terminal.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        n_total_env_steps_end: int,
        *,
        console: Console | None = None,
        line_interval_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._n_end = n_total_env_steps_end
        self._console = console if console is not None else Console()
        self._line_interval_s = line_interval_s
        self._clock = clock
        self._start_s = clock()
        self._elapsed_before_s = 0.0
        self._n_steps = 0
        self._speed = _Speed(self._start_s, n_steps=0)
        self._last_return: float | None = None
        self._best_return: float | None = None
        self._model_loss: float | None = None
        self._last_line_s = -math.inf
        self._line_due = False
        self._live: Live | None = None
        if self._console.is_interactive and self._console.file.isatty():
            # Two refreshes per second look smooth and cost nothing beside steps of milliseconds.
            self._live = Live(console=self._console, get_renderable=self._frame, refresh_per_second=2)

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        now_s = self._clock()
        self._n_steps = n_total_env_steps
        self._speed.update(now_s, n_total_env_steps)
        if EPISODE_RETURN in metrics:
            last = self._last_return = float(metrics[EPISODE_RETURN])
            if not math.isnan(last):
                self._best_return = last if self._best_return is None else max(last, self._best_return)
        if MODEL_LOSS in metrics:
            self._model_loss = float(metrics[MODEL_LOSS])
        self._line_due = True
        if self._live is not None:
            with _closed_pipe_is_an_error():
                self._live.start()
        elif now_s - self._last_line_s >= self._line_interval_s:
            self._write_line()

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_total_env_steps": self._n_steps,
            "elapsed_s": self._elapsed_s(),
            "last_return": self._last_return,
            "best_return": self._best_return,
            "model_loss": self._model_loss,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._start_s = self._clock()
        self._elapsed_before_s = state["elapsed_s"]
        self._n_steps = state["n_total_env_steps"]
        self._speed = _Speed(self._start_s, self._n_steps)
        self._last_return = state["last_return"]
        self._best_return = state["best_return"]
        self._model_loss = state["model_loss"]

    def close(self) -> None:
        if self._live is not None:
            with _closed_pipe_is_an_error():
                self._live.stop()
        elif self._line_due:
            self._write_line()

    def _write_line(self) -> None:
        self._line_due = False  # also if it fails
        with _closed_pipe_is_an_error():
            self._console.print(self._status(), markup=False, highlight=False, soft_wrap=True)
        self._last_line_s = self._clock()

    def _frame(self) -> RenderableType:
        """Return the live display; called from the thread that refreshes it, so it must not change any state."""
        frame = Table.grid(expand=True)
        frame.add_row(ProgressBar(total=max(self._n_end, 1), completed=self._n_steps))
        frame.add_row(Text(self._status()))
        return frame

    def _status(self) -> str:
        parts = [f"{self._n_steps:,}/{self._n_end:,} env steps"]
        speed = self._speed.steps_per_s
        if speed:
            parts.append(f"{speed:,.1f} steps/s" if speed < 10 else f"{speed:,.0f} steps/s")
        if self._last_return is not None:
            best = "" if self._best_return is None else f" (best {self._best_return:.2f})"
            parts.append(f"return {self._last_return:.2f}{best}")
        if self._model_loss is not None:
            parts.append(f"model loss {self._model_loss:.4g}")
        parts.append(f"{_as_time(self._elapsed_s())} elapsed")
        if speed:
            parts.append(f"{_as_time(max(self._n_end - self._n_steps, 0) / speed)} left")
        return " | ".join(parts)

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + self._clock() - self._start_s


@contextlib.contextmanager
def _closed_pipe_is_an_error() -> Iterator[None]:
    """Raise an error of this logger where rich would end the program, because the output's reader has closed it."""
    try:
        yield
    except SystemExit as error:
        raise BrokenPipeError("the reader of the output has closed it") from error


class _Speed:
    """Environment steps per second over the last minute.

    The mean over the run would mislead, because the first steps are random and fast; a few seconds would, because
    stepping and fitting the model alternate.
    """

    WINDOW_S = 60.0
    RESOLUTION_S = 1.0  # seconds between two records, so that fast runs do not keep thousands

    def __init__(self, now_s: float, n_steps: int) -> None:
        self.steps_per_s: float | None = None
        self._moments = deque([(now_s, n_steps)])

    def update(self, now_s: float, n_steps: int) -> None:
        """Record that there were `n_steps` steps at the time `now_s`."""
        moments = self._moments
        if len(moments) > 1 and now_s - moments[-2][0] < self.RESOLUTION_S:
            moments.pop()
        moments.append((now_s, n_steps))
        while len(moments) > 2 and moments[1][0] <= now_s - self.WINDOW_S:
            moments.popleft()
        first_s, n_first = moments[0]
        if now_s > first_s:
            self.steps_per_s = (n_steps - n_first) / (now_s - first_s)


def closing_table(rows: Mapping[str, str], *, title: str = "Run finished", console: Console | None = None) -> None:
    """Write a table of two columns at the end of a run.

    Args:
        rows: Values by name, in this order.
        title: Title above the table.
        console: Console to write to; standard output by default.
    """
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(Text(name), Text(value, overflow="fold"))  # Text: brackets in a value are no markup
    (console if console is not None else Console()).print(table)


def _as_time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
