"""Signals that ask a run to stop."""

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, Self

STOPPED = 75
"""Exit code of a run that was stopped by a signal and can be resumed (EX_TEMPFAIL: try again)."""


class StopRequest:
    """True once SIGTERM, SIGINT or SIGHUP has arrived; another SIGTERM or SIGINT ends the process at once.

    SIGHUP arrives when the terminal is closed, often twice, so that a second one is ignored. A process that ignores
    SIGHUP at its start, for instance under `nohup`, keeps ignoring it.

    A context manager, which restores the handlers of the signals at its end.

    Attributes:
        received: Name of the first signal; None before.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.received is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGHUP:
            return
        if self.received is not None:
            sys.stdout.write("\x1b[?25h" if sys.stdout.isatty() else "")  # a live display has hidden the cursor
            sys.stdout.flush()
            os._exit(128 + number)
        self.received = signal.Signals(number).name
