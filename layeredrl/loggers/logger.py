"""Interface of loggers, and a list of loggers whose failures do not stop the training."""

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STEP_COLUMN = "n_total_env_steps"
"""Name of the x-axis of every log: environment steps, summed over the environment instances."""


class Logger(ABC):
    """Writes the metrics of a run.

    Metric names are grouped by a prefix: ``env/``, ``eval/``, ``model/``, ``plan/``, ``policy/``, ``skill/``,
    ``time/``.

    A logger takes its settings in the constructor and opens its file or service at the first record. In between,
    `load_state_dict` makes it continue the log of an earlier process: records after the saved state are dropped,
    so that a resumed run leaves the same log as an uninterrupted one. Otherwise a new log replaces an old one.
    """

    @abstractmethod
    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        """Record some metrics.

        Calls with the same `n_total_env_steps` are separate records, for instance one per episode that ended
        in one step of a vector environment. Without metrics there is no record.

        Args:
            metrics: Numbers by name: Python numbers, or numpy or torch scalars.
            n_total_env_steps: Environment steps so far; must not decrease.
        """

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:  # noqa: B027  optional
        """Record the PNG at `path`, which may change afterwards. A logger without pictures does nothing."""

    def log_video(self, name: str, path: Path, n_total_env_steps: int) -> None:  # noqa: B027  optional
        """Record the GIF at `path`, which may change afterwards. A logger without pictures does nothing."""

    def log_model(self, files: Mapping[str, Path], n_total_env_steps: int) -> None:  # noqa: B027  optional
        """Record a trained model: its files, which may change afterwards, by their names relative to its folder.

        A logger that keeps no models does nothing.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`: JSON-able, with all records before it safe on the disk."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  optional
        """Continue the log that `state` describes. To be called before the first record."""

    def close(self) -> None:  # noqa: B027  optional
        """Finish the log. May be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LoggerList(Logger):
    """Several loggers as one.

    A logger that raises is switched off with one `RuntimeWarning`; the others and the training continue. Errors of
    the caller (a metric that is not a number, a figure that does not exist) are raised before any logger is called.
    `load_state_dict` raises too: before training starts, the user can still act on the error.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self._loggers: dict[str, Logger] = {}
        n_seen: Counter[str] = Counter()
        for logger in loggers:
            kind = type(logger).__name__
            n_seen[kind] += 1
            self._loggers[kind if n_seen[kind] == 1 else f"{kind}-{n_seen[kind]}"] = logger
        self._working = dict(self._loggers)
        self._states: dict[str, dict[str, Any]] = {}

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        numbers = {name: plain_number(name, value) for name, value in metrics.items()}
        self._call_each(lambda logger: logger.log(numbers, n_total_env_steps))

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:
        _require_file(name, path)
        self._call_each(lambda logger: logger.log_figure(name, path, n_total_env_steps))

    def log_video(self, name: str, path: Path, n_total_env_steps: int) -> None:
        _require_file(name, path)
        self._call_each(lambda logger: logger.log_video(name, path, n_total_env_steps))

    def log_model(self, files: Mapping[str, Path], n_total_env_steps: int) -> None:
        for name, path in files.items():
            _require_file(name, path)
        self._call_each(lambda logger: logger.log_model(files, n_total_env_steps))

    def state_dict(self) -> dict[str, Any]:
        """Return the states by logger; the last known state of one that is switched off, fails now or is absent."""
        for key, logger in self._loggers.items():
            try:
                self._states[key] = logger.state_dict()
            except Exception as error:  # same reason as in _call_each
                self._switch_off(key, error)
        return dict(self._states)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the loggers in `state`. One that was added since starts a log of its own.

        States of absent loggers are kept for a later run that has them again.
        """
        self._states = dict(state)
        for key, logger in self._loggers.items():
            if key in state:
                logger.load_state_dict(state[key])

    def close(self) -> None:
        working, self._working = self._working, {}
        for key, logger in working.items():
            try:
                logger.close()
            except Exception as error:  # same reason as in _call_each
                warnings.warn(f"{key} could not be closed: {_describe(error)}", RuntimeWarning, stacklevel=2)

    def _call_each(self, call: Callable[[Logger], None]) -> None:
        for key, logger in list(self._working.items()):
            try:
                call(logger)
            except Exception as error:  # backends raise anything, and a log must not stop the training
                self._switch_off(key, error)

    def _switch_off(self, key: str, error: Exception) -> None:
        logger = self._working.pop(key, None)
        if logger is None:
            return  # already switched off with its one warning
        message = f"{key} failed and is switched off, training goes on: {_describe(error)}"
        try:
            logger.close()
        except Exception as close_error:  # most likely the same cause: part of the same warning
            message += f"; closing it: {_describe(close_error)}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)  # the caller of `log`, above `log` and `_call_each`


def plain_number(name: str, value: object) -> int | float:
    """Return the Python number in `value`, which may also be a numpy or torch scalar.

    Raises:
        ValueError: If `name` cannot name a metric.
        TypeError: If `value` is not one number.
    """
    if not name or name == STEP_COLUMN:
        raise ValueError(f"a metric cannot be called {name!r}")
    item = getattr(value, "item", None)
    try:
        number = item() if callable(item) else value
    except (ValueError, RuntimeError):  # numpy's and torch's errors for several elements; reported below
        number = value
    if isinstance(number, int):
        return int(number)  # a bool becomes 0 or 1
    if isinstance(number, float):
        return number
    raise TypeError(f"metric {name!r} should be one number, but is {type(value).__name__}: {value!r}")


def _require_file(name: str, path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{name!r} should be logged from {path}, which is not a file")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
