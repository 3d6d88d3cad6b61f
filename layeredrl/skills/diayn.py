"""DIAYN: diversity is all you need (Eysenbach et al. 2019, arXiv 1802.06070). It has no model to plan with."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models.nets import mlp
from layeredrl.models.optimizer import descend, restore_optimizer
from layeredrl.skills.method import LogProb, SkillInputs, SkillMethod
from layeredrl.storage import Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder


class DIAYN(SkillMethod):
    """Rewards states from which a discriminator recognises the skill: log q(z | s') - log p(z), equation 3.

    Args:
        task: The task of the environment.
        encoder: Encoder of the discriminator's inputs.
        n_skills: Number of skills.
        duration: Duration of a skill in environment steps.
        hidden: Widths of the discriminator's hidden layers.
        learning_rate: Learning rate of the discriminator.
    """

    at_end = "same"

    def __init__(
        self,
        task: TaskSpec,
        encoder: Encoder,
        n_skills: int,
        duration: int,
        *,
        hidden: tuple[int, ...] = (64, 64),
        learning_rate: float = 1e-3,
    ) -> None:
        self.space, self.n_skills, self.duration = spaces.Discrete(n_skills), n_skills, duration
        self.encoder = encoder
        self._inputs = SkillInputs(task, self.space, duration)
        self.n_inputs = self._inputs.width
        self.discriminator = mlp([encoder.state_dim, *hidden, n_skills]).to(encoder.state_index.device)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=learning_rate, fused=True)

    def inputs(self, obs: Tensor, command: Batch | None) -> Tensor:
        return self._inputs(obs, command)

    def reward(self, batch: Batch) -> Tensor:
        logits = self.discriminator(self.encoder(batch.obs_next)[0])
        loss: Tensor = F.cross_entropy(logits, batch.command.action[:, 0], reduction="none")
        return math.log(self.n_skills) - loss

    def learn(self, replay: Replay, n_total_env_steps: int, log_prob: LogProb) -> dict[str, float]:
        rows, _ = replay.sample(256)
        state, _ = self.encoder(torch.as_tensor(rows.obs_next, device=self.encoder.state_index.device))
        skill = torch.as_tensor(rows.info.command.action[:, 0], device=state.device)
        descend(F.cross_entropy(self.discriminator(state), skill), self.optimizer)
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        restore_optimizer("the discriminator's optimizer", self.optimizer, state["optimizer"])
