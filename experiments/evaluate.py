"""Play episodes with a trained agent: `python -m experiments.evaluate runs/NAME --episodes 10 --video policy.gif`."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from experiments.config import fail, from_json
from experiments.pictures import record_episode, write_gif
from experiments.run import CHECKPOINT, CONFIG, build_agent, can_render, play
from layeredrl.checkpoint import load_checkpoint
from layeredrl.loggers import closing_table


@dataclass(frozen=True)
class EvaluateConfig:
    """Play episodes with a trained agent, without exploration."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    episodes: int = 10
    """How many episodes."""
    seed: int = 1_000_000
    """Of the episodes; far from those of training."""
    video: Path | None = None
    """Write one more episode to this GIF."""


def main() -> None:
    """Load, play, tell."""
    args = tyro.cli(EvaluateConfig, prog="python -m experiments.evaluate", args=sys.argv[1:])
    try:
        if args.episodes < 1:
            raise ValueError(f"episodes is {args.episodes}, expected at least 1")
        config = from_json(args.run / CONFIG)
        _, agent = build_agent(config)
        state = load_checkpoint(args.run / CHECKPOINT, config.device)
        agent.load_state_dict(state["agent"])
        if args.video is not None and not can_render(config.env):
            raise ValueError(f"environment {config.env} cannot render an rgb_array, so there is no video of it")
    except (ValueError, TypeError) as error:
        fail(error)
    episodes = play(config, agent, args.episodes, args.seed)
    returns = np.array([episode.episode_return for episode in episodes])
    rows = {
        "run": str(args.run),
        "trained for": f"{state['n_total_env_steps']} environment steps",
        "episodes": str(len(episodes)),
        "return": f"{returns.mean():.1f} ± {returns.std():.1f} (min {returns.min():.1f}, max {returns.max():.1f})",
        "length": f"{np.mean([episode.length for episode in episodes]):.1f}",
    }
    if args.video is not None:
        frames, fps, episode = record_episode(config, agent, args.seed)
        write_gif(args.video, frames, fps)
        rows["video"] = f"{args.video} (return {episode.episode_return:.1f})"
    closing_table(rows, title="Evaluation")


if __name__ == "__main__":
    main()
