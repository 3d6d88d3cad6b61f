"""A planner of your own instead of iCEM: python -m examples.own_planner."""

import torch
from tianshou.data import Batch

from agents.pets import PETS
from layeredrl import action_spaces
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.planners import Plan, Planner
from layeredrl.planners.planner import best_first, evaluate


class Held(Planner):  # best of 64 random actions, each held for the whole horizon
    def initial_warm_start(self, n_envs, device):
        return Batch()  # no state between decisions

    def _plan(self, score, n_envs, warm_start, generator, proposals):
        candidates = action_spaces.uniform(self.action_space, (n_envs, 64, 1), generator).expand(
            -1, -1, self.horizon, -1
        )
        best, scores = best_first(candidates, evaluate(score, candidates), 1)
        return Plan(best[:, 0], scores[:, 0], Batch(), scores.mT)


class PETSWithHeld(PETS):
    def make_planner(self, task):
        return Held(task.action_space, horizon=8)


agent = PETSWithHeld.preset("demo").build(make_task("envs:ContinuousCartPole-v0"), torch.device("cpu"), seed=0)
collector = Collector(make_vector_env("envs:ContinuousCartPole-v0", max_episode_steps=100), agent, seed=0)
while collector.n_total_env_steps < 140:
    for episode in collector.step(explore=True):
        print(f"{episode.n_total_env_steps} steps: return {episode.episode_return:.0f}")
    agent.learn(collector.n_total_env_steps)
