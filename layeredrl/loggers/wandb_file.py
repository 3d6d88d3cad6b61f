"""Length of the log of a W&B run on the disk. A killed process has not written its last seconds.

A `.wandb` file has the format of LevelDB's logs. After a header of 7 bytes follow chunks: checksum (CRC-32 of type and
data), length, type, data. A chunk does not cross the border between two blocks of 32 KiB: a record that would is cut
into a first, some middle and a last chunk, and a rest too short for a chunk's header is padding. A record is a protocol
buffer, `wandb.proto.wandb_internal_pb2.Record`.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FILE_HEADER_SIZE = 7
_CHUNK_HEADER = struct.Struct("<IHB")
_BLOCK_SIZE = 32 * 1024
_FULL, _FIRST, _LAST = 1, 2, 4


def n_records_on_disk(directory: Path, run_id: str) -> int:
    """Return the number of history records that the files of a W&B run hold, counted by their steps from 0.

    Args:
        directory: Folder that holds the folder `wandb`.
        run_id: Id of the W&B run.
    """
    steps = [_last_step(path) for path in directory.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")]
    return max(steps, default=-1) + 1


def _last_step(path: Path) -> int:
    from wandb.proto import wandb_internal_pb2

    protocol: Any = wandb_internal_pb2  # untyped
    last = -1
    for data in _records(path.read_bytes()):
        record = protocol.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            steps = [item.value_json for item in record.history.item if "_step" in (item.key, *item.nested_key)]
            last = max(last, int(json.loads(steps[0])) if steps else int(record.history.step.num))
    return last


def _records(log: bytes) -> Iterator[bytes]:
    """Yield the records up to the first one that is incomplete or damaged."""
    position, record = _FILE_HEADER_SIZE, b""
    while position + _CHUNK_HEADER.size <= len(log):
        left_in_block = _BLOCK_SIZE - position % _BLOCK_SIZE
        if left_in_block < _CHUNK_HEADER.size:
            position += left_in_block
            continue
        checksum, length, kind = _CHUNK_HEADER.unpack_from(log, position)
        start = position + _CHUNK_HEADER.size
        data = log[start : start + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != checksum:
            return
        record = data if kind in (_FULL, _FIRST) else record + data
        if kind in (_FULL, _LAST):
            yield record
        position = start + length
