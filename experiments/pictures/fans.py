"""Fans: where each skill leads from common starts, and where the world model predicts that it ends."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from envs.maze2d_layouts import Layout
from experiments.pictures.states import label_states, levels_from_skills, states_of
from experiments.run.building import make_envs_here
from experiments.run.config import RunConfig
from layeredrl import action_spaces
from layeredrl.checks import require_counts
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Decision, Level
from layeredrl.models.diagnostics.figures import GREY
from layeredrl.randomness import fork_globals, seed_globals
from layeredrl.skills import SkillLevel


@dataclass(frozen=True)
class FanSettings:
    """Number of starts and skills of a fan."""

    starts: int = 6
    """Number of start states, each after a walk of randomly drawn skills. A start is left out if the episode ends
    during its walk."""
    skills: int = 16
    """Number of skills to carry out from each start; at most all that exist."""
    walk: int = 20
    """Maximum number of skills in a walk."""
    seed: int = 3_000_000
    """Random seed of starts and walks."""

    def __post_init__(self) -> None:
        require_counts(self, starts=1, skills=2, walk=0, seed=0)


@dataclass(frozen=True)
class Fan:
    """Paths of the same skills from several starts."""

    skills: Tensor
    """Skills, (N, Z)."""
    paths: NDArray[np.float32]
    """States of each path, the start first, (B, N, K + 1, S); the last one is repeated after the end of an episode."""
    predicted: NDArray[np.float32] | None
    """Ends of the paths that the world model predicts, (B, N, S); None without a world model."""
    names: Sequence[str]
    """Names of the state's dimensions, S of them."""
    in_place: bool
    """True if the first two dimensions of the states are those of `achieved_goal`: positions, in metres."""

    def numbers(self) -> dict[str, float]:
        """Return how diverse and how predictable the skills are: root mean squares, in the state's units."""
        displacement = self.paths[:, :, -1] - self.paths[:, :, 0]
        numbers = {
            "length": _rms(displacement),
            "spread between skills": _rms(displacement - displacement.mean(1, keepdims=True)),
            "spread of one skill between starts": _rms(displacement - displacement.mean(0, keepdims=True)),
        }
        if self.predicted is not None:
            numbers["error of the model"] = _rms(self.paths[:, :, -1] - self.predicted)
        return numbers


def _rms(x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(x).sum(-1).mean()))


class _Script(Level):
    """Commands a given sequence of skills, one sequence for each environment."""

    def __init__(self, skills: Tensor, skill_space: spaces.Space[Any], duration: int) -> None:
        """Take skills (E, T, Z), each of which lasts `duration` steps."""
        self.skills, self.action_space, self.duration = skills, skill_space, duration

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(n=torch.zeros(n_envs, dtype=torch.int64), env=torch.arange(n_envs))

    def act(
        self, obs: Tensor, command: Batch | None, memory: Batch, *, explore: bool, generator: torch.Generator
    ) -> Decision:
        skill = self.skills[memory.env, memory.n.clamp(max=self.skills.shape[1] - 1)]
        return Decision(skill, np.full(len(obs), self.duration), Batch(n=memory.n + 1, env=memory.env))


def skill_level_of(agent: Hierarchy) -> SkillLevel:
    """Return the last level, which has to be one that carries out skills.

    Raises:
        ValueError: The last level is of another kind.
    """
    level = agent.levels[-1]
    if not isinstance(level, SkillLevel):
        raise ValueError(f"the last level is {type(level).__name__}, expected a SkillLevel")
    return level


def some_skills(space: spaces.Box | spaces.Discrete, n: int) -> Tensor:
    """Return n skills that lie far apart, (N, Z).

    All choices of a Discrete, evenly spread directions on the edge of a square, random corners of a wider box.
    """
    if isinstance(space, spaces.Discrete):
        return (int(space.start) + torch.arange(min(n, int(space.n))))[:, None]
    width = space.shape[0]
    if width == 2:
        angle = torch.arange(n) * (2 * torch.pi / n)
        around = torch.stack([angle.cos(), angle.sin()], -1)
        return around / around.abs().amax(-1, keepdim=True)  # on the edge of the square
    return action_spaces.uniform(space, (n,), torch.Generator().manual_seed(0)).sign()


@torch.no_grad()
def make_fan(config: RunConfig[Any], agent: Hierarchy, settings: FanSettings) -> Fan:
    """Carry out skills from common starts; for each start, all environments take the same walk.

    Args:
        config: Settings of the run.
        agent: Agent with a `SkillLevel`.
        settings: Number of starts and skills.

    Raises:
        ValueError: The agent has no skills, or episodes end before all starts.
    """
    levels = levels_from_skills(agent)
    if not levels:
        kinds = ", ".join(type(level).__name__ for level in agent.levels)
        raise ValueError(f"the agent's levels are {kinds}, expected a SkillLevel among them")
    level = cast(SkillLevel, levels[0])
    method, states = level.method, states_of(agent)
    skills = some_skills(method.space, settings.skills)
    rng = np.random.default_rng(settings.seed)
    n_walk = rng.integers(0, settings.walk + 1, settings.starts)
    generator = torch.Generator().manual_seed(settings.seed)
    walks = action_spaces.uniform(method.space, (settings.starts, settings.walk), generator)
    paths, predicted = [], []
    with fork_globals(), contextlib.closing(make_envs_here(config, len(skills))) as env:
        seed_globals(settings.seed)
        for i, n in enumerate(n_walk):
            commands = torch.cat([walks[i, :n].expand(len(skills), -1, -1), skills[:, None]], 1).to(agent.device)
            script = _Script(commands, method.space, method.duration)
            acting = Hierarchy([script, *levels], agent.task, agent.device)
            observed = _play(env, acting, commands.shape[1], method.duration, i)
            if observed is None:
                continue
            obs = torch.as_tensor(observed, device=agent.device)  # (K + 1, N, O)
            paths.append(states.encode(obs).transpose(0, 1))
            if method.world is not None:
                ends = method.world.rollout(obs[0], commands[:, -1:]).state[..., -1, :]
                predicted.append(ends.mean((1, 2)))
    if not paths:
        raise ValueError(
            f"all episodes ended within {settings.walk} skills, before their starts; expected shorter walks"
        )
    stacked = torch.stack(paths).cpu().numpy()
    ends_predicted = torch.stack(predicted).cpu().numpy() if predicted else None
    return Fan(skills, stacked, ends_predicted, states.names, states.in_place)


def _play(
    env: VectorEnv[Any, Any, Any], agent: Hierarchy, n_skills: int, duration: int, seed: int
) -> NDArray[np.float32] | None:
    """Return the observations (K + 1, n, O) during the last skill, in environments that all begin alike.

    None if an episode ends before the last skill. If one ends during it, its last observation is repeated.
    """
    task, n = agent.task, env.num_envs
    seeds: Any = [10**6 + seed] * n  # the base class's annotation knows no lists
    obs = task.flatten(env.reset(seed=seeds)[0])
    carry, kept, over = agent.initial_carry(n, seed), [obs], np.zeros(n, bool)
    for t in range(n_skills * duration):
        action = agent.act(obs, carry, explore=False)
        observed, _, terminated, truncated, _ = env.step(action_spaces.to_env(task.action_space, action))
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
    """Draw the first two dimensions of all paths, a colour for each skill; crosses mark the predicted ends.

    Args:
        fan: Fan to draw; states of one dimension are drawn over time.
        title: Title of the figure.
        layout: Layout of a maze, whose walls are drawn if the states are positions in it.
    """
    figure = Figure(figsize=(5.4, 5.4), layout="constrained")
    axis = figure.subplots()
    label_states(axis, fan.names, layout if fan.in_place else None)
    colours = [matplotlib.colormaps["hsv"](i / len(fan.skills)) for i in range(len(fan.skills))]
    steps = np.arange(fan.paths.shape[2])
    for b, start in enumerate(fan.paths):
        for k, path in enumerate(start):
            axis.plot(*_in_plane(path, steps), color=colours[k], lw=1)
            if fan.predicted is not None:
                axis.plot(*_in_plane(fan.predicted[b, k, None], steps[-1:]), "x", color=colours[k], ms=4)
        axis.plot(*_in_plane(start[0, :1], steps[:1]), "o", color="black", ms=3)
    axis.set_title(title, fontsize=10)
    marks = [Line2D([], [], ls="", marker="o", color="black", ms=3, label="start")]
    marks.append(Line2D([], [], color=GREY, label="path of a skill"))
    if fan.predicted is not None:
        marks.append(Line2D([], [], ls="", marker="x", color=GREY, ms=4, label="predicted end"))
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _in_plane(states: NDArray[np.float32], steps: NDArray[np.int64]) -> NDArray[Any]:
    """Return the first two dimensions of states (T, S), or the steps and the only dimension, (2, T)."""
    return states[:, :2].T if states.shape[1] > 1 else np.stack([steps, states[:, 0]])
