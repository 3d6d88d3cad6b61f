"""Files of a checkpoint: written with their checksums, and read without running code."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layeredrl.storage.segments import FILE_NAME

FORMAT = 3
"""Version of the layout of the files."""

_MANIFEST_KEYS = {"files", "format", "n_total_env_steps", "score", "segments"}

Entry = dict[str, int | str]
"""Size in bytes (`size`) and SHA-256 checksum (`sha256`) of a file."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit."""


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for files that are damaged or not its own
        raise _unreadable(path, error) from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path} has format {_describe(found)}, expected {FORMAT}")
    state = content.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a state of type {type(state).__name__}, expected a dict")
    return state


def read_verified(path: Path, entry: Entry, device: torch.device | str) -> dict[str, Any]:
    """Return the state that `write` put into a file.

    Args:
        path: The file.
        entry: Its size and checksum.
        device: Device of the tensors.

    Raises:
        CheckpointError: The file is missing or damaged, or has another format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            found = {"size": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != entry["size"]:
        raise CheckpointError(f"{path} has {size} bytes, expected {entry['size']}")
    if found != entry:
        raise CheckpointError(f"{path} has the SHA-256 checksum {found['sha256']}, expected {entry['sha256']}")
    return _read(path, device)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the verified manifest of a checkpoint's folder, without its own checksum.

    Raises:
        CheckpointError: The folder holds other files, or the manifest is damaged or has another format.
    """
    path = folder / "manifest.json"
    try:
        names = sorted(file.name for file in folder.iterdir())
        if names != ["manifest.json", "state.pt"]:
            raise CheckpointError(f"{folder} holds {', '.join(names) or 'nothing'}, expected manifest.json, state.pt")
        data = path.read_bytes()
        manifest: dict[str, Any] = json.loads(data)
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path} has format {_describe(found)}, expected {FORMAT}")
    checksum = manifest.pop("sha256", None)
    if manifest.keys() - {"run"} != _MANIFEST_KEYS:
        raise CheckpointError(
            f"{path} has the keys {', '.join(sorted(manifest))}, expected {', '.join(sorted(_MANIFEST_KEYS))}"
        )
    expected = manifest_bytes(manifest)
    if data != expected:
        raise CheckpointError(f"{path} has the SHA-256 checksum {checksum}, expected {json.loads(expected)['sha256']}")
    if not _is_sound(manifest):
        raise CheckpointError(f"{path} is not a readable checkpoint: a value has another type than expected")
    if manifest["n_total_env_steps"] != int(folder.stem):
        raise CheckpointError(f"{path} is of {manifest['n_total_env_steps']} environment steps, expected {folder.stem}")
    return manifest


def _is_sound(manifest: Mapping[str, Any]) -> bool:
    files, segments = manifest["files"], manifest["segments"]
    return (
        type(manifest["n_total_env_steps"]) is int
        and (manifest["score"] is None or type(manifest["score"]) is float)
        and isinstance(manifest.get("run", ""), str)
        and isinstance(files, dict)
        and isinstance(segments, dict)
        and files.keys() == {"state.pt"}
        and all(FILE_NAME.fullmatch(name) for name in segments)
        and all(isinstance(x, dict) and x.keys() == {"size", "sha256"} for x in [*files.values(), *segments.values()])
    )


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of a manifest file: the manifest and its own checksum."""
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": checksum}, sort_keys=True).encode()


def write(path: Path, state: Mapping[str, Any]) -> Entry:
    """Write a state with the version of the layout to a file; returns its entry."""
    buffer = io.BytesIO()  # torch.save hides errors of the disk
    torch.save({"format": FORMAT, "state": state}, buffer)
    return write_bytes(path, buffer.getbuffer())


def write_bytes(path: Path, data: bytes | memoryview) -> Entry:
    """Write and sync a file; returns its entry."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def sync(folder: Path) -> None:
    """Sync a folder, so that the names in it survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Delete a checkpoint; rename it first, so that an incomplete one never has the name of a complete one."""
    temporary = folder.with_suffix(".tmp")
    os.rename(folder, temporary)
    shutil.rmtree(temporary)


def _describe(value: object) -> str:
    return repr(value) if isinstance(value, int | str | None) else type(value).__name__


def is_shortage(error: Exception) -> bool:
    """Return True if an intact checkpoint can cause the error: memory, a failing disk, permissions."""
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return False
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, OSError | MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the `CheckpointError` for an error of reading a file; raise the error if the file may be intact."""
    if isinstance(error, FileNotFoundError):
        return CheckpointError(f"{path} is missing")
    if is_shortage(error):
        raise error
    return CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}")
