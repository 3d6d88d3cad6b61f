"""LOOP: planning guided by an off-policy learner (Sikchi et al. 2021, arXiv 2008.10066).

Deviations from the paper: iCEM plans, with particles of an ensemble whose reward and termination are learned; the
policy's sequences are candidates, not a part of the sampling distribution; policy and critics are those of SAC, and
learn from imagined transitions as well, unless a preset or setting says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

from agents.guidance import GuidanceConfig
from agents.imagined_policy import policy_choices
from agents.pets import PETS
from agents.recipe import Choice, with_choices
from layeredrl.environments import TaskFacts
from layeredrl.levels import PolicyLearningConfig
from layeredrl.off_policy import SACConfig
from layeredrl.trainer import TrainerConfig
from layeredrl.world_model import ImaginationConfig


@dataclass(frozen=True)
class LOOP(PETS):
    """Model-predictive control on an ensemble, guided by a policy and its critics."""

    guided: bool = True

    environment: ClassVar[str] = "Pendulum-v1"
    environments: ClassVar[Mapping[str, str]] = {}
    trainers: ClassVar[Mapping[str, TrainerConfig]] = {"demo": TrainerConfig(n_total_env_steps=3_000)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.guided:
            raise ValueError("guided is False, expected True: planning without guidance is that of pets")
        usual = PETS()
        for name, instead in (
            ("value", "guidance"),
            ("value_learning", "guidance"),
            ("discount", "guidance.sac.discount"),
        ):
            if getattr(self, name) != getattr(usual, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected {getattr(usual, name)}: loop does not use it, "
                    f"but {instead}"
                )

    @classmethod
    def suited(cls, facts: TaskFacts) -> list[Choice]:
        """Settings that suit a task, on one core."""
        small = facts.state_dim <= 6
        soon = facts.ends_after is not None and not small
        chosen = [c for c in super().suited(facts) if c.name not in ("value", "discount")]
        replaced = [
            *([] if facts.silent else [Choice("planner.icem.horizon", 8, "plans end in a value")]),
            Choice("learning.fit_every", 50 if small else 125, "the policy learns too"),
            Choice("learning.fit.max_steps", 100 if small else 200, "the same cost at all times"),
            *policy_choices(facts, sac="guidance.sac", fitting="learning"),
            Choice("guidance.real_share", 0.2, "more transitions than steps"),
        ]
        updates = "guidance.learning.updates_per_transition"
        if soon:
            reason = "episodes end early: much to learn"
            replaced += [Choice(updates, 10.0, reason), Choice("trainer.n_total_env_steps", 40_000, reason)]
        else:
            replaced.append(Choice(updates, 4.0, "imagined transitions allow many"))
        names = {choice.name for choice in replaced}
        return [*(choice for choice in chosen if choice.name not in names), *replaced]


_PENDULUM = TaskFacts(3, 1, False, False, False, episode_steps=200)
_DEMO = with_choices(LOOP(), [c for c in LOOP.suited(_PENDULUM) if not c.name.startswith("trainer.")])

LOOP.presets = {
    "demo": {field.name: getattr(_DEMO, field.name) for field in fields(_DEMO)},
    "debug": {
        **PETS.presets["debug"],
        "guidance": GuidanceConfig(
            n_proposals=2,
            real_share=0.5,
            sac=SACConfig(hidden=(16,)),
            learning=PolicyLearningConfig(n_random_steps=0, batch_size=16, report_every=10),
            imagination=ImaginationConfig(n_branches=50, n_steps=(1, 3)),
        ),
    },
}
