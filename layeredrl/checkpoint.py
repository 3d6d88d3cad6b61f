"""Checkpoints: written in one step, read without running code."""

import os
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
    """
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
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except Exception as error:  # torch raises a dozen kinds for files that are damaged or not its own
        raise CheckpointError(f"{path} is not a readable checkpoint: {type(error).__name__}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} has format {found!r}, expected {FORMAT}")
    state: dict[str, Any] = content["state"]
    return state
