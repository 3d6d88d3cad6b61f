"""Networks of your own in the ensemble of PETS: python -m examples.own_network."""

import torch
from torch import nn

from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import mlp


class Newton(nn.Module):  # velocities move cart and pole by known physics; the accelerations are learned
    def __init__(self, state_space, context_space, action_space):
        super().__init__()
        self.push, self.log_std = mlp([5, 64, 64, 2]), nn.Parameter(torch.full((4,), -3.0))

    def forward(self, state, context, action):
        push = self.push(torch.cat([state, action], -1))
        change = torch.stack([0.02 * state[..., 1], push[..., 0], 0.02 * state[..., 3], push[..., 1]], -1)
        mean_and_std = change.unsqueeze(-2), self.log_std.exp().expand_as(change).unsqueeze(-2)
        return mean_and_std, torch.ones_like(push[..., :1]), 0 * push[..., 0]  # one Gaussian; nothing terminates


class PETSWithNewton(PETS):
    def make_dynamics(self, encoder, task, device):
        spaces = encoder.state_space, encoder.context_space, task.action_space
        return ProbabilisticEnsemble(*spaces, Newton, n_models=3, create_optimizer=True, normalize_targets=False)


agent = PETSWithNewton.preset("demo").build(make_task("envs:ContinuousCartPole-v0"), torch.device("cpu"), seed=0)
collector = Collector(make_vector_env("envs:ContinuousCartPole-v0", max_episode_steps=100), agent, seed=0)
while collector.n_total_env_steps < 140:
    for episode in collector.step(explore=True):
        print(f"{episode.n_total_env_steps} steps: return {episode.episode_return:.0f}")
    agent.learn(collector.n_total_env_steps)
