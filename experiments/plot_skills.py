"""What the skills of a run do: `python -m experiments.plot_skills runs/NAME`.

The same skills are carried out from the same starts, without exploration. The picture shows where they went and where
the world model said that they would end; the table says how far apart they end, and how surely.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import tyro
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import Layout
from experiments.evaluate import EvaluateConfig, load
from experiments.run.command_line import command_line, fail
from experiments.run.config import RunConfig
from experiments.run.parts import make_envs
from layeredrl import action_spaces
from layeredrl.checks import require_counts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Decision, Level, PlannerLevel
from layeredrl.levels.goals import ACHIEVED_KEY
from layeredrl.loggers import closing_table
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.skills import SkillLevel


@dataclass(frozen=True)
class PlotSkillsConfig:
    """Draw what the skills of a run do."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; the picture goes there."""
    starts: int = 6
    """States to start from: each after a walk of skills drawn at random. One whose walk an episode's end cuts short
    is left out."""
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
    """States on the way, the start first, (B, N, K + 1, S); after the end of an episode, its last one."""
    predicted: NDArray[np.float32] | None
    """Where the world model saw their ends, (B, N, S); None without one."""
    in_place: bool
    """Whether the first two dimensions of the states are those of `achieved_goal`, and so places, in metres."""

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

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(n=torch.zeros(n_envs, dtype=torch.int64), env=torch.arange(n_envs))

    def act(
        self, obs: Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: torch.Generator
    ) -> Decision:
        skill = self.skills[memory.env, memory.n.clamp(max=self.skills.shape[1] - 1)]
        return Decision(skill, np.full(len(obs), self.duration), Batch(n=memory.n + 1, env=memory.env))


def skill_level_of(agent: Hierarchy) -> SkillLevel:
    """The last level, if that is one that carries out skills.

    Raises:
        ValueError: It is not.
    """
    level = agent.levels[-1]
    if not isinstance(level, SkillLevel):
        raise ValueError(f"the last level is {type(level).__name__}, expected a SkillLevel")
    return level


def carrying_out(agent: Hierarchy) -> list[Level]:
    """The level whose commands are skills, and those below it; empty where there is none."""
    where = [i for i, level in enumerate(agent.levels) if isinstance(level, SkillLevel)]
    return agent.levels[where[0] :] if where else []


def states_of(agent: Hierarchy) -> tuple[Callable[[Tensor], Tensor], bool]:
    """From observations (..., O) to the states that are drawn, (..., S): those of the world model, if there is one.

    Also returns whether the first two dimensions are those of `achieved_goal`.
    """
    achieved = agent.task.slices.get(ACHIEVED_KEY, slice(0, 0))
    first = list(range(achieved.start, achieved.stop))[:2]
    level, top = next(iter(carrying_out(agent)), None), agent.levels[0]
    world = level.method.world if isinstance(level, SkillLevel) else None
    if world is None and isinstance(top, PlannerLevel):
        world = top.world
    if world is None:
        return lambda obs: obs, first == [0, 1]
    index = getattr(world.encoder, "state_index", torch.zeros(0))  # one that is learned has none
    return lambda obs: world.encode(obs)[0], len(first) == 2 and index[:2].tolist() == first


def some_skills(space: spaces.Box | spaces.Discrete, n: int) -> Tensor:
    """Skills that lie far apart, (N, Z): all choices, or the ends of a box's longest ways, and more at random."""
    if isinstance(space, spaces.Discrete):
        return (int(space.start) + torch.arange(min(n, int(space.n))))[:, None]
    width = space.shape[0]
    if width == 2:
        angle = torch.arange(n) * (2 * torch.pi / n)
        around = torch.stack([angle.cos(), angle.sin()], -1)
        return around / around.abs().amax(-1, keepdim=True)  # on the edge of the square
    return action_spaces.uniform(space, (n,), torch.Generator().manual_seed(0)).sign()


@torch.no_grad()
def make_fan(config: RunConfig[Any], agent: Hierarchy, settings: PlotSkillsConfig) -> Fan:
    """Carry out skills from common starts; each environment wanders there in the same way for all skills.

    Raises:
        ValueError: The agent has no skills, or episodes end before all starts.
    """
    levels = carrying_out(agent)
    if not levels:
        kinds = ", ".join(type(level).__name__ for level in agent.levels)
        raise ValueError(f"the agent's levels are {kinds}, expected a SkillLevel among them")
    level = cast(SkillLevel, levels[0])
    method, (states, in_place) = level.method, states_of(agent)
    skills = some_skills(method.space, settings.skills)
    rng = np.random.default_rng(settings.seed)
    n_walk = rng.integers(0, settings.walk + 1, settings.starts)
    generator = torch.Generator().manual_seed(settings.seed)
    walks = action_spaces.uniform(method.space, (settings.starts, settings.walk), generator)
    ways, predicted = [], []
    with fork_globals(), contextlib.closing(make_envs_here(config, len(skills))) as env:
        seed_globals(settings.seed)
        for i, n in enumerate(n_walk):
            asked = torch.cat([walks[i, :n].expand(len(skills), -1, -1), skills[:, None]], 1).to(agent.device)
            script = _Script(asked, method.space, method.duration)
            acting = Hierarchy([script, *levels], agent.task, agent.device)
            observed = _play(env, acting, asked.shape[1], method.duration, i)
            if observed is None:
                continue
            obs = torch.as_tensor(observed, device=agent.device)  # (K + 1, N, O)
            ways.append(states(obs).transpose(0, 1))
            if method.world is not None:
                ends = method.world.rollout(obs[0], asked[:, -1:]).state[..., -1, :]
                predicted.append(ends.mean((1, 2)))
    if not ways:
        raise ValueError(
            f"all episodes ended within {settings.walk} skills, before their starts; expected shorter walks"
        )
    stacked = torch.stack(ways).cpu().numpy()
    return Fan(skills, stacked, torch.stack(predicted).cpu().numpy() if predicted else None, in_place)


def _play(
    env: VectorEnv[Any, Any, Any], agent: Hierarchy, n_skills: int, duration: int, seed: int
) -> NDArray[np.float32] | None:
    """Observations (K + 1, n, O) of the last of some skills, in environments that all begin alike.

    None if an episode ends before. After one that ends in the midst of it, its last observation stays.
    """
    task, n = agent.task, env.num_envs
    seeds: Any = [10**6 + seed] * n  # the base class's annotation knows no lists
    obs = task.flatten(env.reset(seed=seeds)[0])
    carry, kept, over = agent.initial_carry(n, seed), [obs], np.zeros(n, bool)
    for t in range(n_skills * duration):
        acted = agent.act(obs, carry, explore=False)
        observed, _, terminated, truncated, _ = env.step(action_spaces.to_env(task.action_space, acted))
        obs = task.flatten(observed)
        step = Batch(rew=np.zeros(n), terminated=terminated, truncated=truncated, obs_next=obs)
        agent.observe(step, np.arange(n), carry, learn=False)
        kept.append(np.where(over[:, None], kept[-1], obs))
        done = terminated | truncated
        over |= done
        if over.any() and t < (n_skills - 1) * duration:
            return None
        if over.all():
            kept += [kept[-1]] * (n_skills * duration - t - 1)
            break
        if done.any():
            obs = np.where(done[:, None], task.flatten(env.reset(seed=seeds, options={"reset_mask": done})[0]), obs)
    return np.stack(kept[-duration - 1 :])


def draw_fan(fan: Fan, title: str, layout: Layout | None = None) -> Figure:
    """The first two dimensions of all ways, a colour for each skill, and crosses where the model saw their ends.

    Args:
        fan: What to draw; states of one dimension over the steps.
        title: Above the picture.
        layout: Of a maze, whose walls are drawn if the states are places in it.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axis = figure.subplots()
    label_states(axis, fan.ways.shape[-1], layout if fan.in_place else None)
    colours = [_hue(i / len(fan.skills)) for i in range(len(fan.skills))]
    steps = np.arange(fan.ways.shape[2])
    for b, start in enumerate(fan.ways):
        for k, way in enumerate(start):
            axis.plot(*_in_plane(way, steps), color=colours[k], lw=1)
            if fan.predicted is not None:
                axis.plot(*_in_plane(fan.predicted[b, k, None], steps[-1:]), "x", color=colours[k], ms=4)
        axis.plot(*_in_plane(start[0, :1], steps[:1]), "o", color="black", ms=3)
    axis.set_title(title)
    return figure


def label_states(axis: Axes, n_dims: int, layout: Layout | None) -> None:
    """Prepare an axis for states of some dimensions, with the walls of a maze if they are places in it."""
    if layout is not None:
        draw_walls(axis, layout)
    elif n_dims > 1:
        axis.set(xlabel="state 0", ylabel="state 1", aspect="equal", adjustable="datalim")
    else:
        axis.set(xlabel="steps", ylabel="state 0")


def make_envs_here(config: RunConfig[Any], n_envs: int) -> VectorEnv[Any, Any, Any]:
    """Environments of a run in this process: others would take longer to start than they are used."""
    return make_envs(replace(config, vectorization="sync") if config.vectorization == "async" else config, n_envs)


def layout_of(env_id: str) -> Layout | None:
    """The layout of a maze; None of any other environment."""
    env = gym.make(env_id)
    layout = getattr(env.unwrapped, "layout", None)
    env.close()
    return layout if isinstance(layout, Layout) else None


def _in_plane(states: NDArray[np.float32], steps: NDArray[np.int64]) -> NDArray[Any]:
    """The first two dimensions of states (T, S), or the steps and the only one, (2, T)."""
    return states[:, :2].T if states.shape[1] > 1 else np.stack([steps, states[:, 0]])


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
    title = f"{config.agent} on {config.env}, {n_steps} steps"
    draw_fan(fan, title, layout_of(config.env)).savefig(path, dpi=120)
    closing_table(
        {**{name: f"{value:.3f}" for name, value in fan.numbers().items()}, "picture": str(path)}, title="Skills"
    )


if __name__ == "__main__":
    main()
