"""Play episodes with a trained agent: `python -m experiments.evaluate runs/NAME --episodes 10 --video policy.gif`.

`wandb:ENTITY/PROJECT/NAME:latest` in place of the folder downloads the model that a run has logged to W&B.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from experiments.pictures.of_a_run import record_episode
from experiments.run.command_line import command_line, fail
from experiments.run.config import RunConfig, from_json
from experiments.run.parts import CHECKPOINTS, CONFIG, FAULT, build_agent, can_render, play, restoring
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import closing_table
from layeredrl.storage import Checkpoints
from layeredrl.trainer import success_rate

WANDB = "wandb:"
"""What the name of a model on W&B begins with."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a trained agent, without exploration."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or wandb:ENTITY/PROJECT/NAME:latest for a model on W&B."""
    episodes: int = 10
    """How many episodes."""
    seed: int = 1_000_000
    """Of the episodes; far from those of training."""
    video: Path | None = None
    """Write one more episode to this GIF."""
    best: bool = False
    """Take the best checkpoint that was kept instead of the newest."""
    device: str | None = None
    """Where the agent computes; where it was trained by default."""

    def __post_init__(self) -> None:
        for name, minimum in (("episodes", 1), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {minimum}")
        if self.video is not None and self.video.suffix.lower() != ".gif":
            raise ValueError(f"video is {self.video}, expected a name that ends in .gif")
        if self.video is not None and not os.access(self.video.parent, os.W_OK):
            raise ValueError(f"video {self.video} cannot be written: {self.video.parent} is no folder to write to")


def load(args: EvaluateConfig) -> tuple[RunConfig[Any], Hierarchy, int]:
    """The run's settings, its agent, and for how many environment steps that has been trained.

    Raises:
        ValueError: The run cannot be read, or its parts do not fit together.
    """
    config = from_json(args.run / CONFIG)
    config = replace(config, device=args.device or config.device)
    agent = build_agent(config)
    path = args.run / CHECKPOINTS
    state = Checkpoints(path).load(config.device, best=args.best, increments=False)
    with restoring(path):
        agent.load_state_dict(state["agent"])
        return config, agent, int(state["n_total_env_steps"])


@contextmanager
def found(run: Path) -> Iterator[Path]:
    """The folder of a run; a W&B model is downloaded to one, which is gone afterwards.

    Raises:
        ValueError: There is no such model, no key, or no network.
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


def main() -> None:
    """Load, play, tell."""
    try:
        args = command_line(EvaluateConfig, sys.argv[1:], prog="python -m experiments.evaluate")
        if args.best and str(args.run).startswith(WANDB):
            raise ValueError(f"--best asks for the best checkpoint, but {args.run} holds the newest alone")
        with found(args.run) as folder:
            config, agent, n_total_env_steps = load(replace(args, run=folder))
        if args.video is not None and not can_render(config.env):
            raise ValueError(f"environment {config.env} cannot render an rgb_array, so there is no video of it")
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    try:
        episodes = play(config, agent, args.episodes, args.seed)
    except Fault as error:
        fail(error, FAULT)
    returns = np.array([episode.episode_return for episode in episodes])
    rows = {
        "run": str(args.run),
        "trained for": f"{n_total_env_steps} environment steps",
        "episodes": str(len(episodes)),
        "return": f"{returns.mean():.1f} ± {returns.std():.1f} (min {returns.min():.1f}, max {returns.max():.1f})",
        "length": f"{np.mean([episode.length for episode in episodes]):.1f}",
    }
    rate = success_rate(episodes)
    if rate is not None:
        rows["success"] = f"{rate:.3f}"
    if args.video is not None:
        try:
            rows["video"] = f"{args.video} (return {record_episode(config, agent, args.video, seed=args.seed):.1f})"
        except (gym.error.Error, Fault) as error:  # a package for drawing is not installed, for instance
            rows["video"] = f"none: {error}"
    closing_table(rows, title="Evaluation")


if __name__ == "__main__":
    main()
