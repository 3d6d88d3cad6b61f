"""Metrics, pictures and the configuration for TensorBoard."""

import itertools
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from layeredrl.loggers.logger import Logger

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter

_EVENT_FILES = "events.out.tfevents.*"
_LEAST_PICTURE_SIZE = 80  # bytes of a record; the smallest PNG alone has 67

_N_CHANNELS = {"L": 1, "LA": 2, "RGBA": 4}
"""Number of channels by PIL's mode of an image; 3 for all other modes of PNG and GIF."""


class TensorBoardLogger(Logger):
    """Scalars at `n_total_env_steps`, figures and videos as images, the configuration as text.

    Event files only grow: a resumed run makes TensorBoard hide their records of later steps than its saved state, and
    leaves out pictures of its last step that are there. A new run makes TensorBoard hide all records.

    Args:
        config: Nested, JSON-able settings of the run.
        directory: Folder of the event files.
    """

    def __init__(self, config: Mapping[str, object], directory: Path) -> None:
        self._config = config
        self._directory = directory
        self._writer: SummaryWriter | None = None
        self._closed = False
        self._n_steps = -1  # environment steps of the last record
        self._present: set[str] = set()  # names of pictures of this step that an earlier process has recorded

    def log(self, metrics: Mapping[str, float], n_total_env_steps: int) -> None:
        if not metrics:
            return
        writer = self._opened()
        for name, value in metrics.items():
            writer.add_scalar(name, value, n_total_env_steps)
        self._n_steps = n_total_env_steps

    def log_figure(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self._log_image(name, path, n_total_env_steps)

    def log_video(self, name: str, path: Path, n_total_env_steps: int) -> None:
        self._log_image(name, path, n_total_env_steps)

    def state_dict(self) -> dict[str, Any]:
        if self._writer is not None:
            self._writer.flush()
        return {"n_total_env_steps": self._n_steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._writer is not None:
            raise RuntimeError("a TensorBoardLogger has to be restored before it writes anything")
        self._n_steps = int(state["n_total_env_steps"])
        self._present = self._pictures_at(self._n_steps)

    def close(self) -> None:
        self._closed = True
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _opened(self) -> "SummaryWriter":
        if self._closed:
            raise RuntimeError("this TensorBoardLogger is closed")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step hides that step and later ones in existing files.
            self._writer = SummaryWriter(self._directory, purge_step=self._n_steps + 1)
            if self._n_steps < 0:
                self._writer.add_text("config", f"```json\n{json.dumps(self._config, indent=2)}\n```", 0)
        return self._writer

    def _log_image(self, name: str, path: Path, n_total_env_steps: int) -> None:
        """Record the bytes of an image file unchanged, so that TensorBoard plays an animated GIF."""
        if n_total_env_steps == self._n_steps and name in self._present:
            return
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as image:
            width, height = image.size
            n_channels = _N_CHANNELS.get(image.mode, 3)
        encoded = Summary.Image(
            height=height, width=width, colorspace=n_channels, encoded_image_string=path.read_bytes()
        )
        summary = Summary(value=[Summary.Value(tag=name, image=encoded)])
        file_writer = cast("FileWriter", self._opened().file_writer)  # set by now, whatever its type says
        file_writer.add_summary(summary, n_total_env_steps)
        self._n_steps = n_total_env_steps

    def _pictures_at(self, n_total_env_steps: int) -> set[str]:
        """Return the names of the pictures of this step that the event files hold, without hidden ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        names: set[str] = set()
        for path in sorted(self._directory.glob(_EVENT_FILES)):
            for data in _first_and_large_records(path):
                event = Event.FromString(data)
                if event.session_log.status == SessionLog.START and event.step <= n_total_env_steps:
                    names.clear()
                if event.step == n_total_env_steps:
                    names |= {value.tag for value in event.summary.value if value.HasField("image")}
        return names


def _first_and_large_records(path: Path) -> Iterator[bytes]:
    """Yield the records of an event file that may begin a session or hold a picture; scalars are skipped unread."""
    with path.open("rb") as file:
        size = path.stat().st_size
        # Records of TensorFlow: length, its checksum, data, their checksum.
        for index in itertools.count():
            header = file.read(12)
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
            if file.tell() + length + 4 > size:  # the end, or a process was killed while it wrote
                return
            if index < 3 or length >= _LEAST_PICTURE_SIZE:
                yield file.read(length)
                file.seek(4, os.SEEK_CUR)
            else:
                file.seek(length + 4, os.SEEK_CUR)
