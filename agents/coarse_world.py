"""The world model of a level whose actions others carry out, as the recipes of hierarchies make it."""

from typing import Protocol

import torch
from gymnasium import spaces

from layeredrl.ensemble_config import EnsembleConfig
from layeredrl.objective import Objective
from layeredrl.support import GridSupport
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, WorldModel


class WorldSettings(Protocol):
    """What a recipe says of such a model."""

    model: EnsembleConfig
    support_weight: float
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
    sb_start_duration: int = 0,
) -> WorldModel:
    """The world model; networks are drawn from torch's global generator.

    Args:
        settings: Of the ensemble, and of the penalty on what the data does not support.
        task: Of the environment.
        encoder: What of an observation is predicted.
        space: Of the level's actions.
        device: Where it computes.
        steps: Environment steps of one step of the model.
        support_dims: Dimensions of the state whose cells are counted for the support.
        repeat: Steps of the model for which an action is held.
        sb_start_duration: Environment steps of the symmetry-breaking start; 0 for none.
    """
    # A known reward takes a state of all parts, and a shorter one if that is how the long one begins.
    coarse = task.coarse(space, steps, known=encoder.begins_like(Encoder(task)))
    dynamics = settings.model.build(
        encoder.state_space, encoder.context_space, space, device, sb_start_duration=sb_start_duration
    )
    support = None
    if settings.support_weight:
        support = GridSupport(support_dims, settings.support_cell, settings.support_visits)
    objective = Objective(encoder.state_dim, support=support, support_weight=settings.support_weight)
    return WorldModel(encoder, dynamics, coarse, objective=objective, repeat=repeat)
