"""DIAYN: diversity is all you need (Eysenbach et al. 2019, arXiv 1802.06070). It has no model to plan with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_counts, require_number
from layeredrl.metrics import RunningMeans
from layeredrl.models.nets import mlp
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.skills.method import LogProb, SkillInputs, SkillMethod
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Network of the discriminator, and when and how it learns."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 1e-3
    """Learning rate of Adam."""
    batch_size: int = 256
    """Transitions of an update."""
    updates_per_transition: float = 0.25
    """Number of updates for each transition of the skill policy."""
    report_every: int = 1000
    """Environment steps between two reports of metrics."""

    def __post_init__(self) -> None:
        require_counts(self, batch_size=1, report_every=1)
        require_number("learning_rate", self.learning_rate, 0, math.inf, open_low=True)
        require_number("updates_per_transition", self.updates_per_transition, 0, math.inf)


class DIAYN(SkillMethod):
    """Rewards states from which a discriminator recognises the skill: log q(z | s') - log p(z), equation 3.

    Args:
        task: The task of the environment.
        encoder: Encoder of the discriminator's inputs.
        n_skills: Number of skills.
        duration: Duration of a skill in environment steps.
        config: Settings of the discriminator.
    """

    at_end = "same"
    on_device = True

    def __init__(
        self,
        task: TaskSpec,
        encoder: Encoder,
        n_skills: int,
        duration: int,
        *,
        config: DiscriminatorConfig | None = None,
    ) -> None:
        self.space, self.n_skills, self.duration = spaces.Discrete(n_skills), n_skills, duration
        self.encoder, self.config = encoder, DiscriminatorConfig() if config is None else config
        self._inputs = SkillInputs(task, self.space, duration)
        self.n_inputs = self._inputs.width
        widths = [encoder.state_dim, *self.config.hidden, n_skills]
        self.discriminator = mlp(widths).to(encoder.state_index.device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=self.config.learning_rate, fused=True)
        self.n_updates = self.last_report = 0
        self._means = RunningMeans()

    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        return self._inputs(obs, command)

    def reward(self, batch: Batch) -> Tensor:
        logits = self.discriminator(self.encoder(batch.obs_next)[0])
        loss: Tensor = F.cross_entropy(logits, batch.command.action[:, 0], reduction="none")
        return math.log(self.n_skills) - loss

    def learn(self, replay: Replay, n_total_env_steps: int, log_prob: LogProb) -> dict[str, float]:
        due = int(self.config.updates_per_transition * replay.n_added)
        while self.n_updates < due:
            self._update(replay)
            self.n_updates += 1
        if n_total_env_steps - self.last_report < self.config.report_every or not self._means:
            return {}
        self.last_report = n_total_env_steps
        return self._means.take() | {"skill/discriminator_updates": self.n_updates}

    def _update(self, replay: Replay) -> None:
        """Take one step of the discriminator."""
        rows, _ = replay.sample(self.config.batch_size)
        state, _ = self.encoder(torch.as_tensor(rows.obs_next, device=self.encoder.state_index.device))
        skill = torch.as_tensor(rows.info.command.action[:, 0], device=state.device)
        logits = self.discriminator(state)
        loss = F.cross_entropy(logits, skill)
        descend(loss, self.optimizer)
        if self.n_updates % 10 == 0:  # to wait for all of them would take too long
            accuracy = (logits.argmax(-1) == skill).float().mean()
            self._means.add({"skill/discriminator_loss": loss.detach(), "skill/accuracy": accuracy})

    def state_dict(self) -> dict[str, Any]:
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "means": self._means.state_dict(),
            "n_updates": self.n_updates,
            "last_report": self.last_report,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        restore_optimizer("the discriminator's optimizer", self.optimizer, state["optimizer"])
        self._means.load_state_dict(state["means"])
        self.n_updates, self.last_report = state["n_updates"], state["last_report"]
