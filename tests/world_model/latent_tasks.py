"""A small latent world model, and random subsequences of points in the plane to learn it from."""

from typing import Any

import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.task import TaskSpec
from layeredrl.world_model import LatentConfig, LatentWorldModel
from tests.world_model.points import ACTION, OBSERVATION, E, push

CONFIG = {
    "latent_dim": 16,
    "encoder_hidden": (16,),
    "hidden": (16,),
    "n_critics": 3,
    "discount": 0.9,
    "terminations": True,
}


def make_latent(action_space: spaces.Space[Any] = ACTION, *, noisy: bool = True, **settings: Any) -> LatentWorldModel:
    """A world model; `noisy` gives the heads that begin at zero random weights."""
    torch.manual_seed(0)
    encoder = settings.pop("encoder", None)
    task = TaskSpec(OBSERVATION, action_space, n_envs=E)
    world = LatentWorldModel(task, LatentConfig(**CONFIG | settings), torch.device("cpu"), encoder=encoder)
    if noisy:
        for parameter in world.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return world.eval()


def subsequences(length: int = 3, n: int = 32, seed: int = 0) -> Batch:
    """Subsequences (length, n) without ends; the reward is the first coordinate."""
    generator = torch.Generator().manual_seed(seed)
    act = torch.rand((length, n, 2), generator=generator) * 2 - 1
    obs = [torch.randn((n, 2), generator=generator)]
    for action in act:
        obs.append(push(obs[-1], action))
    steps = torch.stack(obs)
    return Batch(
        obs=steps[:-1].clone(),
        obs_next=steps[1:].clone(),
        act=act,
        rew=steps[1:, :, 0].contiguous(),
        terminated=torch.zeros(length, n, dtype=torch.bool),
        valid=torch.ones(length, n, dtype=torch.bool),
    )
