"""Metrics as a CSV file, identical for identical runs."""

import contextlib
import csv
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layeredrl.loggers.logger import STEP_COLUMN, Logger, plain_number


class CsvLogger(Logger):
    """One row per call of `log`; the first column is `n_total_env_steps`.

    A column appears when its metric is first logged: the file is then replaced atomically by one with a wider
    header. Cells without a value are empty. Floats have enough digits to read the same float back.

    The file is open only while a row is written, so that a killed process loses no row. Rows that cannot be written,
    because the disk is full, are kept in memory and written with a later one, after one `RuntimeWarning`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns = [STEP_COLUMN]
        self._n_rows = 0  # in the file
        self._whole_size: int | None = None  # bytes of the file before a row that may have been written in part
        self._waiting: list[dict[str, str]] = []
        self._has_warned = False

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        if not metrics:
            return
        cells = {name: repr(plain_number(name, value)) for name, value in metrics.items()}
        self._waiting.append({STEP_COLUMN: str(n_total_env_steps), **cells})
        try:
            self._write_waiting()
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"{self._path} cannot be written ({error}); its rows are kept until it can be",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def state_dict(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # a warning has named it
            self._write_waiting()
        if self._n_rows:
            with self._path.open("r+", encoding="utf-8") as file:
                os.fsync(file.fileno())
            self._sync_folder()
        waiting = {"waiting": [dict(cells) for cells in self._waiting]} if self._waiting else {}
        return {"columns": list(self._columns), "n_rows": self._n_rows, **waiting}

    def close(self) -> None:
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            self._write(self._waiting[0])
            del self._waiting[0]

    def _write(self, cells: Mapping[str, str]) -> None:
        columns = self._columns + [name for name in cells if name not in self._columns]
        if self._n_rows == 0:
            self._start(columns)
        elif len(columns) > len(self._columns):
            self._rewrite(columns)
        self._columns = columns
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow([cells.get(column, "") for column in columns])
        line = row.getvalue().encode()
        with self._path.open("ab") as file:
            size = os.fstat(file.fileno()).st_size
            if self._whole_size is not None:
                size = min(size, self._whole_size)
                file.truncate(size)
            self._whole_size = size
            file.write(line)
        self._n_rows, self._whole_size = self._n_rows + 1, None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Cut the file back to the columns and rows of `state`.

        Raises:
            ValueError: The file does not start with them, or is missing.
        """
        self._columns, self._n_rows = list(state["columns"]), int(state["n_rows"])
        self._waiting = [dict(cells) for cells in state.get("waiting", ())]
        if not self._n_rows:
            return
        if not self._path.exists():
            raise ValueError(self._too_short("there is no such file"))
        self._rewrite(self._columns)

    def _start(self, columns: list[str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(columns)

    def _rewrite(self, columns: list[str]) -> None:
        """Replace the file atomically by its known rows under the header `columns`."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                for row in self._known_rows():
                    writer.writerow(row + [""] * (len(columns) - len(row)))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
            self._sync_folder()
        finally:
            temporary.unlink(missing_ok=True)

    def _known_rows(self) -> Iterator[list[str]]:
        """Yield the known columns of the known rows; the file may have more of both."""
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            n_columns = len(self._columns)
            if not header:
                raise ValueError(self._too_short("it is empty"))
            if header[:n_columns] != self._columns:
                raise ValueError(f"{self._path} should have the columns {self._columns}, but has {header}")
            for n_before in range(self._n_rows):
                row = next(reader, None)
                if row is None or len(row) < n_columns:
                    raise ValueError(self._too_short(f"it has only {n_before}"))
                yield row[:n_columns]

    def _sync_folder(self) -> None:
        """Sync the folder, so that the file's name survives a power failure."""
        descriptor = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _too_short(self, found: str) -> str:
        return f"{self._path} is shorter than the checkpoint says: it should have {self._n_rows} rows, but {found}"
