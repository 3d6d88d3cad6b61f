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

from layeredrl import off_policy
from layeredrl.checks import require_choice, require_number
from layeredrl.levels.level import Decision
from layeredrl.levels.policy_level import PolicyLearningConfig, PolicyLevel
from layeredrl.off_policy import OffPolicyAlgorithm
from layeredrl.skills.method import AtEnd, SkillMethod
from layeredrl.transfers import to_device, to_host

SAME_ACTION = 1e-6
"""Actions in [-1, 1] that differ by less are the same but for rounding."""


class SkillLevel(PolicyLevel):
    """Carries out skills, and learns them from the intrinsic reward of a `SkillMethod`.

    Args:
        algorithm: As for `PolicyLevel`; its networks take `method.n_inputs` numbers.
        method: Defines the skills and their reward.
        action_space: Action space of the level.
        n_envs: Number of environments that it learns in.
        calm_skills: Share of the skills that are executed without the policy's noise while exploring, as they are
            when not exploring: a model of their outcomes needs such data.
        fresh_skills: Share of the sampled transitions whose skill is replaced by one from the prior.
        duration: Environment steps for which an action lasts.
        learning: When and how the policy is learned.
        name: Name of the level.
        seed: Seed of the replay.
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
        name: str = "skills",
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
            duration=duration,
            learning=learning,
            name=name,
            seed=seed,
        )
        self.method, self.calm_skills, self.fresh_skills = method, calm_skills, fresh_skills

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
        if obs.device.type == "cpu" and not calm.any():  # a GPU would wait
            return replace(decision, memory=Batch(calm=calm))
        without = super().act(obs, command, memory, explore=False, generator=generator)
        action = torch.where(calm[:, None], without.action, decision.action)
        return replace(decision, action=action, memory=Batch(calm=calm))

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        if self.method.keeps_log_prob:
            transitions.info.log_prob = self._behaviour_log_prob(transitions)
        super().observe(transitions, env_ids)

    @property
    def host_only(self) -> str | None:
        method = self.method
        if method.on_device and not method.keeps_log_prob:
            return None
        return f"{type(method).__name__} learns from a replay in the memory of the host"

    @torch.no_grad()
    def log_prob(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Log-probability (n,) of actions (n, A) under the current policy, for inputs (n, I)."""
        return off_policy.log_prob(self.algorithm, inputs, action)

    def _behaviour_log_prob(self, transitions: Batch) -> NDArray[np.float32]:
        """Log-probability of actions (n,) under the policy that drew them, which has not learned since.

        Infinite for actions of skills that are executed without noise.
        """
        if self.acts_at_random:
            return np.full(len(transitions.act), -transitions.act.shape[1] * math.log(2), np.float32)
        asked = transitions.info.command
        obs, act, *there = to_device([transitions.obs, transitions.act, *asked.values()], self.device)
        inputs = self.inputs(obs, Batch(dict(zip(asked.get_keys(), there, strict=True))))
        without_noise = (self.best_action(inputs) - act).abs().amax(-1) < SAME_ACTION
        (result,) = to_host(torch.where(without_noise, torch.inf, self.log_prob(inputs, act)))
        return result

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        metrics = self.method.learn(self.replay, n_total_env_steps, self.log_prob) if self.replay else {}
        return metrics | super().learn(n_total_env_steps)

    def relabelled(self, batch: Batch) -> Batch:
        n, device = len(batch.rew), batch.rew.device
        if self.fresh_skills:
            other = (torch.rand(n, device=device) < self.fresh_skills)[:, None]
            skill = torch.where(other, self.method.prior(n, device), batch.command.action)
            batch.command.action, batch.next_command.action = skill, skill
        with torch.no_grad():
            batch.rew = self.method.reward(batch)
        self._continue(batch)
        return batch

    def _continue(self, batch: Batch) -> None:
        """Set what the bootstrap assumes after the end of a skill: nothing, the same skill, or a fresh one."""
        ended = batch.next_command.remaining == 0
        if self.method.at_end == "zero":
            batch.discount = batch.discount * ~ended
            return
        following = batch.next_command
        if self.method.at_end == "fresh":
            skills = self.method.prior(len(ended), ended.device)
            following.action = torch.where(ended[:, None], skills, following.action)
        following.obs = torch.where(ended[:, None], batch.obs_next, following.obs)
        following.elapsed = torch.where(ended, 0, following.elapsed)
        following.remaining = torch.where(ended, self.method.duration, following.remaining)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "method": self.method.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.method.load_state_dict(state["method"])
