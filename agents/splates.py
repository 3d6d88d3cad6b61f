"""SPlaTES: planning with predictable, temporally extended skills (Gürtler and Martius, RLC 2025).

Deviations from the released library: the skills are executed by SAC instead of TD-MPC2, rewards are differences of
potentials by default, the latent state is a part of the observation by default, an outcome is compared with 16 skills
from the prior instead of 100, potentials are clipped at -10 instead of -50, rewards are neither standardised nor
offset, displacements are whitened by their covariance instead of a learned map, and a skill's end bootstraps with one
fresh skill instead of a learned value averaged over skills.
"""

from collections.abc import Mapping
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
    """Planning with skills of predictable outcomes."""

    reward: Literal["difference", "end"] = "difference"
    """`difference`: reward every step by the increase of information about the skill; `end`: reward the last step by
    the information of the outcome."""
    sb_start_duration: int = 0
    """Environment steps of the symmetry-breaking start; 0 for none."""
    sb_start_factor: float = 1.5
    """Whitened displacement by a skill of length one until then."""
    encoder: Literal["parts", "learned"] = "parts"
    """`parts`: skills change the parts of the observation in `state`; `learned`: they change linear maps of it, learned
    from the reward, which is then learned too even if it is known."""
    latent_dim: int = 2
    """Width of the state, if it is learned."""
    context_dim: int = 2
    """Width of the context, such as a goal, if the state is learned."""

    trainers: ClassVar[Mapping[str, TrainerConfig]] = TRAINERS

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("encoder", self.encoder, ("parts", "learned"))

    def make_encoder(self, task: TaskSpec) -> Encoder:
        if self.encoder == "parts":
            return super().make_encoder(task)
        return LearnedEncoder(task, self.latent_dim, self.context_dim)

    def make_method(self, task: TaskSpec, device: torch.device) -> SPlaTES:
        breaking = {"sb_start_duration": self.sb_start_duration, "sb_start_factor": self.sb_start_factor}
        world = self.make_world(task, device, steps=self.duration, **breaking)
        return SPlaTES(
            task, world, self.duration, config=self.skills, hidden=self.hidden, at_end=self.at_end, form=self.reward
        )


SPlaTESAgent.presets = {
    # In wide cells a plan may creep through a wall, by a little that the model gets wrong with each skill. Narrow ones
    # have few visits each. With a weight of 8, fewer episodes succeeded.
    "demo": {**IN_A_MAZE, "support_weight": 4.0, "support_cell": 0.1, "support_visits": 2},
    "ant": {**ON_LEGS, "skills": SkillModelConfig(n_first=5000, updates_per_segment=4.0)},
    "debug": {**DEBUG},
}
