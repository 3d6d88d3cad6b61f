"""A level that plans in a latent world model, and learns it (TD-MPC2, Hansen et al. 2024, arXiv 2310.16828)."""

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.data import Batch
from torch import Tensor

from layeredrl.faults import NonFiniteError
from layeredrl.levels.exploration import ExplorationConfig
from layeredrl.levels.planner_level import PlannerLevel, require_few
from layeredrl.metrics import FiniteMeans
from layeredrl.planners import Planner
from layeredrl.randomness import derive_seed
from layeredrl.storage import Replay
from layeredrl.transfers import to_device
from layeredrl.world_model.latent import LatentWorldModel
from layeredrl.world_model.latent_learner import LatentLearner, LatentLearningConfig


class LatentLevel(PlannerLevel):
    """Model-predictive control in a latent world model, whose policy suggests plans.

    Args:
        world: The world model.
        planner: Plans with it.
        config: When and how it learns.
        n_proposals: Number of the policy's sequences among the planner's candidates.
        spread: As of `ExplorationConfig`.
        seed: Seed of the replay and of learning.
    """

    world: LatentWorldModel
    replay: Replay

    def __init__(
        self,
        world: LatentWorldModel,
        planner: Planner,
        config: LatentLearningConfig,
        *,
        n_proposals: int = 24,
        spread: float = 1.0,
        seed: int = 0,
    ) -> None:
        require_few("n_proposals", n_proposals, planner)
        super().__init__(
            world,
            planner,
            world.task.action_space,
            exploration=ExplorationConfig(
                n_random_steps=config.n_random_steps, persistence=config.persistence, spread=spread
            ),
            proposals=self.propose if n_proposals else None,
        )
        self.config, self.n_proposals, self.max_failed_plans = config, n_proposals, config.max_failed_plans
        self.report_every = max(planner.horizon, 10)  # plans are short, and a forecast takes a tenth of a decision
        self.latent = LatentLearner(world, config, seed=seed)
        self.replay = Replay(config.replay_size, world.task.n_envs, seed=derive_seed(seed, "replay"))
        self.n_updates = self.last_report = 0
        self._first: int | None = None  # transitions at the first update
        self._warned = False  # that terminations are not learned
        self._means = FiniteMeans()  # a skipped update has losses that are not
        self._spent = {"updates": 0.0}

    def propose(self, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Suggest the policy's sequences; see `Proposals`."""
        return self.world.propose(obs, self.n_proposals, self.planner.horizon, generator)

    @property
    def host_only(self) -> str | None:
        return f"{type(self).__name__} reads its replay in the memory of the host"

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.n_total_env_steps = n_total_env_steps
        if n_total_env_steps < self.config.n_random_steps or not self.replay:
            return {}
        start, n_transitions = time.process_time(), self.replay.n_added
        if self._first is None:
            self._first, self.last_report = n_transitions, n_total_env_steps
        at_first = self._first if self.config.first_updates is None else self.config.first_updates
        due = at_first + int(self.config.updates_per_transition * (n_transitions - self._first)) - self.n_updates
        # The first updates are spread over some steps, so that a signal to stop is served between them.
        most = max(MOST_AT_ONCE, 2 * int(1 + self.config.updates_per_transition * self.world.task.n_envs))
        for _ in range(min(due, most)):
            self._means.add(self.latent.update(self.sample()))
            self.n_updates += 1
        self._spent["updates"] += time.process_time() - start
        if n_total_env_steps - self.last_report < self.config.report_every or not self._means:
            return {}
        return self._report_learning()

    def observe(self, transitions: Batch, env_ids: NDArray[np.int64]) -> None:
        super().observe(transitions, env_ids)
        if self.world.dynamics.ends is None and not self._warned and transitions.terminated.any():
            self._warned = True
            warnings.warn(
                "episodes terminate, but the latent model has no terminations, so that plans count rewards beyond "
                "the end; set latent.terminations",
                RuntimeWarning,
                stacklevel=2,
            )

    def sample(self) -> Batch:
        """Draw the subsequences of an update; keys as of `LatentLearner.update`."""
        rows, valid = self.replay.sequences(self.config.batch_size, self.config.horizon)
        parts = {key: rows[key] for key in ("obs", "obs_next", "act", "rew", "terminated")} | {"valid": valid}
        batch = Batch(dict(zip(parts, to_device([*parts.values()], self.device), strict=True)))
        batch.rew = batch.rew.float()
        return batch

    def _report_learning(self) -> dict[str, float]:
        self.last_report = self.n_total_env_steps
        means, self.n_failed_plans = self._means.take(), 0
        if means["skipped"] > self.config.max_skipped_share:
            raise NonFiniteError(
                f"{means['skipped']:.0%} of the updates since the last report had gradients that are not finite, "
                f"expected at most {self.config.max_skipped_share:.0%}"
            )
        return {f"model/{name}": mean for name, mean in means.items()} | {"model/updates": self.n_updates}

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        return dict(self._spent)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "latent": self.latent.state_dict(),
            "means": self._means.state_dict(),
            "cpu_seconds": dict(self._spent),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.latent.load_state_dict(state["latent"])
        self._means.load_state_dict(state["means"])
        self._spent = dict(state["cpu_seconds"])
        for name in _NUMBERS:
            setattr(self, name, state[name])


MOST_AT_ONCE = 100
"""Updates between two environment steps, where that is enough to keep up."""

_NUMBERS = ("n_updates", "last_report", "_first")
