"""PETS in an environment of your own: python -m examples.own_environment."""

import gymnasium as gym
import numpy as np
import torch

from agents.pets import PETS
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env


class Cart(gym.Env):  # push a cart to the origin; reward_function is the reward in torch, for planning
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
    reward_function = staticmethod(lambda state, context, action, next_state: -(next_state[..., 0] ** 2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(0.5, 1.5, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        self.state = self.state + 0.1 * np.float32([self.state[1], action[0]])
        return self.state, -float(self.state[0] ** 2), False, False, {}


gym.register("Cart-v0", Cart, max_episode_steps=50)
agent = PETS.preset("demo").build(make_task("Cart-v0"), torch.device("cpu"), seed=0)
collector = Collector(make_vector_env("Cart-v0"), agent, seed=0)
while collector.n_total_env_steps < 150:
    for episode in collector.step(explore=True):
        print(f"{episode.n_total_env_steps} steps: return {episode.episode_return:.1f}")
    agent.learn(collector.n_total_env_steps)
