"""A level that plans with a learned world model."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.checks import require_count
from layeredrl.faults import Fault
from layeredrl.levels.exploration import ExplorationConfig, RandomActions
from layeredrl.levels.level import Decision, Level
from layeredrl.memory import replaced, where
from layeredrl.planners import Plan, Planner
from layeredrl.randomness import derive_seed, seed_from
from layeredrl.storage import Replay, TensorReplay
from layeredrl.world_model import WorldModel
from layeredrl.world_model.config import ModelLearningConfig
from layeredrl.world_model.learner import WorldModelLearner

Proposals = Callable[[Tensor, torch.Generator], Tensor]
"""Suggests K sequences of actions for each of n observations (n, O), with a source of randomness: (n, K, H, A)."""


class PlanningError(Fault):
    """No candidate of an environment had a finite score in any iteration, and no random action may replace the plan."""


class PlannerLevel(Level):
    """Model-predictive control: plans a sequence at every decision and emits its first action.

    Args:
        world: The world model.
        planner: Optimises sequences of actions in `action_space`.
        action_space: Action space of the level: a bounded Box, Discrete or MultiDiscrete.
        duration: Environment steps for which an action lasts.
        exploration: How plans and random actions mix; None for plans alone.
        common_noise: If True, all candidates of a decision, in all iterations, are rolled out with the same noise:
            their scores then differ by their actions alone, but plans are optimised for the same few particles (common
            random numbers; Ng and Jordan 2000, PEGASUS). The planner's generator determines the noise.
        learner: Learns the world model from this level's transitions, by fits in epochs; None if the model is fixed or
            learned elsewhere.
        replay: Replay of the transitions that the learner learns from; None for a new one.
        proposals: Suggests sequences that compete with the planner's own candidates, such as those of a policy.
        name: Name of the level.
        seed: Seed of a new replay.

    Attributes:
        report_every: Number of decisions from one forecast to the next of an environment, at least the horizon.
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
        learner: WorldModelLearner | None = None,
        replay: Replay | None = None,
        proposals: Proposals | None = None,
        name: str = "planner",
        seed: int = 0,
    ) -> None:
        require_count("duration", duration)
        for owner, space in (("planner", planner.action_space), ("world model", world.task.action_space)):
            if not action_spaces.same(space, action_space):
                raise ValueError(f"the {owner}'s action space is {space}, expected {action_space}")
        self.world, self.planner, self.action_space, self.name = world.eval(), planner, action_space, name
        self.duration, self.common_noise, self.proposals = duration, common_noise, proposals
        self.exploration = ExplorationConfig() if exploration is None else exploration
        self._bounds: tuple[Tensor, Tensor] | None = None
        if self.exploration.noise or self.exploration.spread:
            given = f"noise is {self.exploration.noise} and spread {self.exploration.spread}"
            if not isinstance(action_space, spaces.Box):
                raise TypeError(f"{given}, expected 0 for the action space {action_space}")
            if self.exploration.spread and not planner.ends_with_std:
                raise ValueError(f"{given}, expected a spread of 0: {type(planner).__name__} ends without a std")
            low, high = (
                torch.as_tensor(x, device=world.dynamics.device) for x in (action_space.low, action_space.high)
            )
            self._bounds = low, high
        self._random_actions = RandomActions(action_space, self.exploration.persistence, world.dynamics.device)
        effort = self.exploration.effort
        self._exploring_planner = planner if effort == 1 else planner.lighter(effort)
        self.discount = world.objective.discount ** (world.repeat / duration)
        self.device = world.dynamics.device
        self.n_total_env_steps = self.n_failed_plans = 0
        self.learner = learner
        learning = None if learner is None else self._require_learner(learner)
        unlearned = 0 if learning is None else learning.n_random_steps
        self._n_random_steps = max(unlearned, self.exploration.n_random_steps)
        self.max_failed_plans = -1 if learning is None else learning.max_failed_plans  # without a fit none may fail
        if learning is not None and replay is None:
            replay = Replay(learning.replay_size, world.task.n_envs, seed=derive_seed(seed, "replay"))
        self.replay = replay
        self.report_every = planner.horizon

    def _require_learner(self, learner: WorldModelLearner) -> ModelLearningConfig:
        """Settings of a learner that can learn from this level's transitions; raises for others."""
        if learner.world is not self.world:
            raise ValueError("the learner's world model is another one, expected that of the level")
        if not isinstance(learner.config, ModelLearningConfig):
            raise TypeError(f"the learner's config is {type(learner.config).__name__}, expected a ModelLearningConfig")
        if self.world.repeat != 1:
            raise ValueError(f"the world's repeat is {self.world.repeat}, expected 1 where the level learns it")
        return learner.config

    def initial_memory(self, n_envs: int) -> Batch:
        memory = {
            "warm_start": self.planner.initial_warm_start(n_envs, self.device),
            "until_report": torch.zeros(n_envs, dtype=torch.int64, device=self.device),
            "random": torch.zeros(n_envs, dtype=torch.bool, device=self.device),
        }
        return Batch(memory | self._random_actions.initial_memory(n_envs))

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
            return self._random(obs, memory, generator)
        if not explore or not self.exploration.to_random:
            return self._decide(obs, memory, explore=explore, generator=generator)

        change = torch.rand(len(obs), generator=generator, device=self.device)
        at_random = torch.where(memory.random, change >= self.exploration.to_plan, change < self.exploration.to_random)
        # A plan that was not followed is no warm start of the next one.
        begun = self.initial_memory(len(obs))
        if self.exploration.persistence:
            begun.held = memory.held
        memory = where(at_random, begun, memory)
        memory.random = at_random
        rows: Any = (~at_random).nonzero()[:, 0]
        if not len(rows):
            return self._random(obs, memory, generator)
        planned = self._decide(obs[rows], memory[rows], explore=explore, generator=generator)
        return self._mixed(planned, rows, memory, generator)

    def _random(self, obs: Tensor, memory: Batch, generator: torch.Generator) -> Decision:
        action, memory = self._random_actions.draw(memory, generator)
        return Decision(action, self._durations(len(obs)), memory)

    def _durations(self, n: int) -> NDArray[np.int64]:
        return np.full(n, self.duration, np.int64)

    def _mixed(self, planned: Decision, rows: Tensor, memory: Batch, generator: torch.Generator) -> Decision:
        """Planned decisions in the rows (m,) of some environments, and random actions in the others.

        There is no forecast: random actions may interrupt the plan before its predicted return is achieved.
        """
        n = len(memory.random)
        action, memory = self._random_actions.draw(memory, generator)
        action[rows] = planned.action
        nothing = action.new_full((n,), torch.nan, dtype=torch.float32)
        return Decision(
            action,
            self._durations(n),
            replaced(memory, rows, planned.memory),
            {name: nothing.index_copy(0, rows, value.float()) for name, value in planned.metrics.items()},
        )

    def _decide(self, obs: Tensor, memory: Batch, *, explore: bool, generator: torch.Generator) -> Decision:
        """Plan, and emit the first action."""
        plan, candidates = self._search(obs, memory, generator, exploring=explore)
        actions, warm_start = plan.actions, plan.warm_start
        due = memory.until_report == 0
        all_found, any_due = torch.stack([plan.found.all(), due.any()]).tolist()  # a GPU waits once
        if not all_found:
            self._require_random(plan.found, obs, candidates, generator, count=explore)
            actions, warm_start = self._filled_in(plan, generator)
        until_report = torch.where(due, self.report_every, memory.until_report) - 1
        held = self._random_actions.initial_memory(len(obs))  # none: a plan ends the random action before
        memory = Batch({"warm_start": warm_start, "until_report": until_report, "random": memory.random} | held)
        duration, action = self._durations(len(obs)), actions[:, 0]
        if explore and self._bounds is not None:
            action = self._noisy(action, plan.std, generator).clamp(*self._bounds)
        if not any_due:
            return Decision(action, duration, memory)
        forecast, metrics = self._report(plan, actions, obs, generator)
        return Decision(
            action,
            duration,
            memory,
            {name: torch.where(due, value, torch.nan) for name, value in metrics.items()},
            forecast=torch.where(due, forecast, torch.nan),
            forecast_steps=self.planner.horizon * self.duration,
        )

    def _noisy(self, action: Tensor, std: Tensor | None, generator: torch.Generator) -> Tensor:
        """Add the noise of exploration to actions (n, A), given the plan's standard deviations (n, A)."""
        config = self.exploration
        total = torch.full_like(action, config.noise)
        if std is not None:
            total = total + config.spread * std
        return action + total * torch.randn(action.shape, generator=generator, device=action.device)

    @torch.no_grad()
    def plan(self, obs: Tensor, memory: Batch, generator: torch.Generator, *, exploring: bool = False) -> Plan:
        """Plan for n environments with observations (n, O).

        Raises:
            PlanningError: In an environment no candidate has a finite score.
        """
        plan, candidates = self._search(obs, memory, generator, exploring=exploring)
        if not plan.found.all():
            raise PlanningError(self._reason(plan.found, obs, candidates, generator))
        return plan

    def _search(
        self, obs: Tensor, memory: Batch, generator: torch.Generator, *, exploring: bool
    ) -> tuple[Plan, Tensor]:
        """The plan, and the candidates (E, N, H, A) of the last iteration."""
        last = torch.empty(0)
        state, context = self.world.encode(obs)
        seed = seed_from(generator) if self.common_noise else None

        def score(candidates: Tensor) -> Tensor:
            nonlocal last
            last = candidates
            # The same numbers in every iteration: kept elites compete with the scores that they had.
            noise = generator if seed is None else torch.Generator(self.device).manual_seed(seed)
            with torch.inference_mode():  # a tenth faster than no_grad; its results must not be inference tensors
                scores = self.world.score_from(
                    state, context, candidates, generator=noise, common_noise=self.common_noise, exploring=exploring
                )
            return scores.clone()

        planner = self._exploring_planner if exploring else self.planner
        proposals = None if self.proposals is None else self.proposals(obs, generator)
        return planner.plan(score, len(obs), memory.warm_start, generator, proposals), last

    def _require_random(
        self, found: Tensor, obs: Tensor, candidates: Tensor, generator: torch.Generator, *, count: bool
    ) -> None:
        """Warn that random actions replace failed plans; raise if that happened too often since the last fit."""
        reason = self._reason(found, obs, candidates, generator)
        self.n_failed_plans += count
        if self.n_failed_plans > self.max_failed_plans:
            raise PlanningError(reason)
        warnings.warn(f"{reason}; random actions replace these plans", RuntimeWarning, stacklevel=4)

    def _filled_in(self, plan: Plan, generator: torch.Generator) -> tuple[Tensor, Batch]:
        """Sequences (n, H, A) and warm start of a plan: random and initial ones where nothing was found."""
        n, found = len(plan.found), plan.found
        drawn = action_spaces.uniform(self.action_space, (n, self.planner.horizon), generator)
        actions = torch.where(found[:, None, None], plan.actions, drawn)
        return actions, where(found, plan.warm_start, self.planner.initial_warm_start(n, self.device))

    def _report(
        self, plan: Plan, actions: Tensor, obs: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Predicted returns of the chosen sequences (n, H, A), and metrics of the plan, (n,) each.

        They are rolled out once more, because the score of the best of many noisy candidates is biased upwards.
        """
        result = self.world.rollout(obs, actions, generator=generator, statistics=False)
        returns = self.world.objective.rewards(result)  # (n, M, P)
        gain = plan.best_scores - plan.best_scores[0]
        converged = (gain >= 0.99 * gain[-1]).int().argmax(0) + 1.0
        finite = plan.score > -torch.inf
        return returns.mean((1, 2)), {
            "plan/return_std": returns.flatten(1).std(1, correction=0),
            "plan/return_std_between_members": returns.mean(2).std(1, correction=0),
            "plan/score": torch.where(finite, plan.score, torch.nan),
            "plan/iterations_to_converge": torch.where(finite, converged, torch.nan),
        }

    def _reason(self, found: Tensor, obs: Tensor, candidates: Tensor, generator: torch.Generator) -> str:
        """Why no candidate has a finite score, found from candidates (E, N, H, A)."""
        rows = (~found).nonzero()[:, 0]
        message = f"no candidate had a finite score in the environments {', '.join(map(str, rows.tolist()))}"
        obs, tried = obs[rows].repeat_interleave(candidates.shape[1], 0), candidates[rows].flatten(0, 1)
        if not obs.isfinite().all():
            return f"{message}: the observations are not finite"
        diverged = self.world.rollout(obs, tried, generator=generator, statistics=False).diverged.flatten(0, 2).any(0)
        if diverged.any():
            step = int(diverged.int().argmax())
            return f"{message}: the model's states leave the finite range at step {step} of {self.planner.horizon}"
        return f"{message}: the model's states are finite, its rewards, terminations or values are not"

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        if self.replay is not None:
            self.replay.add(transitions, env_ids)

    @property
    def host_only(self) -> str | None:
        return None if type(self).observe is PlannerLevel.observe else super().host_only

    def keep_on_device(self) -> None:
        if self.replay is not None:
            self.replay = cast(Replay, TensorReplay.like(self.replay, self.device))

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        if self.learner is None or self.replay is None:
            return {}
        self.learner.set_n_total_env_steps(n_total_env_steps)
        if not self.learner.fit_is_due or not self.replay:
            return {}
        metrics = self.learner.fit(self.learner.transitions(self.replay, self.duration))
        if metrics:
            self.n_failed_plans = 0
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_total_env_steps": self.n_total_env_steps,
            "n_failed_plans": self.n_failed_plans,
            **({} if self.learner is None else {"learner": self.learner.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n_total_env_steps, self.n_failed_plans = state["n_total_env_steps"], state["n_failed_plans"]
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])


def require_few(name: str, n_proposals: int, planner: Planner) -> None:
    """Raise unless there are at most as many proposals as own candidates of a planner."""
    require_count(name, n_proposals, minimum=0)
    own = getattr(getattr(planner, "config", None), "n_samples", None)
    if own is not None and n_proposals > own:
        raise ValueError(f"{name} is {n_proposals}, expected at most as many as the planner's own candidates, {own}")
