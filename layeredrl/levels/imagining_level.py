"""A policy level that learns a world model, and most of its policy from what it imagines with it."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor

from layeredrl import off_policy
from layeredrl.checks import require_number, require_reward_scale
from layeredrl.levels.policy_level import PolicyLearningConfig, PolicyLevel
from layeredrl.models.nets import MAX_INPUT, InputStandardizer
from layeredrl.off_policy import OffPolicyAlgorithm
from layeredrl.randomness import fork_globals
from layeredrl.world_model import ModelLearningConfig, WorldModelLearner
from layeredrl.world_model.imagination import Imagination
from layeredrl.world_model.unseen import UnseenTransitions


class ImaginingLevel(PolicyLevel):
    """Model-based policy optimisation (Janner et al. 2019, arXiv 1906.08253).

    The model is fitted from time to time; branches of the policy are then imagined from replayed states, and each
    update's batch has few real and many imagined transitions. Policy and critics see standardised observations.

    Args:
        algorithm: An off-policy actor-critic of tianshou, such as its SAC.
        action_space: Action space of the level: a flat Box of [-1, 1].
        learner: Learns the world model, by fits.
        imagination: Imagines with this world model, at the level's discount.
        real_share: Share of real transitions in a batch; with 1, nothing is imagined.
        reward_scale: Factor of rewards in the policy's updates; None for one over the root mean square of those before
            the first fit, at most one.
        learning: When and how the policy learns; its updates begin after the first fit.
        seed: Seed of the replay.
    """

    def __init__(
        self,
        algorithm: OffPolicyAlgorithm,
        action_space: spaces.Space[Any],
        learner: WorldModelLearner,
        imagination: Imagination,
        *,
        real_share: float = 0.05,
        reward_scale: float | None = None,
        learning: PolicyLearningConfig | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(learner.config, ModelLearningConfig):
            raise TypeError(f"the learner's config is {type(learner.config).__name__}, expected a ModelLearningConfig")
        if imagination.world is not learner.world:
            raise ValueError("the imagination's world model is another one, expected that of the learner")
        require_number("real_share", real_share, 0, 1)
        require_reward_scale(reward_scale)
        task = learner.world.task
        self.standardizer = InputStandardizer(task.observation_dim, limit=MAX_INPUT).to(learner.device)
        super().__init__(
            algorithm,
            action_space,
            n_envs=task.n_envs,
            inputs=self._standardized,
            learning=learning,
            seed=seed,
        )
        if imagination.discount != self.discount:
            raise ValueError(f"the imagination's discount is {imagination.discount}, expected {self.discount}")
        self.learner, self.imagination = learner, imagination
        self.n_real, n_batch = round(real_share * self.learning.batch_size), self.learning.batch_size
        if 0 < real_share < 1 and self.n_real in (0, n_batch):
            raise ValueError(
                f"real_share is {real_share} of batch_size {n_batch}, of which {self.n_real} would be real: "
                "expected at least one of each kind, or a share of 0 or 1"
            )
        self.reward_scale = reward_scale
        self._unseen = UnseenTransitions(learner.world, self.replay)
        self._spent = dict.fromkeys(_PARTS, 0.0)

    def _standardized(self, obs: Tensor, command: Batch | None) -> Tensor:
        """Inputs of policy and critics, without commands; unlike a lambda, a copied level has its own."""
        del command
        inputs: Tensor = self.standardizer(obs)
        return inputs

    @property
    def host_only(self) -> str | None:
        return f"{type(self).__name__} reads its replay in the memory of the host"

    @property
    def acts_at_random(self) -> bool:
        return super().acts_at_random or not self.learner.last_fit

    def learn(self, n_total_env_steps: int) -> dict[str, float]:
        self.learner.set_n_total_env_steps(n_total_env_steps)
        metrics: dict[str, float] = {}
        if self.learner.fit_is_due and self.replay:
            metrics = self._learn_model(n_total_env_steps)
        if not self.learner.last_fit:
            self.n_total_env_steps = n_total_env_steps
            return metrics
        return metrics | self._timed("updates", lambda: super(ImaginingLevel, self).learn(n_total_env_steps))

    def _learn_model(self, n_total_env_steps: int) -> dict[str, float]:
        """Fit the model to the replay, and imagine."""
        data = self.learner.transitions(self.replay)
        n_steps = self.imagination.n_steps(n_total_env_steps)
        metrics = self._unseen.metrics(n_steps) if self.learner.last_fit else {}
        self._unseen.seen()
        metrics |= self._timed("fits", lambda: self.learner.fit(data))
        if self.learner.observed is None:
            return metrics
        self.standardizer.set(self.learner.observed)
        if self.reward_scale is None:
            rewards = self.replay.column("rew")
            self.reward_scale = 1 / max(1.0, float(np.sqrt(np.mean(np.square(rewards)))))
        if self.n_real == self.learning.batch_size:
            return metrics
        return metrics | self._timed(
            "imagination", lambda: self.imagination.imagine(data, self._exploring, n_total_env_steps)
        )

    def _exploring(self, obs: Tensor) -> Tensor:
        return self.exploring_action(self.inputs(obs, None))

    def sample(self, n_updates: int = 1) -> Batch:
        """Draw the transitions of n updates; in each batch the real ones come first."""
        batch = self._mixed(n_updates)
        batch.rew = batch.rew * self.reward_scale
        return batch

    def _mixed(self, n_updates: int) -> Batch:
        n_batch = self.learning.batch_size
        if not len(self.imagination) or self.n_real == n_batch:
            return super().sample(n_updates)
        imagined = self.imagination.sample(n_updates * (n_batch - self.n_real))
        if not self.n_real:
            return imagined
        real = self.draw(n_updates * self.n_real)
        return Batch({key: _joined(real[key], imagined[key], n_updates) for key in imagined.get_keys()})

    def _report(self) -> dict[str, float]:
        times = {f"time/{part}_cpu_seconds": spent for part, spent in self.cpu_seconds.items()}
        with fork_globals():  # how often metrics are reported must not change what is learned
            bias = self.critic_bias()
        return super()._report() | {"policy/critic_bias": bias, "policy/reward_scale": self._scale} | times

    @property
    def _scale(self) -> float:
        """Factor of rewards; one before it is known."""
        return 1.0 if self.reward_scale is None else self.reward_scale

    @torch.no_grad()
    def critic_bias(self) -> float:
        """Mean difference of the critics' values of the newest states from the discounted rewards that followed.

        Values are those of targets, so that they include SAC's entropy bonus, which the rewards do not. Where an
        episode was truncated or is not over, the sum bootstraps with the value of its last state.
        """
        rings, first = self.replay.buffer.rings, 0  # each environment's rows after those of the one before
        while not len(rings[first]):  # an environment may have failed so far
            first += 1
        ring = rings[first]
        newest = np.arange(ring.n_added - min(len(ring), N_MEASURED), ring.n_added) % ring.maxsize
        slots = newest + sum(x.maxsize for x in rings[:first])
        columns = self.replay.buffer.columns()
        obs, obs_next = (torch.as_tensor(columns[name][slots], device=self.device) for name in ("obs", "obs_next"))
        value, value_next = (self._value(x).cpu().numpy() / self._scale for x in (obs, obs_next))
        over = columns["terminated"][slots] | columns["truncated"][slots]
        over[-1] = True
        rest = np.where(columns["terminated"][slots], 0.0, value_next)
        total, totals = 0.0, []
        for i in range(len(slots) - 1, -1, -1):
            total = columns["rew"][slots[i]] + self.discount * (rest[i] if over[i] else total)
            totals.append(total)
        return float(value.mean() - np.mean(totals))

    def _value(self, obs: Tensor) -> Tensor:
        nothing = obs.new_zeros(len(obs))
        batch = Batch(obs_next=self.inputs(obs, None), rew=nothing, discount=nothing + 1)
        return off_policy.targets(self.algorithm, batch)

    @property
    def cpu_seconds(self) -> Mapping[str, float]:
        return dict(self._spent)

    def _timed(self, part: str, run: Callable[[], dict[str, float]]) -> dict[str, float]:
        start = time.process_time()
        result = run()
        self._spent[part] += time.process_time() - start
        return result

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "learner": self.learner.state_dict(),
            "imagination": self.imagination.state_dict(),
            "standardizer": self.standardizer.state_dict(),
            "unseen": self._unseen.state_dict(),
            "reward_scale": self.reward_scale,
            "cpu_seconds": dict(self._spent),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.learner.load_state_dict(state["learner"])
        self.imagination.load_state_dict(state["imagination"])
        self.standardizer.load_state_dict(state["standardizer"])
        self._unseen.load_state_dict(state["unseen"])
        self.reward_scale, self._spent = state["reward_scale"], dict(state["cpu_seconds"])


N_MEASURED = 1000
"""Newest transitions by which the critics' bias is measured."""

_PARTS = ("fits", "imagination", "updates")


def _joined(real: Tensor, imagined: Tensor, n_updates: int) -> Tensor:
    """Join the rows of n updates, batch by batch."""
    parts = (x.reshape(n_updates, -1, *x.shape[1:]) for x in (real, imagined))
    return torch.cat([*parts], 1).flatten(0, 1)
