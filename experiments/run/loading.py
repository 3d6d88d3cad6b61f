"""The trained agent of a run, from its folder or from W&B."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.run.building import build_agent
from experiments.run.config import RunConfig, from_json
from experiments.run.folder import CHECKPOINTS, CONFIG, checkpoints_of
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy

WANDB = "wandb:"
"""Prefix of the name of a model on W&B."""


def load(
    folder: Path, *, device: str | None = None, best: bool = False, changes: Mapping[str, str] | None = None
) -> tuple[RunConfig[Any], Hierarchy, int]:
    """Return the settings of a run, its agent, and the number of environment steps that the agent was trained for.

    Args:
        folder: Folder of the run.
        device: Device of the agent; the one it was trained on by default.
        best: If True, load the kept checkpoint with the best score instead of the newest.
        changes: As of `from_json`.

    Raises:
        ValueError: The run cannot be read, or its checkpoint does not fit its settings.
    """
    config = from_json(folder / CONFIG, changes)
    config = replace(config, device=device or config.device)
    if device is not None and config.env_device is not None:
        config = replace(config, env_device=device)
    agent = build_agent(config)
    path = folder / CHECKPOINTS
    state = checkpoints_of(folder).load(config.device, best=best, increments=False)
    with restoring(path):
        agent.load_state_dict(state["agent"])
        n_total_env_steps = int(state["n_total_env_steps"])
    unusable = next(_nan_tensors(state["agent"], "agent"), None)
    if unusable is not None:
        raise ValueError(f"the checkpoint of {n_total_env_steps} steps in {path} holds NaN in {unusable}")
    return config, agent, n_total_env_steps


def _nan_tensors(state: object, place: str) -> Iterator[str]:
    """Yield the places of tensors with NaN in a nested state."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point() and bool(state.isnan().any()):
            yield place
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from _nan_tensors(value, f"{place}.{key}")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from _nan_tensors(value, f"{place}.{i}")


@contextlib.contextmanager
def downloaded(run: Path) -> Iterator[Path]:
    """Give the folder of a run; a W&B model is downloaded to a temporary folder.

    Raises:
        ValueError: The model does not exist, or there is no key or no network.
    """
    if not str(run).startswith(WANDB):
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        import wandb

        try:
            wandb.setup(settings=wandb.Settings(silent=True))
            name = str(run).removeprefix(WANDB)
            wandb.Api().artifact(name, type="model").download(folder)
        except (OSError, ValueError, wandb.Error) as error:
            raise ValueError(f"{run} cannot be downloaded: {error}") from error
        yield Path(folder)


@contextlib.contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn any error of a state that does not fit the settings into one message.

    Raises:
        ValueError: Replaces the error.
    """
    try:
        yield
    except (Fault, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # types and shapes that no state of this run has
        first, *others = str(error).splitlines() or [""]  # torch names every tensor that does not fit; one will do
        reason = f"{type(error).__name__}: {first} {''.join(others[:1])}"
        raise ValueError(f"{path} does not fit the settings in {CONFIG}: {reason}") from error
