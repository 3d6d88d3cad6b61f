"""Reads what an offline W&B run left on the disk, without wandb's own reader, which is internal.

A `.wandb` file is a log as LevelDB writes it. After a header of 7 bytes (":W&B", two bytes of magic number, a
version) follow chunks: checksum (CRC-32 of type and data), length, type, data. A chunk does not cross the
border between two blocks of 32 KiB; a record that would is cut into a first, some middle and a last chunk, and
what is too short for a chunk's header is padding. A record is a protocol buffer,
`wandb.proto.wandb_internal_pb2.Record`.
"""

import base64
import hashlib
import json
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, Record

FILE_HEADER = b":W&B\xe1\xbe\x00"
CHUNK_HEADER = struct.Struct("<IHB")
_BLOCK_SIZE = 32 * 1024
_PATIENCE_S = 10.0
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class OfflineArtifact:
    """Files on the disk that `wandb sync` makes an artifact of."""

    name: str
    kind: str
    aliases: set[str]
    files: dict[str, Path]
    """Path of each file, by its name in the artifact."""

    def download(self, root: Path) -> Path:
        """Copy the present files to where a download of the artifact would put them."""
        for name, path in self.files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(path.read_bytes())
        return root


@dataclass
class OfflineRun:
    """Records of a run."""

    files: Path
    """Folder that paths of media are relative to."""

    run_id: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    step_metrics: dict[str, str] = field(default_factory=dict)
    """The x-axis by metric or by pattern of metrics; empty for a metric that only was defined."""

    finished: bool = False

    rows: list[dict[str, Any]] = field(default_factory=list)
    """The history, a dictionary per record, with wandb's own `_step`, `_timestamp` and `_runtime`."""

    artifacts: list[OfflineArtifact] = field(default_factory=list)


def read_offline_runs(directory: Path) -> list[OfflineRun]:
    """The finished runs of the `WandbLogger`s with this `directory`, oldest first."""
    return [_read_finished(folder) for folder in sorted(directory.glob("wandb/offline-run-*"))]


def read_offline_run(directory: Path) -> OfflineRun:
    """The one finished run of the `WandbLogger` with this `directory`."""
    (run,) = read_offline_runs(directory)
    return run


def wait_for_the_end(path: Path) -> None:
    """Wait for the end of the log, which wandb's service writes milliseconds after `finish` returned."""
    _read_finished(path.parent)


def history_ends(log: bytes) -> list[int]:
    """Return the positions in a log at which its history records end."""
    return [end for data, end in _records_with_ends(log) if Record.FromString(data).HasField("history")]


def _read_finished(folder: Path) -> OfflineRun:
    """Wait for the end of the log, which wandb's service writes milliseconds after `finish` returned."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        for path in folder.glob("run-*.wandb"):
            run = read_part(path)
            if run.finished:
                return run
        time.sleep(0.01)
    raise TimeoutError(f"{folder} holds no log of a finished run")


def read_part(path: Path) -> OfflineRun:
    """Read one log, which need not be finished."""
    run = OfflineRun(files=path.parent / "files")
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run.run_id, run.project = record.run.run_id, record.run.project
                run.group, run.name = record.run.run_group, record.run.display_name
                run.job_type = record.run.job_type
                run.tags = tuple(record.run.tags)
                run.config |= _values(record.run.config.update)
            case "config":
                run.config |= _values(record.config.update)
            case "metric":
                run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "history":
                run.rows.append(_values(record.history.item))
            case "artifact":
                run.artifacts.append(_artifact(record.artifact))
            case "exit":
                run.finished = True
    run.config.pop("_wandb", None)
    return run


def _artifact(record: ArtifactRecord) -> OfflineArtifact:
    files = {}
    for entry in record.manifest.contents:
        path = Path(entry.local_path)
        digest = base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
        assert (path.stat().st_size, digest) == (entry.size, entry.digest), path
        files[entry.path] = path
    return OfflineArtifact(record.name, record.type, set(record.aliases), files)


def _values(items: Any) -> dict[str, Any]:
    """Return values by key; a path of keys, as of a picture, leads to nested dictionaries."""
    values: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        inner = values
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return values


def records(log: bytes) -> Iterator[bytes]:
    """Yield the records that are complete; the last may still be in writing."""
    return (data for data, _ in _records_with_ends(log))


def _records_with_ends(log: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the complete records, and the positions of their ends."""
    assert FILE_HEADER.startswith(log[: len(FILE_HEADER)])
    position = len(FILE_HEADER)
    chunks: list[bytes] = []  # a list, because the first chunk is empty if a block has room for its header alone
    while position + CHUNK_HEADER.size <= len(log):
        left_in_block = _BLOCK_SIZE - position % _BLOCK_SIZE
        if left_in_block < CHUNK_HEADER.size:
            position += left_in_block
            continue
        checksum, length, kind = CHUNK_HEADER.unpack_from(log, position)
        start = position + CHUNK_HEADER.size
        data = log[start : start + length]
        if len(data) < length:
            return
        assert zlib.crc32(bytes([kind]) + data) == checksum
        assert (kind in (_FULL, _FIRST)) == (not chunks)
        chunks.append(data)
        if kind in (_FULL, _LAST):
            yield b"".join(chunks), start + length
            chunks = []
        position = start + length
