import csv
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from layeredrl.loggers import CsvLogger, LoggerList

Record = tuple[dict[str, float], int]

RECORDS: list[Record] = [
    ({"env/episode_return": -0.1, "env/episode_length": 200}, 200),
    ({"env/episode_return": 1 / 3, "env/episode_length": 200}, 200),
    ({"model/loss": 1e-30}, 400),
    ({}, 500),
    ({"env/episode_return": math.nan, "time/fit, in s": math.inf}, 600),
]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, records: Iterable[Record]) -> CsvLogger:
    logger = CsvLogger(path)
    for metrics, n_total_env_steps in records:
        logger.log(metrics, n_total_env_steps)
    return logger


def test_rows_columns_and_numbers_are_what_was_logged(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "metrics.csv"
    write(path, RECORDS)
    rows = read(path)
    assert list(rows[0]) == [
        "n_total_env_steps",
        "env/episode_return",
        "env/episode_length",
        "model/loss",
        "time/fit, in s",
    ]
    assert [row["n_total_env_steps"] for row in rows] == ["200", "200", "400", "600"]
    assert [row["env/episode_return"] for row in rows] == ["-0.1", "0.3333333333333333", "", "nan"]
    assert [row["env/episode_length"] for row in rows] == ["200", "200", "", ""]
    assert [row["model/loss"] for row in rows] == ["", "", "1e-30", ""]
    assert [row["time/fit, in s"] for row in rows] == ["", "", "", "inf"]
    assert list(path.parent.iterdir()) == [path]


def test_every_row_is_on_the_disk_when_log_returns(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for n in range(3):
        logger.log({"a": n}, n)
        assert len(read(path)) == n + 1


@pytest.mark.parametrize("n_before", range(len(RECORDS) + 1))
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_run(tmp_path: Path, n_before: int) -> None:
    path, uninterrupted = tmp_path / "metrics.csv", tmp_path / "uninterrupted.csv"
    write(uninterrupted, RECORDS)
    logger = write(path, RECORDS[:n_before])
    at_checkpoint = path.read_bytes() if n_before else b""
    state = logger.state_dict()
    for metrics, n_total_env_steps in RECORDS[n_before:]:
        logger.log(metrics, n_total_env_steps)
    with path.open("a") as file:
        file.write("600,0.1")  # the process was killed in the middle of a row

    resumed = CsvLogger(path)
    resumed.load_state_dict(state)
    if n_before:
        assert path.read_bytes() == at_checkpoint
    for metrics, n_total_env_steps in RECORDS[n_before:]:
        resumed.log(metrics, n_total_env_steps)
    assert path.read_bytes() == uninterrupted.read_bytes()


def test_a_new_run_replaces_the_file_at_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write(path, RECORDS)
    logger = CsvLogger(path)
    assert len(read(path)) == 4
    logger.log({"a": 1.0}, 5)
    assert read(path) == [{"n_total_env_steps": "5", "a": "1.0"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_total_env_steps,a\n1,0.5\n", "is shorter than the checkpoint says: .* 2 rows, but .* only 1"),
        ("n_total_env_steps,a\n1,0.5\n2", "is shorter than the checkpoint says: .* 2 rows, but .* only 1"),
        ("n_total_env_steps,b\n1,0.5\n2,0.5\n", "should have the columns .*'a'.*, but has .*'b'"),
        ("", "is shorter than the checkpoint says: it should have 2 rows, but it is empty"),
        (None, "is shorter than the checkpoint says: .* there is no such file"),
    ],
)
def test_a_file_that_does_not_fit_the_state_is_named_and_unchanged(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    logger = CsvLogger(path)
    with pytest.raises(ValueError, match=rf"{path} {message}"):
        logger.load_state_dict({"columns": ["n_total_env_steps", "a"], "n_rows": 2})
    assert list(tmp_path.iterdir()) == ([] if text is None else [path])
    assert text is None or path.read_text() == text
    logger.load_state_dict({"columns": ["n_total_env_steps"], "n_rows": 0})


def test_file_and_folder_are_synced_with_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log({"a": 1}, 1)
    logger.state_dict()
    assert synced == [str(path), str(tmp_path)]
    synced.clear()
    logger.log({"b": 1}, 2)
    assert synced == [f"{path}.tmp", str(tmp_path)]


def test_a_full_disk_costs_neither_the_run_nor_earlier_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    loggers = LoggerList([CsvLogger(path)])
    loggers.log({"a": 1}, 1)

    def replace(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", replace)
    with pytest.warns(RuntimeWarning, match="No space left"):
        loggers.log({"a": 2, "b": 2}, 2)
    loggers.log({"a": 3}, 3)
    assert read(path) == [{"n_total_env_steps": "1", "a": "1"}]
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    loggers.log({"a": 4}, 4)
    assert [row["a"] for row in read(path)] == ["1", "2", "3", "4"]
    assert loggers.state_dict() == {"CsvLogger": {"columns": ["n_total_env_steps", "a", "b"], "n_rows": 4}}


class Torn(io.FileIO):
    """Writes half of a row, and fails."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(data) // 2])
        raise OSError(28, "No space left on device")


def test_a_part_of_a_row_on_a_full_disk_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log({"a": 1}, 1)
    monkeypatch.setattr(Path, "open", lambda path, mode, **_: Torn(path, mode.replace("b", "")))
    with pytest.warns(RuntimeWarning, match=f"{path} cannot be written .*No space left"):
        logger.log({"a": 123}, 2)
    logger.log({"a": 3}, 3)
    assert path.read_bytes() == b"n_total_env_steps,a\n1,1\n2,1"
    monkeypatch.undo()
    state = json.loads(json.dumps(logger.state_dict()))
    assert [row["a"] for row in read(path)] == ["1", "123", "3"]
    resumed = CsvLogger(path)
    resumed.load_state_dict(state)
    resumed.log({"a": 4}, 4)
    assert [row["a"] for row in read(path)] == ["1", "123", "3", "4"]


def test_rows_that_wait_are_in_the_state(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "file" / "metrics.csv")
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        logger.log({"a": 1}, 1)
    state = json.loads(json.dumps(logger.state_dict()))
    resumed = CsvLogger(tmp_path / "metrics.csv")
    resumed.load_state_dict(state)
    resumed.close()
    assert [row["a"] for row in read(tmp_path / "metrics.csv")] == ["1"]


def test_what_others_did_to_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    logger.log({"a": 1}, 1)
    logger.log({"a": 2}, 2)
    path.write_text("n_total_env_steps,a\n1,1\n")  # a shorter one
    logger.log({"a": 3}, 3)
    assert path.read_text() == "n_total_env_steps,a\n1,1\n3,3\n"
