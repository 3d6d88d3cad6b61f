"""Points in the plane that actions push around: random transitions, and a small world model of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, LearnedEncoder, Objective, WorldModel

OBSERVATION, ACTION = spaces.Box(-10.0, 10.0, (2,)), spaces.Box(-1.0, 1.0, (2,))
E = 3


def known_reward(state, context, action, next_state):
    return -next_state.square().sum(-1)


def push(obs, action):
    """The true dynamics."""
    return obs + 0.3 * action


def make_world(
    seed: int = 0,
    *,
    reward: Callable[..., torch.Tensor] | None = known_reward,
    latent_dim: int = 0,
    **settings: Any,
) -> WorldModel:
    """A world model of the points, with an encoder that learns if it has a `latent_dim`."""
    torch.manual_seed(seed)
    task = TaskSpec(OBSERVATION, ACTION, n_envs=E, reward=reward)
    encoder = LearnedEncoder(task, latent_dim, 0) if latent_dim else Encoder(task)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space,
        encoder.context_space,
        ACTION,
        partial(GaussianMixtureMLP, hidden=(16,)),
        **{"n_models": 2, "learning_rate": 1e-2, "create_optimizer": True} | settings,
    )
    objective = Objective(encoder.state_dim, discount=0.9)
    return WorldModel(encoder, dynamics, task, objective=objective, reward_hidden=(16,))


def random_rows(n_steps: int, seed: int = 0) -> list[Batch]:
    """Random transitions of E environments without ends, as `Level.observe` takes them."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(n_steps):
        obs, act = rng.normal(size=(E, 2)), rng.uniform(-1, 1, (E, 2))
        obs_next = push(obs, act)
        done = np.zeros(E, bool)
        rows.append(
            Batch(
                obs=obs.astype(np.float32),
                act=act.astype(np.float32),
                rew=-(obs_next**2).sum(-1),
                terminated=done,
                truncated=done,
                obs_next=obs_next.astype(np.float32),
                info=Batch(duration=np.ones(E, np.int64)),
            )
        )
    return rows


def fill(replay: Replay, n_steps: int, seed: int = 0) -> Replay:
    """Add random transitions."""
    for row in random_rows(n_steps, seed):
        replay.add(row, np.arange(E))
    return replay


def as_data(rows: Batch) -> Batch:
    """Rows of a replay as `WorldModelLearner` takes them."""
    data = Batch({name: torch.as_tensor(rows[name]) for name in ("obs", "obs_next", "act", "terminated")})
    data.rew, data.last = torch.as_tensor(rows.rew, dtype=torch.float32), data.terminated.clone()
    return data


def random_data(n: int, seed: int = 0) -> Batch:
    """n random transitions, a multiple of E."""
    return as_data(Batch.cat(random_rows(n // E, seed)))
