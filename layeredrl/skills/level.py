"""A policy level whose commands are skills."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.checks import require_choice, require_number
from layeredrl.levels import off_policy
from layeredrl.levels.level import Decision
from layeredrl.levels.off_policy import OffPolicyAlgorithm
from layeredrl.levels.policy_level import PolicyLearningConfig, PolicyLevel
from layeredrl.skills.method import AtEnd, SkillMethod
from layeredrl.storage import Replay


class SkillLevel(PolicyLevel):
    """Carries out skills, and learns them by the rewards that a `SkillMethod` pays.

    Args:
        algorithm: As of `PolicyLevel`; its networks see `method.n_inputs` numbers.
        method: What makes the commands skills.
        action_space: Of what it emits.
        n_envs: Number of environments that it learns in.
        calm_skills: Share of the skills that are carried out without the policy's noise while exploring, as they will
            be when it is over: a model of what they lead to has to have seen that.
        fresh_skills: Share of the sampled transitions for which another skill is assumed than that which was asked for.
        duration: Environment steps for which what it emits stands.
        learning: When and how the policy is learned.
        seed: Of the replay.
    """

    def __init__(
        self,
        algorithm: OffPolicyAlgorithm,
        method: SkillMethod,
        action_space: spaces.Space[Any],
        *,
        n_envs: int,
        calm_skills: float = 0.0,
        fresh_skills: float = 0.0,
        duration: int = 1,
        learning: PolicyLearningConfig | None = None,
        seed: int = 0,
    ) -> None:
        require_number("calm_skills", calm_skills, 0, 1)
        require_number("fresh_skills", fresh_skills, 0, 1)
        require_choice("the method's at_end", method.at_end, get_args(AtEnd))
        super().__init__(
            algorithm,
            action_space,
            method.space,
            n_envs=n_envs,
            inputs=method.inputs,
            relabel=self._relabel,
            duration=duration,
            learning=learning,
            seed=seed,
        )
        self.method, self.calm_skills, self.fresh_skills = method, calm_skills, fresh_skills
        method.log_prob = self._log_prob

    def initial_memory(self, n_envs: int) -> Batch:
        return Batch(calm=torch.zeros(n_envs, dtype=torch.bool, device=self.device))

    def act(
        self,
        obs: Tensor,
        command: Batch | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        decision = super().act(obs, command, memory, explore=explore, generator=generator)
        if not explore or not self.calm_skills or self.acts_at_random:
            return decision
        assert command is not None
        drawn = torch.rand(len(obs), generator=generator, device=self.device) < self.calm_skills
        calm = torch.where(command.elapsed == 0, drawn, memory.calm)
        rows: Any = calm.nonzero()[:, 0]
        if len(rows):
            without = super().act(obs[rows], command[rows], memory[rows], explore=False, generator=generator)
            decision.action[rows] = without.action
        return replace(decision, memory=Batch(calm=calm))

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        if self.method.keeps_log_prob:
            transitions.info.log_prob = self._log_prob_then(transitions)
        super().observe(transitions, env_ids)

    @torch.no_grad()
    def _log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:
        return off_policy.log_prob(self.algorithm, inputs, action)

    def _log_prob_then(self, transitions: Batch) -> NDArray[np.float32]:
        """Log density of actions (n,) as they were drawn; the policy has not learned since."""
        if self.acts_at_random:
            return np.full(len(transitions.act), -transitions.act.shape[1] * math.log(2), np.float32)
        rows = Batch(obs=transitions.obs, act=transitions.act, command=transitions.info.command)
        rows.to_torch_(device=self.device)
        told: NDArray[np.float32] = self._log_prob(self.inputs(rows.obs, rows.command), rows.act).cpu().numpy()
        return told

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        metrics = self.method.learn(self.replay, n_total_env_steps) if self.replay else {}
        return metrics | super().learn(n_total_env_steps)

    def _relabel(self, batch: Batch, replay: Replay) -> Batch:
        n, device = len(batch.rew), batch.rew.device
        if self.fresh_skills:
            other = (torch.rand(n, device=device) < self.fresh_skills)[:, None]
            skill = torch.where(other, self.method.prior(n, device), batch.command.action)
            batch.command.action, batch.next_command.action = skill, skill
        with torch.no_grad():
            batch.rew = self.method.reward(batch)
        self._go_on(batch)
        return batch

    def _go_on(self, batch: Batch) -> None:
        """Say what follows where a skill has ended."""
        over = batch.next_command.remaining == 0
        if self.method.at_end == "zero":
            batch.discount = batch.discount * ~over
            return
        following = batch.next_command
        if self.method.at_end == "fresh":
            skills = self.method.prior(len(over), over.device)
            following.action = torch.where(over[:, None], skills, following.action)
        following.obs = torch.where(over[:, None], batch.obs_next, following.obs)
        following.elapsed = torch.where(over, 0, following.elapsed)
        following.remaining = torch.where(over, self.method.duration, following.remaining)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.method.load_state_dict(state["method"])
