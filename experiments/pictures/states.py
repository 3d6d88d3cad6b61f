"""Which states are drawn, and the names of their dimensions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from torch import Tensor

from envs.maze2d_drawing import draw_walls
from envs.maze2d_layouts import Layout
from layeredrl.hierarchy import Hierarchy
from layeredrl.levels import Level, PlannerLevel
from layeredrl.levels.goals import ACHIEVED_KEY
from layeredrl.skills import SkillLevel
from layeredrl.task import TaskSpec


@dataclass(frozen=True)
class DrawnStates:
    """The states of an agent that figures show."""

    encode: Callable[[Tensor], Tensor]
    """Maps observations (..., O) to states (..., S)."""
    names: Sequence[str]
    """Names of the dimensions, S of them."""
    in_place: bool
    """True if the first two dimensions are those of `achieved_goal`: positions, in metres."""


def states_of(agent: Hierarchy) -> DrawnStates:
    """Return the states of the agent's world model; the observations if it has none."""
    achieved = agent.task.slices.get(ACHIEVED_KEY, slice(0, 0))
    first = list(range(achieved.start, achieved.stop))[:2]
    level, top = next(iter(levels_from_skills(agent)), None), agent.levels[0]
    world = level.method.world if isinstance(level, SkillLevel) else None
    if world is None and isinstance(top, PlannerLevel):
        world = top.world
    if world is None:
        return DrawnStates(lambda obs: obs, observation_names(agent.task), first == [0, 1])
    index = _state_index(world.encoder)
    in_place = index is not None and len(first) == 2 and index[:2] == first
    return DrawnStates(lambda obs: world.encode(obs)[0], state_names(world.encoder, agent.task), in_place)


def levels_from_skills(agent: Hierarchy) -> list[Level]:
    """Return the level whose commands are skills, and those below it; an empty list if there is none."""
    indices = [i for i, level in enumerate(agent.levels) if isinstance(level, SkillLevel)]
    return agent.levels[indices[0] :] if indices else []


def observation_names(task: TaskSpec) -> list[str]:
    """Return the name of each dimension of the flat observation.

    Where the task gives none: the part of the observation, and the index there if the part is wider.
    """
    if task.names:
        return list(task.names)
    widths = {part: where.stop - where.start for part, where in task.slices.items()}
    return [part if width == 1 else f"{part} {i}" for part, width in widths.items() for i in range(width)]


def state_names(encoder: Any, task: TaskSpec) -> list[str]:
    """Return the name of each dimension of the state: that of the observation, or "state i" if the state is learned."""
    index = _state_index(encoder)
    if index is None:
        return [f"state {i}" for i in range(encoder.state_dim)]
    names = observation_names(task)
    return [names[i] for i in index]


def _state_index(encoder: Any) -> list[int] | None:
    """Return which dimensions of the observation are the state; None for an encoder that is learned."""
    return None if encoder.learned else encoder.state_index.tolist()


def label_states(axis: Axes, names: Sequence[str], layout: Layout | None) -> None:
    """Label the axes with the first two dimensions of the state, or with the only one over steps.

    Args:
        axis: Axes to prepare.
        names: Names of the state's dimensions.
        layout: Layout of the maze in which states are positions; None if they are no positions.
    """
    if layout is not None:
        draw_walls(axis, layout)
        return
    labels = [f"{name} (environment's units)" for name in names]
    if len(names) > 1:
        axis.set(xlabel=labels[0], ylabel=labels[1], aspect="equal", adjustable="datalim")
    else:
        axis.set(xlabel="time (environment steps)", ylabel=labels[0])
