"""A level that plans with a learned world model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import actions
from layeredrl.checks import require_counts, require_number
from layeredrl.levels.level import Decision, Level
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.fitting import FitConfig, fit, fit_regression
from layeredrl.planners import Planner
from layeredrl.randomness import derive_seed
from layeredrl.replay import Replay
from layeredrl.world_model import WorldModel


@dataclass(frozen=True)
class ModelLearningConfig:
    """When and how a planning level learns its world model."""

    n_random_steps: int = 200
    """Environment steps with random actions before the first fit."""
    fit_every: int = 200
    """Environment steps from one fit to the next."""
    first_epochs: int = 5
    """Passes over the data in the first fit, which starts from random parameters."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How a fit goes."""
    reward_learning_rate: float = 1e-3
    """Of the reward network, where the task's reward is not known."""
    replay_size: int = 1_000_000
    """Transitions kept, all environments together."""

    def __post_init__(self) -> None:
        require_counts(self, n_random_steps=1, fit_every=1, first_epochs=1, replay_size=1)
        require_number("reward_learning_rate", self.reward_learning_rate, 0, math.inf, open_low=True)


class PlannerLevel(Level):
    """Model-predictive control: plans a sequence at every decision, emits its first action, and fits the model.

    Args:
        world: The world model.
        planner: Optimises sequences of actions in `action_space`.
        action_space: Bounded Box of what it emits.
        learning: When and how the model is learned; None if it is fixed, as an oracle is.
        seed: Of fitting and replay.
    """

    def __init__(
        self,
        world: WorldModel,
        planner: Planner,
        action_space: spaces.Space[Any],
        *,
        learning: ModelLearningConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.world = world.eval()
        self.planner = planner
        self.action_space = action_space
        self.discount = world.discount
        self.learning = learning
        self.device = world.dynamics.device
        self.n_total_env_steps = 0
        self.last_fit = 0
        self._generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "fit"))
        if planner.action_space != action_space:
            raise ValueError(f"the planner plans in {planner.action_space}, expected {action_space}")
        if learning is None:
            return
        if not isinstance(world.dynamics, ProbabilisticEnsemble):
            raise TypeError(
                f"the dynamics is {type(world.dynamics).__name__}, expected a ProbabilisticEnsemble to learn; "
                "pass learning=None for a model that is fixed"
            )
        if world.dynamics.optimizer is None:
            raise ValueError("the dynamics has no optimizer to learn with: construct it with create_optimizer=True")
        self.replay = Replay(learning.replay_size, world.task.n_envs, seed=derive_seed(seed, "replay"))
        self._reward_optimizer = None
        if world.reward_net is not None:
            self._reward_optimizer = torch.optim.Adam(
                world.reward_net.parameters(), lr=learning.reward_learning_rate, fused=True
            )

    def start(self, n_envs: int) -> Batch:
        return self.planner.start(n_envs, self.device)

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        command: Tensor | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        duration = np.ones(len(obs), dtype=np.int64)
        if explore and self.learning is not None and self.n_total_env_steps < self.learning.n_random_steps:
            return Decision(actions.uniform(self.action_space, (len(obs),), generator), duration, memory)

        def score(actions: Tensor) -> Tensor:
            with torch.inference_mode():  # a tenth faster than no_grad; what leaves it must be an ordinary tensor
                scores = self.world.score(obs, actions, generator=generator)
            return scores.clone()

        plan = self.planner.plan(score, len(obs), memory, generator)
        metrics = {"plan/best_score": plan.score}
        return Decision(plan.actions[:, 0], duration, plan.warm_start, metrics)

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        if self.learning is not None:
            self.replay.add(transitions, env_ids)

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        self.world.dynamics.set_n_total_env_steps(n_total_env_steps)
        learning = self.learning
        if learning is None or n_total_env_steps < learning.n_random_steps or not len(self.replay):
            return {}
        if self.last_fit and n_total_env_steps - self.last_fit < learning.fit_every:
            return {}
        config = learning.fit if self.last_fit else replace(learning.fit, epochs=learning.first_epochs)
        self.last_fit = n_total_env_steps
        return self._fit(config)

    def _fit(self, config: FitConfig) -> dict[str, float]:
        assert isinstance(self.world.dynamics, ProbabilisticEnsemble)
        data = self.replay.all()
        obs, obs_next, act = (torch.as_tensor(x, device=self.device) for x in (data.obs, data.obs_next, data.act))
        state, context = self.world.encode(obs)
        state_next, _ = self.world.encode(obs_next)
        terminated = torch.as_tensor(data.terminated, dtype=state.dtype, device=self.device)
        transitions = Batch(state=state, context=context, act=act, state_next=state_next, terminated=terminated)
        result = fit(self.world.dynamics, transitions, config, generator=self._generator)
        metrics = {"model/loss": float(result.loss.mean()), "model/transitions": len(self.replay)}
        if result.holdout_loss is not None:
            metrics["model/holdout_loss"] = float(result.holdout_loss.mean())
        net, optimizer = self.world.reward_net, self._reward_optimizer
        if net is not None and optimizer is not None:
            reward = torch.as_tensor(data.rew, dtype=state.dtype, device=self.device)
            inputs = torch.cat([state, context, act, state_next], -1)
            net.fit_scales(inputs, reward)
            targets = net.to_units(reward)
            metrics["model/reward_loss"] = fit_regression(
                net.normalized, optimizer, inputs, targets, config, generator=self._generator
            )
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "world": self.world.state_dict(),
            "n_total_env_steps": self.n_total_env_steps,
            "last_fit": self.last_fit,
            "generator": self._generator.get_state(),
            "device": self.device.type,
        }
        for name, optimizer in self._optimizers().items():
            state[name] = optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.load_state_dict(state["world"])
        self.n_total_env_steps, self.last_fit = state["n_total_env_steps"], state["last_fit"]
        if state["device"] == self.device.type:  # another device draws other numbers anyway
            self._generator.set_state(state["generator"].cpu())
        for name, optimizer in self._optimizers().items():
            optimizer.load_state_dict(state[name])

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.learning is None:
            return {}
        dynamics = self.world.dynamics
        optimizers = {
            "model_optimizer": dynamics.optimizer if isinstance(dynamics, ProbabilisticEnsemble) else None,
            "reward_optimizer": self._reward_optimizer,
        }
        return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}
