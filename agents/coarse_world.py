"""The world model of an upper level, whose actions the levels below carry out."""

from dataclasses import replace
from typing import Any, Literal, Protocol

import torch
from gymnasium import spaces
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.models.config import EnsembleConfig
from layeredrl.task import TaskSpec, TransitionFunction
from layeredrl.world_model import Encoder, GridSupport, NeighbourSupport, Objective, Support, WorldModel

SupportKind = Literal["cells", "neighbours"]
"""Measure of support: visits of cells, for up to about three dimensions, or the nearest states."""


class WorldSettings(Protocol):
    """Settings of a recipe for such a model."""

    model: EnsembleConfig
    support_weight: float
    support: SupportKind
    support_cell: float
    support_visits: int


def known_of(task: TaskSpec, encoder: Encoder) -> TaskSpec:
    """The task without those known functions that are no functions of the shorter state of an encoder.

    Known functions take a state of all parts. One can be used with the first dimensions of it if it reads only these,
    which is tried on random states: reading from the end, for instance, gives another number or an error.
    """
    full = Encoder(task)
    n, width = encoder.state_dim, full.state_dim
    if encoder.begins_like(full) and n == width:
        return task
    if not encoder.begins_like(full):
        return replace(task, reward=None, termination=None)
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> Tensor:  # from close together to far apart: functions may have thresholds
        return torch.randn(256, size, generator=generator) * torch.logspace(-2, 2, 256)[:, None]

    discrete, action_dim = action_spaces.is_discrete(task.action_space), action_spaces.width(task.action_space)
    action = torch.zeros((256, action_dim), dtype=torch.int64 if discrete else torch.float32)
    state, after, context = draw(width), draw(width), draw(full.context_dim)

    def reads_it(known: TransitionFunction | None) -> bool:
        if known is None:
            return False
        try:
            shorter = known(state[:, :n], context, action, after[:, :n])
            return torch.equal(known(state, context, action, after), shorter)
        except Exception:  # a function of the user's may raise anything for a state that is too short
            return False

    reward, termination = (f if reads_it(f) else None for f in (task.reward, task.termination))
    return replace(task, reward=reward, termination=termination)


def make_coarse_world(
    settings: WorldSettings,
    task: TaskSpec,
    encoder: Encoder,
    space: spaces.Box | spaces.Discrete,
    device: torch.device,
    *,
    steps: int,
    support_dims: tuple[int, ...],
    repeat: int = 1,
    **model: Any,
) -> WorldModel:
    """The world model; networks are drawn from torch's global generator.

    Args:
        settings: Settings of the ensemble and of the penalty on unsupported states.
        task: The task of the environment.
        encoder: Encoder of the predicted state.
        space: Action space of the level.
        device: Device of the model.
        steps: Environment steps of one step of the model.
        support_dims: Dimensions of the state that the support uses.
        repeat: Steps of the model for which an action is held.
        **model: Further arguments of `EnsembleConfig.build`.
    """
    coarse = known_of(task, encoder).coarse(space, steps)
    dynamics = settings.model.build(encoder.state_space, encoder.context_space, space, device, **model)
    support: Support | None = None
    if settings.support_weight and settings.support == "neighbours":
        support = NeighbourSupport(support_dims)
    elif settings.support_weight:
        support = GridSupport(support_dims, settings.support_cell, settings.support_visits)
    objective = Objective(encoder.state_dim, support=support, support_weight=settings.support_weight)
    return WorldModel(encoder, dynamics, coarse, objective=objective, repeat=repeat)
