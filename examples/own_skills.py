"""A skill method of your own: python -m examples.own_skills."""

import torch
from gymnasium.spaces import Box

from agents.diayn import DIAYNAgent
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.levels import PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.skills import SkillInputs, SkillMethod


class Compass(SkillMethod):  # a skill is a direction; its reward is the displacement in that direction
    def __init__(self, task):
        self.space, self.duration = Box(-1.0, 1.0, (2,)), 5
        self.see = SkillInputs(task, self.space, self.duration)
        self.n_inputs = self.see.width

    def inputs(self, obs, command):
        return self.see(obs, command)

    def reward(self, batch):
        return 10 * ((batch.obs_next - batch.obs)[:, :2] * batch.command.action).sum(-1)


class DIAYNWithCompass(DIAYNAgent):
    def make_method(self, task, device):
        return Compass(task)


learning = PolicyLearningConfig(n_random_steps=200, updates_per_transition=0.1, batch_size=64, report_every=500)
recipe = DIAYNWithCompass(sac=SACConfig(hidden=(32, 32), alpha=0.05, learning_rate=3e-3), policy=learning)
agent = recipe.build(make_task("envs:Maze2D-Simple-v0", 8), torch.device("cpu"), seed=0)
collector = Collector(make_vector_env("envs:Maze2D-Simple-v0", 8, vectorization="native"), agent, seed=0)
while collector.n_total_env_steps < 2000:
    collector.step(explore=True)
    if metrics := agent.learn(collector.n_total_env_steps):
        print(f"{collector.n_total_env_steps} steps: {metrics['policy/reward']:.2f} dm a step where the skill points")
