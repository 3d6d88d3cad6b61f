"""A level that plans, guided by a policy and critics that are learned beside the model.

A plan ends in the critics' value, so that planning sees beyond its horizon, and the policy's own rollouts compete with
the planner's candidates (LOOP, Sikchi et al. 2021, arXiv 2008.10066; POPLIN, Wang and Ba 2019, arXiv 1906.08649).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import off_policy
from layeredrl.levels.exploration import ExplorationConfig
from layeredrl.levels.imagining_level import ImaginingLevel
from layeredrl.levels.planner_level import PlannerLevel, require_few
from layeredrl.models.density import mixture_mean
from layeredrl.planners import Planner


class GuidedLevel(PlannerLevel):
    """Plans with a world model, a value and a policy; all three learn from the transitions that planning collects.

    Args:
        policy: Learns the world model, policy and critics, whose value becomes that of the world model's objective. The
            objective must have no value, and the same discount as the critics. With a `real_share` of 1, the policy
            learns off-policy from the replay alone; with less, from what it imagines as well.
        planner: Plans with the world model.
        n_proposals: Number K of sequences of the policy among the candidates, at most as many as the planner's own; the
            first is without noise.
        exploration: How plans and random actions mix while exploring.
        common_noise: As of `PlannerLevel`.
    """

    def __init__(
        self,
        policy: ImaginingLevel,
        planner: Planner,
        *,
        n_proposals: int = 8,
        exploration: ExplorationConfig | None = None,
        common_noise: bool = False,
    ) -> None:
        world = policy.learner.world
        super().__init__(
            world,
            planner,
            policy.action_space,
            exploration=exploration,
            common_noise=common_noise,
            learner=policy.learner,
            replay=policy.replay,
            proposals=self.propose if n_proposals else None,
        )
        require_few("n_proposals", n_proposals, planner)
        objective = world.objective
        if objective.value is not None:
            raise ValueError("the objective has a value, expected None: plans end in that of the critics")
        if objective.discount != policy.discount:
            raise ValueError(f"the objective's discount is {objective.discount}, expected {policy.discount} as critics")
        objective.value = self.value
        self.policy, self.n_proposals = policy, n_proposals

    def value(self, state: Tensor, context: Tensor) -> Tensor:
        """Value of states by the critics, at the policy's action: (..., S), (..., C) -> (...).

        In units of the rewards; zero before the policy's first update.
        """
        policy = self.policy
        if policy.reward_scale is None or not policy.n_updates:
            return state.new_zeros(state.shape[:-1])
        inputs = self._inputs(state, context).flatten(0, -2)
        value = off_policy.action_value(policy.algorithm, inputs, policy.best_action(inputs))
        return value.view(state.shape[:-1]) / policy.reward_scale

    def propose(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Roll the policy out in the model, K times for each environment; see `Proposals`.

        Each of these branches follows the means of one member. In the first, actions are without noise.
        """
        k, dynamics = self.n_proposals, self.policy.imagination.dynamics
        model = dynamics.step_model(loss_mode=False)
        state, context = (x.repeat_interleave(k, 0) for x in self.world.encode(obs))
        row = torch.arange(len(state), device=state.device)
        first, member = (row % k == 0).unsqueeze(-1), row % k % dynamics.n_models
        actions = []
        for step in range(self.planner.horizon):
            inputs = self._inputs(state, context)
            drawn = off_policy.drawn_action(self.policy.algorithm, inputs, generator)
            action = torch.where(first, self.policy.best_action(inputs), drawn)
            actions.append(action)
            if step == self.planner.horizon - 1:
                break  # nothing is done in the state that follows
            out = model.predict(*(x.expand(dynamics.n_models, *x.shape) for x in (state, context, action)))
            mean = out.mean if out.weights is None else mixture_mean(out.mean, out.weights)
            state = model.next_state(state, mean[member, row])
        return torch.stack(actions, 1).view(len(obs), k, len(actions), -1)

    def _inputs(self, state: Tensor, context: Tensor) -> Tensor:
        """Inputs of policy and critics, for states (..., S) and contexts (..., C)."""
        return self.policy.inputs(self.world.encoder.observation(state, context), None)

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        self.policy.observe(transitions, env_ids)

    @property
    def host_only(self) -> str | None:
        return f"{type(self).__name__} reads its replay in the memory of the host"

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        metrics = self.policy.learn(n_total_env_steps)
        if "model/loss" in metrics:
            self.n_failed_plans = 0
        return metrics

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        return self.policy.cpu_seconds

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _NUMBERS} | {"policy": self.policy.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.policy.load_state_dict(state["policy"])


_NUMBERS = ("n_total_env_steps", "n_failed_plans")  # the learner's state is the policy's
