"""Checkpoints: written in one step, read without running code."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
"""Version of the file's layout."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state; whenever the process dies, the file is the old one or the new one.

    Args:
        path: The file.
        state: Nested dicts and lists of tensors, numbers and strings.

    Raises:
        TypeError: It holds something that could not be read back.
    """
    _require_plain("state", state)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "state": dict(state)}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        CheckpointError: There is no such file, or it is not a checkpoint of this format.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: {damaged} does not fit its checksum")
        content = torch.load(path, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch raises a dozen kinds for files that are damaged or not its own
        raise CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if type(found) is not int or found != FORMAT:
        raise CheckpointError(f"{path} has format {_name(found)}, expected {FORMAT}")
    state = content.get("state")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a state of type {type(state).__name__}, expected a dict")
    return state


def _name(value: object) -> str:
    return repr(value) if isinstance(value, int | str | None) else type(value).__name__


def _require_plain(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _require_plain(f"{name}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _require_plain(f"{name}[{i}]", item)
    elif value is not None and type(value) not in (bool, int, float, str) and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {type(value).__name__}, expected a tensor, number, string, list or dict")
