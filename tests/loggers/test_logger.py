import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from layeredrl.loggers import Logger, LoggerList
from layeredrl.loggers.logger import plain_number


class Memory(Logger):
    """Keeps all records."""

    def __init__(self) -> None:
        self.records: list[tuple[Any, ...]] = []
        self.n_closed = 0

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        self.records.append((dict(metrics), n_total_env_steps))

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self.records.append(("figure", name, path, n_total_env_steps))

    def log_video(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self.records.append(("video", name, path, n_total_env_steps))

    def state_dict(self) -> dict[str, Any]:
        return {"n": len(self.records)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del self.records[state["n"] :]

    def close(self) -> None:
        self.n_closed += 1


class Failing(Memory):
    """Fails from its third record on."""

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        if len(self.records) == 2:
            raise OSError("disk is full")
        super().log(metrics, n_total_env_steps)


class FailingFromStart(Memory):
    """Fails at every call."""

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        raise RuntimeError("no connection")

    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("still no connection")

    def close(self) -> None:
        raise RuntimeError("cannot say goodbye")


def test_a_failing_logger_is_switched_off_with_one_warning(tmp_path: Path) -> None:
    first, failing, last = Memory(), Failing(), Memory()
    loggers = LoggerList([first, failing, last])
    loggers.log({"a": 1}, 1)
    loggers.log({"a": 2}, 2)
    with pytest.warns(RuntimeWarning, match="Failing failed and is switched off.*OSError: disk is full") as caught:
        loggers.log({"a": 3}, 3)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    loggers.log({"a": 4}, 4)  # a second warning would be an error
    figure = tmp_path / "figure.png"
    figure.touch()
    loggers.log_figure("eval/figure", figure, 5)
    loggers.close()
    expected = [({"a": n}, n) for n in (1, 2, 3, 4)] + [("figure", "eval/figure", figure, 5)]
    assert first.records == last.records == expected
    assert failing.records == expected[:2]
    assert first.n_closed == failing.n_closed == last.n_closed == 1


def test_errors_while_closing_are_part_of_the_one_warning() -> None:
    loggers = LoggerList([FailingFromStart(), Memory()])
    with pytest.warns(RuntimeWarning, match=r"no connection; closing it: RuntimeError: cannot say goodbye") as caught:
        loggers.log({"a": 1}, 1)
    assert len(caught) == 1
    assert loggers.state_dict() == {"Memory": {"n": 1}}
    loggers.close()
    memory = Memory()
    loggers = LoggerList([FailingFromStart(), memory])
    with pytest.warns(RuntimeWarning, match="FailingFromStart could not be closed: RuntimeError"):
        loggers.close()
    loggers.close()
    assert memory.n_closed == 1


def test_bad_metrics_and_missing_pictures_raise_before_any_logger_is_called(tmp_path: Path) -> None:
    memory = Memory()
    loggers = LoggerList([memory])
    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"a": 1, "b": "2"}, TypeError, "'b' should be one number, but is str"),
        ({"a": np.zeros(3)}, TypeError, "'a' should be one number, but is ndarray"),
        ({"a": torch.zeros(3)}, TypeError, "'a' should be one number, but is Tensor"),
        ({"a": None}, TypeError, "'a' should be one number, but is NoneType"),
        ({"n_total_env_steps": 1}, ValueError, "n_total_env_steps"),
        ({"": 1}, ValueError, "''"),
    ]
    for metrics, error, message in bad:
        with pytest.raises(error, match=message):
            loggers.log(metrics, 1)
    for log in (loggers.log_figure, loggers.log_video):
        with pytest.raises(FileNotFoundError, match=r"eval/picture.*nowhere\.png"):
            log("eval/picture", tmp_path / "nowhere.png", 1)
    assert memory.records == []


def test_numbers_of_numpy_and_torch_become_plain_ones() -> None:
    values = [np.float32(0.1), np.float64(0.1), torch.tensor(0.5)]
    values += [np.int64(3), torch.tensor(3), np.bool_(True), True]
    numbers = [plain_number("a", value) for value in values]
    assert numbers == [float(np.float32(0.1)), 0.1, 0.5, 3, 3, 1, 1]
    assert [type(number) for number in numbers] == [float] * 3 + [int] * 4


def test_states_belong_to_kinds_of_loggers() -> None:
    loggers = LoggerList([Memory(), Failing(), Memory()])
    loggers.log({"a": 1}, 1)
    state = json.loads(json.dumps(loggers.state_dict()))
    loggers.log({"a": 2}, 2)

    class Added(Memory):
        pass

    first, added, second = Memory(), Added(), Memory()
    for logger in (first, added, second):
        for n in (1, 2):
            logger.log({"a": n}, n)
    LoggerList([added, first, second]).load_state_dict(state)
    assert [len(logger.records) for logger in (first, added, second)] == [1, 2, 1]


def test_the_state_of_an_absent_logger_is_kept() -> None:
    loggers = LoggerList([Memory(), Failing()])
    loggers.log({"a": 1}, 1)
    state = json.loads(json.dumps(loggers.state_dict()))
    second = LoggerList([Memory()])
    second.load_state_dict(state)
    second.log({"a": 2}, 2)
    state = json.loads(json.dumps(second.state_dict()))
    assert state == {"Memory": {"n": 1}, "Failing": {"n": 1}}


def test_a_logger_that_was_switched_off_keeps_its_state() -> None:
    loggers = LoggerList([Failing()])
    loggers.log({"a": 1}, 1)
    loggers.log({"a": 2}, 2)
    with pytest.warns(RuntimeWarning):
        loggers.log({"a": 3}, 3)
    assert loggers.state_dict() == {"Failing": {"n": 2}}

    restored = LoggerList([FailingFromStart()])
    restored.load_state_dict({"FailingFromStart": {"n": 0}})
    with pytest.warns(RuntimeWarning, match="still no connection"):
        assert restored.state_dict() == {"FailingFromStart": {"n": 0}}
