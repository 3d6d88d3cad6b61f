"""Play episodes with a trained agent: `python -m experiments.evaluate runs/NAME --episodes 10 --video policy.gif`.

`wandb:ENTITY/PROJECT/NAME:latest` in place of the folder downloads the model that a run has logged to W&B.
"""

import os
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from experiments.pictures.video import record_episode
from experiments.run.building import can_render
from experiments.run.command_line import FAULT, command, command_line, fail, program
from experiments.run.finish import drawn
from experiments.run.loading import WANDB, downloaded, load
from experiments.run.playing import new_episodes
from layeredrl.checks import require_counts
from layeredrl.faults import Fault
from layeredrl.loggers import closing_table
from layeredrl.trainer import success_rate


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a trained agent, without exploration."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or wandb:ENTITY/PROJECT/NAME:latest for a model on W&B."""
    episodes: int = 10
    """Number of episodes."""
    seed: int = 1_000_000
    """Random seed of the episodes; the default is far from the seeds of training."""
    video: Path | None = None
    """Write a GIF of one more episode to this file."""
    best: bool = False
    """Load the kept checkpoint with the best score instead of the newest."""
    device: str | None = None
    """Device of the agent: cpu, cuda, cuda:1; the one it was trained on by default."""
    change: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Play with another setting of the agent than in training, such as planner.icem.n-samples=200; may be repeated."""

    def __post_init__(self) -> None:
        require_counts(self, episodes=1, seed=0)
        for word in self.change:
            if not re.fullmatch(r"[\w.-]+=.+", word):
                raise ValueError(f"change is {word!r}, expected NAME=VALUE")
        if self.best and str(self.run).startswith(WANDB):
            raise ValueError(f"--best asks for the best checkpoint, but {self.run} holds the newest alone")
        if self.video is not None and self.video.suffix.lower() != ".gif":
            raise ValueError(f"video is {self.video}, expected a name that ends in .gif")
        if self.video is not None and not os.access(self.video.parent, os.W_OK):
            raise ValueError(f"video {self.video} cannot be written: {self.video.parent} is no folder to write to")


@command()
def main() -> None:
    """Load the run, play episodes, and print a table of the results."""
    with ExitStack() as at_end:
        try:
            args: EvaluateConfig = command_line(EvaluateConfig, sys.argv[1:], prog=program("evaluate"))
            with downloaded(args.run) as folder:
                changes = {n.replace("-", "_"): v for n, _, v in (word.partition("=") for word in args.change)}
                config, agent, n_total_env_steps = load(folder, device=args.device, best=args.best, changes=changes)
            if args.video is not None and not can_render(config.environment):
                raise ValueError(f"environment {config.env} cannot render an rgb_array, so there is no video of it")
            collector = at_end.enter_context(new_episodes(config, agent, args.episodes, args.seed))
        except Fault as error:
            fail(error, FAULT)
        except (ValueError, TypeError, OSError) as error:
            fail(error)
        try:
            episodes = collector.collect_episodes(args.episodes, max_steps=config.trainer.eval_max_steps)
        except Fault as error:
            fail(error, FAULT)
    returns = np.array([episode.episode_return for episode in episodes])
    rows = {
        "run": str(args.run),
        "trained for": f"{n_total_env_steps} environment steps",
        **({"changed": ", ".join(args.change)} if args.change else {}),
        "episodes": str(len(episodes)),
        "return": f"{returns.mean():.1f} ± {returns.std():.1f} (min {returns.min():.1f}, max {returns.max():.1f})",
        "length": f"{np.mean([episode.length for episode in episodes]):.1f}",
    }
    rate = success_rate(episodes)
    if rate is not None:
        rows["success"] = f"{rate:.3f}"
    video = args.video
    if video is not None:
        record = partial(record_episode, config, agent, video, seed=args.seed)
        rows["video"] = str(drawn(lambda: f"{video} (return {record():.1f})"))
    closing_table(rows, title="Evaluation")


if __name__ == "__main__":
    main()
