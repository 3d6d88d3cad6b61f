"""What the skills of a run do: `python -m experiments.plot_skills runs/NAME`.

The same skills are carried out from the same starts, without exploration. The picture shows where they went and where
the world model said that they would end; the table says how far apart they end, and how surely.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from envs.maze2d_drawing import draw_walls
from experiments.config import RunConfig, command_line, fail
from experiments.evaluate import EvaluateConfig, load
from experiments.run import make_envs
from layeredrl import actions
from layeredrl.checks import require_counts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Decision, Level
from layeredrl.levels.skill_level import SkillLevel
from layeredrl.loggers import closing_table
from layeredrl.randomness import fork_globals, seed_globals


@dataclass(frozen=True)
class PlotSkillsConfig:
    """Draw what the skills of a run do."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; the picture goes there."""
    starts: int = 6
    """States to start from: each after a walk of skills drawn at random."""
    skills: int = 16
    """Skills to carry out from each; all, where there are fewer."""
    walk: int = 20
    """Skills of these walks, at the most."""
    seed: int = 3_000_000
    """Of starts and walks."""

    def __post_init__(self) -> None:
        require_counts(self, starts=1, skills=2, walk=0, seed=0)


@dataclass(frozen=True)
class Fan:
    """What skills did from some starts."""

    skills: Tensor
    """(N, Z)."""
    ways: NDArray[np.float32]
    """States on the way, the start first, (B, N, K + 1, S)."""
    predicted: NDArray[np.float32] | None
    """Where the world model saw their ends, (B, N, S); None without one."""

    def numbers(self) -> dict[str, float]:
        """How diverse the skills are, and how predictable, in the state's units; root mean squares."""
        moved = self.ways[:, :, -1] - self.ways[:, :, 0]
        told = {
            "length": _rms(moved),
            "spread between skills": _rms(moved - moved.mean(1, keepdims=True)),
            "spread of one skill between starts": _rms(moved - moved.mean(0, keepdims=True)),
        }
        if self.predicted is not None:
            told["error of the model"] = _rms(self.ways[:, :, -1] - self.predicted)
        return told


def _rms(x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(x).sum(-1).mean()))


class _Script(Level):
    """Asks for skills that are written down, in each environment its own."""

    def __init__(self, skills: Tensor, method_space: spaces.Space[Any], duration: int) -> None:
        """Take skills (E, T, Z)."""
        self.skills, self.action_space, self.duration = skills, method_space, duration

    def start(self, n_envs: int) -> Batch:
        return Batch(n=torch.zeros(n_envs, dtype=torch.int64), env=torch.arange(n_envs))

    def act(
        self, obs: Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: torch.Generator
    ) -> Decision:
        skill = self.skills[memory.env, memory.n.clamp(max=self.skills.shape[1] - 1)]
        return Decision(skill, np.full(len(obs), self.duration), Batch(n=memory.n + 1, env=memory.env))


def skill_level_of(agent: Hierarchy) -> SkillLevel:
    """The level that carries out skills.

    Raises:
        ValueError: There is none.
    """
    level = agent.levels[-1]
    if not isinstance(level, SkillLevel):
        raise ValueError(f"the last level is {type(level).__name__}, expected a SkillLevel")
    return level


def some_skills(space: spaces.Box | spaces.Discrete, n: int) -> Tensor:
    """Skills that lie far apart, (N, Z): all choices, or the ends of a box's longest ways, and more at random."""
    if isinstance(space, spaces.Discrete):
        return (int(space.start) + torch.arange(min(n, int(space.n))))[:, None]
    width = space.shape[0]
    if width == 2:
        angle = torch.arange(n) * (2 * torch.pi / n)
        around = torch.stack([angle.cos(), angle.sin()], -1)
        return around / around.abs().amax(-1, keepdim=True)  # on the edge of the square
    return actions.uniform(space, (n,), torch.Generator().manual_seed(0)).sign()


@torch.no_grad()
def make_fan(config: RunConfig[Any], agent: Hierarchy, settings: PlotSkillsConfig) -> Fan:
    """Carry out skills from common starts; each environment wanders there in the same way for all skills."""
    level = skill_level_of(agent)
    method = level.method
    skills = some_skills(method.space, settings.skills)
    rng = np.random.default_rng(settings.seed)
    n_walk = rng.integers(0, settings.walk + 1, settings.starts)
    generator = torch.Generator().manual_seed(settings.seed)
    walks = actions.uniform(method.space, (settings.starts, settings.walk), generator)
    # One script for each start and skill: the walk, which begins the later the shorter it is, and then the skill.
    ways, predicted = [], []
    with fork_globals():
        seed_globals(settings.seed)
        for i, n in enumerate(n_walk):
            asked = walks[i, :n].expand(len(skills), -1, -1)
            script = _Script(torch.cat([asked, skills[:, None]], 1), method.space, method.duration)
            observed = _play(config, Hierarchy([script, level], agent.task, agent.device), len(skills), int(n), i)
            obs = torch.as_tensor(observed, device=agent.device)  # (K + 1, N, O)
            if method.world is None:
                ways.append(obs[..., : agent.task.observation_dim].transpose(0, 1))
                continue
            ways.append(method.world.encode(obs)[0].transpose(0, 1))
            last = method.world.rollout(obs[0], skills[:, None].to(agent.device)).state[..., -1, :].mean((1, 2))
            predicted.append(last)
    stacked = torch.stack(ways).cpu().numpy()
    return Fan(skills, stacked, torch.stack(predicted).cpu().numpy() if predicted else None)


def _play(config: RunConfig[Any], agent: Hierarchy, n: int, n_walk: int, seed: int) -> NDArray[np.float32]:
    """Observations (K + 1, n, O) of the last skill, in environments that all begin alike."""
    env, task = make_envs(config, n), agent.task
    duration = skill_level_of(agent).method.duration
    try:
        obs = task.flatten(env.reset(seed=[10**6 + seed] * n)[0])
        carry, kept = agent.start(n, seed), [obs]
        for _ in range((n_walk + 1) * duration):
            acted = agent.act(obs, carry, explore=False)
            observed, _, terminated, truncated, _ = env.step(actions.to_env(task.action_space, acted))
            obs = task.flatten(observed)
            step = Batch(rew=np.zeros(n), terminated=terminated, truncated=truncated, obs_next=obs)
            if (terminated | truncated).any():
                raise ValueError("an episode ended on the way to the start, expected shorter walks")
            agent.observe(step, np.arange(n), carry, learn=False)
            kept.append(obs)
    finally:
        env.close()
    return np.stack(kept[-duration - 1 :])


def draw_fan(path: Path, fan: Fan, title: str, layout: Any = None) -> None:
    """The first two dimensions of all ways, a colour for each skill, and crosses where the model saw their ends."""
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axis = figure.subplots()
    if layout is not None:
        draw_walls(axis, layout)
    colours = [_hue(i / len(fan.skills)) for i in range(len(fan.skills))]
    for b, start in enumerate(fan.ways):
        for k, way in enumerate(start):
            axis.plot(*way[:, :2].T, color=colours[k], lw=1)
            if fan.predicted is not None:
                axis.plot(*fan.predicted[b, k, :2], "x", color=colours[k], ms=4)
        axis.plot(*start[0, 0, :2], "o", color="black", ms=3)
    axis.set(title=title, aspect="equal")
    figure.savefig(path, dpi=120)


def _hue(x: float) -> Any:
    return matplotlib.colormaps["hsv"](x)


def main() -> None:
    """Load, carry out, tell, draw."""
    try:
        args = command_line(PlotSkillsConfig, sys.argv[1:], prog="python -m experiments.plot_skills")
        config, agent, n_steps = load(EvaluateConfig(args.run))
        fan = make_fan(config, agent, args)
    except (ValueError, TypeError, OSError) as error:
        fail(error)
    path = args.run / "skills.png"
    layout = getattr(gym.make(config.env).unwrapped, "layout", None)
    draw_fan(path, fan, f"{config.agent} on {config.env}, {n_steps} steps", layout)
    closing_table(
        {**{name: f"{value:.3f}" for name, value in fan.numbers().items()}, "picture": str(path)}, title="Skills"
    )


if __name__ == "__main__":
    main()
