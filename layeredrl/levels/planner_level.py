"""A level that plans with a learned world model."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_count, require_counts, require_number
from layeredrl.levels.level import Decision, Level
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.fitting import FitConfig, fit, fit_regression
from layeredrl.models.optimizer import restore_optimizer
from layeredrl.planners import Plan, Planner, PlanningError
from layeredrl.randomness import derive_seed, seed_from
from layeredrl.storage import Replay
from layeredrl.world_model import LearnedEncoder, WorldModel


@dataclass(frozen=True)
class ExplorationConfig:
    """How a planning level mixes its plans with random actions while it collects experience.

    In each environment it is in one of two modes, planning or random, and may change it at every decision.
    """

    to_random: float = 0.0
    """Probability of a change from planning to random actions."""
    to_plan: float = 1.0
    """Probability of a change from random actions to planning."""
    n_random_steps: int = 0
    """Environment steps before the first plan."""
    effort: float = 1.0
    """Share of the planner's candidates that are tried while exploring."""

    def __post_init__(self) -> None:
        require_number("effort", self.effort, 0, 1, open_low=True)
        require_number("to_random", self.to_random, 0, 1)
        require_number("to_plan", self.to_plan, 0, 1)
        require_counts(self, n_random_steps=0)


@dataclass(frozen=True)
class ModelLearningConfig:
    """When and how a planning level learns its world model."""

    n_random_steps: int = 200
    """Environment steps with random actions before the first fit."""
    fit_every: int = 200
    """Environment steps from one fit to the next, at the least: several environments may step beyond it together."""
    first_epochs: int = 5
    """Passes over the data in the first fit, which starts from random parameters; `fit.max_steps` bounds it too."""
    fit: FitConfig = field(default_factory=FitConfig)
    """How a fit goes."""
    reward_learning_rate: float = 1e-3
    """Of the reward network, where the task's reward is not known."""
    max_failed_plans: int = 10
    """Decisions from one fit to the next for which no plan with a finite score is found, and random actions stand in;
    one more is an error."""
    replay_size: int = 1_000_000
    """Transitions kept, all environments together."""

    def __post_init__(self) -> None:
        require_counts(self, n_random_steps=1, fit_every=1, first_epochs=1, max_failed_plans=0, replay_size=1)
        require_number("reward_learning_rate", self.reward_learning_rate, 0, math.inf, open_low=True)


class PlannerLevel(Level):
    """Model-predictive control: plans a sequence at every decision, emits its first action, and fits the model.

    Args:
        world: The world model.
        planner: Optimises sequences of actions in `action_space`.
        action_space: Of what it emits: a bounded Box, Discrete or MultiDiscrete.
        duration: Environment steps for which an action stands, which is also a step of the world model.
        exploration: How plans and random actions mix; None for plans alone.
        common_noise: Whether all candidates of a decision, through all iterations, meet the same noise: their scores
            then differ by what they do, not by the luck they had, but all plans are made for the same few particles
            (common random numbers; Ng and Jordan 2000, PEGASUS). It changes as the planner draws from its generator.
        learning: When and how the model is learned; None if it is fixed, as an oracle is.
        seed: Of fitting and replay.
    """

    def __init__(
        self,
        world: WorldModel,
        planner: Planner,
        action_space: spaces.Space[Any],
        *,
        duration: int = 1,
        exploration: ExplorationConfig | None = None,
        common_noise: bool = False,
        learning: ModelLearningConfig | None = None,
        seed: int = 0,
    ) -> None:
        require_count("duration", duration)
        self.world = world.eval()
        self.planner = planner
        self.action_space = action_space
        self.duration = duration
        self.exploration = ExplorationConfig() if exploration is None else exploration
        self.common_noise = common_noise
        effort = self.exploration.effort
        self._exploring_planner = planner if effort == 1 else planner.lighter(effort)
        unlearned = 0 if learning is None else learning.n_random_steps
        self._n_random_steps = max(unlearned, self.exploration.n_random_steps)
        self.discount = world.objective.discount ** (world.repeat / duration)
        self.learning = learning
        self.device = world.dynamics.device
        self.n_total_env_steps = 0
        self.last_fit = 0
        self.n_failed_plans = 0
        self._generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "fit"))
        for name, space in (("planner", planner.action_space), ("world model", world.task.action_space)):
            if space != action_space:
                raise ValueError(f"the {name}'s action space is {space}, expected {action_space}")
        if learning is None:
            return
        if isinstance(world.encoder, LearnedEncoder):
            raise TypeError("the encoder is a LearnedEncoder, which this level does not teach, expected an Encoder")
        if world.repeat != 1:
            raise ValueError(f"the world's repeat is {world.repeat}, expected 1 where the level learns it")
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

    def initial_memory(self, n_envs: int) -> Batch:
        memory = self.planner.initial_warm_start(n_envs, self.device)
        memory.until_report = torch.zeros(n_envs, dtype=torch.int64, device=self.device)
        memory.random = torch.zeros(n_envs, dtype=torch.bool, device=self.device)
        return memory

    @torch.no_grad()
    def act(
        self,
        obs: Tensor,
        command: Batch | None,
        memory: Batch,
        *,
        explore: bool,
        generator: torch.Generator,
    ) -> Decision:
        if explore and self.n_total_env_steps < self._n_random_steps:
            return Decision(
                action_spaces.uniform(self.action_space, (len(obs),), generator), self._durations(obs), memory
            )
        if not explore or not self.exploration.to_random:
            return self._decide(obs, memory, explore=explore, generator=generator)

        change = torch.rand(len(obs), generator=generator, device=self.device)
        at_random = torch.where(memory.random, change >= self.exploration.to_plan, change < self.exploration.to_random)
        # A plan that was not followed tells nothing of the next one.
        memory = _put(memory, at_random, self.initial_memory(int(at_random.sum())))
        memory.random = at_random
        rows: Any = (~at_random).nonzero()[:, 0]
        if not len(rows):
            return Decision(
                action_spaces.uniform(self.action_space, (len(obs),), generator), self._durations(obs), memory
            )
        planned = self._decide(obs[rows], memory[rows], explore=explore, generator=generator)
        return self._mixed(planned, ~at_random, memory, generator)

    def _random(self, obs: Tensor, memory: Batch, generator: torch.Generator) -> Decision:
        action = action_spaces.uniform(self.action_space, (len(obs),), generator)
        return Decision(action, self._durations(obs), memory)

    def _durations(self, obs: Tensor) -> NDArray[np.int64]:
        return np.full(len(obs), self.duration, np.int64)

    def _mixed(self, planned: Decision, where: Tensor, memory: Batch, generator: torch.Generator) -> Decision:
        """What was decided in some environments (n,), and random actions in the others.

        There is no forecast: a plan that random actions interrupt does not come to what it predicted.
        """
        action = action_spaces.uniform(self.action_space, (len(where),), generator)
        action[where] = planned.action
        told = action.new_full((len(where),), torch.nan, dtype=torch.float32)
        return Decision(
            action,
            np.full(len(where), self.duration, np.int64),
            _put(memory, where, planned.memory),
            {name: told.masked_scatter(where, value.float()) for name, value in planned.metrics.items()},
        )

    def _decide(self, obs: Tensor, memory: Batch, *, explore: bool, generator: torch.Generator) -> Decision:
        """Plan, and emit the first action."""
        duration = self._durations(obs)
        try:
            plan = self.plan(obs, memory, generator, exploring=explore)
        except PlanningError as error:
            if self.learning is None:
                raise
            plan = self._patched(error, generator, count=explore)
        due = memory.until_report == 0
        plan.warm_start.until_report = torch.where(due, self.planner.horizon, memory.until_report) - 1
        plan.warm_start.random = memory.random
        if not due.any():
            return Decision(plan.actions[:, 0], duration, plan.warm_start)
        forecast, metrics = self._report(plan, obs, generator)
        return Decision(
            plan.actions[:, 0],
            duration,
            plan.warm_start,
            {name: torch.where(due, value, torch.nan) for name, value in metrics.items()},
            forecast=torch.where(due, forecast, torch.nan),
            forecast_steps=self.planner.horizon * self.duration,
        )

    @torch.no_grad()
    def plan(self, obs: Tensor, memory: Batch, generator: torch.Generator, *, exploring: bool = False) -> Plan:
        """Plan for n environments with observations (n, O).

        Raises:
            PlanningError: No candidate has a finite score; says at which step the model diverges.
        """
        tried = torch.empty(0)
        seed = seed_from(generator) if self.common_noise else None

        def score(candidates: Tensor) -> Tensor:
            nonlocal tried
            tried = candidates
            # Once more the same numbers: elites that are kept compete with the scores that they had.
            noise = generator if seed is None else torch.Generator(self.device).manual_seed(seed)
            with torch.inference_mode():  # a tenth faster than no_grad; what leaves it must be an ordinary tensor
                scores = self.world.score(
                    obs, candidates, generator=noise, common_noise=self.common_noise, exploring=exploring
                )
            return scores.clone()

        try:
            planner = self._exploring_planner if exploring else self.planner
            return planner.plan(score, len(obs), memory, generator)
        except PlanningError as error:
            raise PlanningError(self._reason(error, obs, tried, generator), error.env_ids, error.plan) from None

    def _patched(self, error: PlanningError, generator: torch.Generator, *, count: bool) -> Plan:
        """A plan with random actions where there is none, unless that has happened too often since the last fit."""
        assert self.learning is not None
        self.n_failed_plans += count
        if self.n_failed_plans > self.learning.max_failed_plans:
            raise error
        warnings.warn(f"{error}; they act at random", RuntimeWarning, stacklevel=3)
        plan, rows = error.plan, torch.tensor(error.env_ids, device=self.device)
        lead = (len(rows), self.planner.horizon)
        plan.actions[rows] = action_spaces.uniform(self.action_space, lead, generator)
        fresh = self.planner.initial_warm_start(len(rows), self.device)
        for key in fresh.get_keys():
            plan.warm_start[key][rows] = fresh[key]
        return plan

    def _report(self, plan: Plan, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Predicted returns of the chosen sequences, (n,), and what else there is to tell of them, (n,) each.

        They are rolled out once more, because the best of many noisy scores flatters.
        """
        result = self.world.rollout(obs, plan.actions, generator=generator, statistics=False)
        returns = self.world.objective.rewards(result)  # (n, M, P)
        gain = plan.best_scores - plan.best_scores[0]
        converged = (gain >= 0.99 * gain[-1]).int().argmax(0) + 1.0
        planned = plan.score > -torch.inf
        return returns.mean((1, 2)), {
            "plan/return_std": returns.flatten(1).std(1, correction=0),
            "plan/return_std_between_members": returns.mean(2).std(1, correction=0),
            "plan/score": torch.where(planned, plan.score, torch.nan),
            "plan/iterations_to_converge": torch.where(planned, converged, torch.nan),
        }

    def _reason(self, error: PlanningError, obs: Tensor, tried: Tensor, generator: torch.Generator) -> str:
        """Why nothing that was tried has a finite score, told from the last candidates (E, N, H, A)."""
        rows = torch.tensor(error.env_ids, device=obs.device)
        obs, tried = obs[rows].repeat_interleave(tried.shape[1], 0), tried[rows].flatten(0, 1)
        if not obs.isfinite().all():
            return f"{error}: the observations are not finite"
        diverged = self.world.rollout(obs, tried, generator=generator, statistics=False).diverged.flatten(0, 2).any(0)
        if diverged.any():
            step = int(diverged.int().argmax())
            return f"{error}: the model's states leave the finite range at step {step} of {self.planner.horizon}"
        return f"{error}: the model's states are finite, its rewards, terminations or values are not"

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        if self.replay is not None:
            self.replay.add(transitions, env_ids)

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        self.world.dynamics.set_n_total_env_steps(n_total_env_steps)
        learning = self.learning
        if learning is None or n_total_env_steps < learning.n_random_steps or not self.replay:
            return {}
        if self.last_fit and n_total_env_steps - self.last_fit < learning.fit_every:
            return {}
        config = learning.fit if self.last_fit else replace(learning.fit, epochs=learning.first_epochs)
        self.last_fit = n_total_env_steps
        self.n_failed_plans = 0
        return self._fit(config)

    def _fit(self, config: FitConfig) -> dict[str, float]:
        assert isinstance(self.world.dynamics, ProbabilisticEnsemble)
        assert self.replay is not None
        data = self.replay.all()
        # What the end of an episode cut short says nothing of what the action does, unless it ended the episode.
        whole = (data.info.duration == self.duration) | data.terminated
        if not whole.any():
            return {}
        data = data if whole.all() else data[whole]
        obs, obs_next, act = (torch.as_tensor(x, device=self.device) for x in (data.obs, data.obs_next, data.act))
        space = self.world.task.action_space
        state, context = self.world.encode(obs)
        state_next, _ = self.world.encode(obs_next)
        terminated = torch.as_tensor(data.terminated, dtype=state.dtype, device=self.device)
        modelled = action_spaces.for_model(space, act)
        transitions = Batch(state=state, context=context, act=modelled, state_next=state_next, terminated=terminated)
        # The last states of episodes are nobody's first.
        last = torch.as_tensor(data.terminated | data.truncated, device=self.device)
        self.world.objective.fit_statistics(torch.cat([state, state_next[last]]))
        result = fit(self.world.dynamics, transitions, config, generator=self._generator)
        metrics = {"model/loss": float(result.loss.mean()), "model/transitions": len(data)}
        if result.skipped:
            metrics["model/skipped_steps"] = result.skipped
        if result.holdout_loss is not None:
            metrics["model/holdout_loss"] = float(result.holdout_loss.mean())
        net, optimizer = self.world.reward_net, self._reward_optimizer
        if net is not None and optimizer is not None:
            reward = torch.as_tensor(data.rew, dtype=state.dtype, device=self.device)
            inputs = torch.cat([state, context, action_spaces.features(space, act), state_next], -1)
            net.fit_scales(inputs, reward)
            targets = net.to_units(reward)
            reward_loss, skipped = fit_regression(
                net.normalized, optimizer, inputs, targets, config, generator=self._generator
            )
            metrics["model/reward_loss"] = reward_loss
            if skipped:
                metrics["model/skipped_steps"] = result.skipped + skipped
        return metrics

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "world": self.world.state_dict(),
            "n_total_env_steps": self.n_total_env_steps,
            "last_fit": self.last_fit,
            "n_failed_plans": self.n_failed_plans,
            "generator": self._generator.get_state(),
            "device": self.device.type,
        }
        for name, optimizer in self._optimizers().items():
            state[name] = optimizer.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.world.load_state_dict(state["world"])
        self.n_total_env_steps, self.last_fit = state["n_total_env_steps"], state["last_fit"]
        self.n_failed_plans = state["n_failed_plans"]
        if state["device"] == self.device.type:  # another device draws other numbers anyway
            self._generator.set_state(state["generator"].cpu())
        for name, optimizer in self._optimizers().items():
            restore_optimizer(name, optimizer, state[name])

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        if self.learning is None:
            return {}
        dynamics = self.world.dynamics
        optimizers = {
            "model_optimizer": dynamics.optimizer if isinstance(dynamics, ProbabilisticEnsemble) else None,
            "reward_optimizer": self._reward_optimizer,
        }
        return {name: optimizer for name, optimizer in optimizers.items() if optimizer is not None}


def _put(memory: Batch, where: Tensor, values: Batch) -> Batch:
    """A copy of a memory in which some environments (n,) have other values, one row for each of them."""
    result = Batch()
    for key in memory.get_keys():
        result[key] = memory[key].clone()
        result[key][where] = values[key]
    return result
