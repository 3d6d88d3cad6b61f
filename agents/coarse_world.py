"""The world model of an upper level, whose actions the levels below carry out."""

from typing import Any, Literal, Protocol

import torch
from gymnasium import spaces

from layeredrl.models.config import EnsembleConfig
from layeredrl.task import TaskSpec
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
    # A known reward takes a state of all parts, and a shorter one if that is how the long one begins.
    known = encoder.begins_like(Encoder(task))
    coarse = task.coarse(space, steps, known=known)
    dynamics = settings.model.build(encoder.state_space, encoder.context_space, space, device, **model)
    support: Support | None = None
    if settings.support_weight and settings.support == "neighbours":
        support = NeighbourSupport(support_dims)
    elif settings.support_weight:
        support = GridSupport(support_dims, settings.support_cell, settings.support_visits)
    objective = Objective(encoder.state_dim, support=support, support_weight=settings.support_weight)
    return WorldModel(encoder, dynamics, coarse, objective=objective, repeat=repeat)
