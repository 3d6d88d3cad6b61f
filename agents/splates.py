"""SPlaTES: planning with predictable, temporally extended skills (Gürtler and Martius, RLC 2025).

Deviations from the released library: the skills are carried out by SAC instead of TD-MPC2, rewards are differences of
potentials by default, and the latent state is a part of the observation by default.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from agents.skills import DEBUG, IN_A_MAZE, ON_LEGS, TRAINERS, SkillAgent
from layeredrl.checks import require_choice
from layeredrl.skills import SkillModelConfig, SPlaTES
from layeredrl.task import TaskSpec
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import Encoder, LearnedEncoder


@dataclass(frozen=True)
class SPlaTESAgent(SkillAgent):
    """Planning with skills of which the outcome is predictable."""

    reward: Literal["difference", "end"] = "difference"
    """Whether every step is paid by how much more its state tells of the skill, or the last one for the outcome."""
    sb_start_duration: int = 0
    """Environment steps of the symmetry-breaking start; 0 for none."""
    sb_start_factor: float = 1.5
    """Whitened length of what a skill of length one leads to by then."""
    encoder: Literal["parts", "learned"] = "parts"
    """Whether skills change the parts of the observation in `state`, or linear maps of it that learn what matters for
    the reward; that is then learned too, even if it is known."""
    latent_dim: int = 2
    """Width of the state, where it is learned."""
    context_dim: int = 2
    """Width of what of an episode's constants is seen besides, such as a goal, where the state is learned."""

    presets: ClassVar[dict[str, "SPlaTESAgent"]]
    trainers: ClassVar[dict[str, TrainerConfig]] = TRAINERS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("encoder", self.encoder, ("parts", "learned"))

    def make_encoder(self, task: TaskSpec) -> Encoder | LearnedEncoder:
        if self.encoder == "parts":
            return super().make_encoder(task)
        return LearnedEncoder(task, self.latent_dim, self.context_dim)

    def make_method(self, task: TaskSpec, device: torch.device) -> SPlaTES:
        breaking = {"sb_start_duration": self.sb_start_duration, "sb_start_factor": self.sb_start_factor}
        world = self.make_world(task, device, steps=self.duration, **breaking)
        return SPlaTES(task, world, self.duration, config=self.skills, hidden=self.hidden, form=self.reward)


SPlaTESAgent.presets = {
    # In wide cells a plan may creep through a wall, by a little that the model gets wrong with each skill. Narrow ones
    # have few visits each. With a weight of 8, fewer episodes succeeded.
    "demo": SPlaTESAgent(**IN_A_MAZE, support_weight=4.0, support_cell=0.1, support_visits=2),
    "ant": SPlaTESAgent(**ON_LEGS, skills=SkillModelConfig(n_first=5000, updates_per_skill=4.0)),
    "debug": SPlaTESAgent(**DEBUG),
}
