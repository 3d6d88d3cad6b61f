"""Three levels: a planner over skills of SPlaTES, skills that set goals, and a policy that reaches goals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import ClassVar

import torch

from agents.skills import DEBUG, IN_A_MAZE, TRAINERS
from agents.splates import SPlaTESAgent
from layeredrl.checks import require_counts, require_number
from layeredrl.levels import PolicyLearningConfig, PolicyLevel
from layeredrl.levels.goals import GoalCommands, Hindsight
from layeredrl.skills import ModelBasedSkills
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig


@dataclass(frozen=True)
class SPlaTESOverGoalsAgent(SPlaTESAgent):
    """Planning with skills that set goals instead of acting themselves."""

    goal_duration: int = 2
    """Duration of a goal in environment steps; the last one of a skill is cut short where they do not fit."""
    goal_radius: float = 0.2
    """Largest displacement to a goal in each dimension, in its units."""
    hindsight: float = 0.5
    """Share of the lowest level's transitions that are relabelled with a goal that was reached."""
    goal_policy: PolicyLearningConfig = field(default_factory=PolicyLearningConfig)
    """When and how the lowest level learns; its algorithm has the settings of the one above."""

    trainers: ClassVar[Mapping[str, TrainerConfig]] = {"demo": TRAINERS["demo"]}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts(self, goal_duration=1)
        require_number("goal_radius", self.goal_radius, 0, inf, open_low=True)
        require_number("hindsight", self.hindsight, 0, 1)

    def make_policies(
        self, method: ModelBasedSkills, task: TaskSpec, device: torch.device, seed: int
    ) -> list[PolicyLevel]:
        goals = GoalCommands(task, self.goal_radius, self.goal_duration)
        lowest = PolicyLevel(
            self.sac.build(goals.n_inputs, task.action_space, device),
            task.action_space,
            goals.space,
            n_envs=task.n_envs,
            inputs=goals.inputs,
            relabel=Hindsight(goals, share=self.hindsight),
            learning=self.goal_policy,
            name="goals",
            seed=seed,
        )
        skills = self.make_skill_level(method, goals.space, task, device, seed=seed, duration=self.goal_duration)
        return [skills, lowest]


SPlaTESOverGoalsAgent.presets = {
    # A skill decides every other step, so that each of its decisions is learned from twice as often.
    "demo": {
        **IN_A_MAZE | {"policy": PolicyLearningConfig(n_random_steps=4000, updates_per_transition=0.5)},
        "support_weight": 2.0,
        "goal_policy": PolicyLearningConfig(n_random_steps=1000, updates_per_transition=0.25),
    },
    "debug": {**DEBUG, "goal_policy": DEBUG["policy"]},
}
