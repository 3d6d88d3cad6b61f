"""The learner of a world model: the one place where its dynamics, reward and statistics are fitted to data."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl import action_spaces
from layeredrl.metrics import RunningMeans
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.fitting import fit
from layeredrl.models.normalization import Moments
from layeredrl.models.optimizer import restore_optimizer
from layeredrl.randomness import derive_seed, generator_state, restore_generator, seed_from
from layeredrl.storage import Replay, TensorReplay
from layeredrl.world_model.config import ModelLearningConfig, OnlineLearningConfig, share_of_span
from layeredrl.world_model.reward import RewardLearner
from layeredrl.world_model.termination import make_termination_learner
from layeredrl.world_model.transitions import (
    BatchTransitions,
    ReplayTransitions,
    TensorTransitions,
    Transitions,
    chunks,
)
from layeredrl.world_model.value import ValueLearner
from layeredrl.world_model.world_model import WorldModel

N_STATISTICS = 4096
"""Newest transitions from which online learning takes the statistics of inputs and targets."""

MEASURE_EVERY = 10
"""Online updates from one whose losses are recorded to the next: waiting for all of them takes too long."""


class WorldModelLearner:
    """Learns a world model, in one of two modes: `fit` in epochs, or `updates` in batches ("online").

    The owner of a learner learns the model; no other object saves it or sets its number of environment steps.
    Transitions are at the time scale of the dynamics: a Batch of tensors `obs` and `obs_next` (N, O) and `act` (N, A);
    `rew` (N,) where the reward or a value is learned; optionally `terminated` (N,), `weight` (N,) and, in the mode
    "fit", `last` (N,), True for the last transition of an episode.

    Args:
        world: The world model; its dynamics is an ensemble with an optimiser.
        config: `ModelLearningConfig` for the mode "fit", `OnlineLearningConfig` for the mode "online".
        segment_steps: Environment steps of an executed segment, of which `updates_per_segment` counts.
        value: Learner of the objective's value, in the mode "fit"; None if there is no value, or a fixed one.
        seed: Seed of fits.

    Attributes:
        n_total_env_steps: Environment steps so far, all instances summed.
        n_updates: Number of online updates so far.
        observed: Moments of the observations of the last fit of this process; None before.
    """

    def __init__(
        self,
        world: WorldModel,
        config: ModelLearningConfig | OnlineLearningConfig,
        *,
        segment_steps: int = 1,
        value: ValueLearner | None = None,
        seed: int = 0,
    ) -> None:
        dynamics = world.dynamics
        if not isinstance(dynamics, ProbabilisticEnsemble):
            raise TypeError(f"the dynamics is {type(dynamics).__name__}, expected a ProbabilisticEnsemble to learn")
        if dynamics.optimizer is None:
            raise ValueError("the dynamics has no optimizer to learn with: construct it with create_optimizer=True")
        if world.encoder.learned and isinstance(config, ModelLearningConfig):
            raise TypeError("the encoder is a LearnedEncoder, which fits do not train, expected an Encoder")
        self.world, self.dynamics, self.optimizer = world.eval(), dynamics, dynamics.optimizer
        self.config, self.segment_steps = config, segment_steps
        self._transitions: ReplayTransitions | TensorTransitions | None = None
        self.observed: Moments | None = None
        self.value = value
        self.reward: RewardLearner | None = None
        if world.reward_net is not None:
            self.reward = RewardLearner(world, world.reward_net, config.reward_learning_rate)
        by_state = isinstance(config, ModelLearningConfig) and config.termination == "next_state"
        self.termination = make_termination_learner(world, by_state=by_state)
        self.n_total_env_steps = self.last_fit = self.last_refresh = self.last_report = self.n_updates = 0
        self._first: int | None = None  # environment steps at the first online update
        self._means = RunningMeans()
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._generator = torch.Generator(self.device).manual_seed(derive_seed(seed, "fit"))

    @property
    def device(self) -> torch.device:
        """Device of the world model."""
        return self.dynamics.device

    def set_n_total_env_steps(self, n_total_env_steps: int) -> None:
        """Set the number of environment steps so far, also that of the dynamics."""
        self.n_total_env_steps = n_total_env_steps
        self.dynamics.set_n_total_env_steps(n_total_env_steps)

    # ------------------------------------------------------------------ fits in epochs

    @property
    def fit_is_due(self) -> bool:
        """True if it is time for the next fit."""
        config = self._fit_config()
        since = self.n_total_env_steps - self.last_fit
        return self.n_total_env_steps >= config.n_random_steps and (not self.last_fit or since >= config.fit_every)

    def transitions(self, replay: Replay | TensorReplay, duration: int = 1) -> Transitions:
        """All transitions of a replay that lasted for `duration` environment steps or ended their episode, for `fit`.

        Only what is new since the last call is read, unless the replay has loaded a state, or is on a device and
        `duration` is not 1.
        """
        known = self._transitions
        device = replay.device if isinstance(replay, TensorReplay) else self.device
        if known is None or known.replay is not replay or (known.duration, known.device) != (duration, device):
            if isinstance(replay, TensorReplay):
                known = TensorTransitions(replay, duration)
            else:
                known = ReplayTransitions(replay, duration, device)
            self._transitions = known
        known.update()
        return known

    def fit(self, data: Batch | Transitions) -> dict[str, float]:
        """Fit dynamics, reward and statistics to all transitions; returns metrics.

        Args:
            data: Transitions.
        """
        config = self._fit_config()
        settings = config.fit if self.last_fit else replace(config.fit, epochs=config.first_epochs)
        given = data if isinstance(data, Batch) else None
        transitions = BatchTransitions(data) if isinstance(data, Batch) else data
        if not len(transitions):
            return {}
        if self.last_fit:  # a run goes on after a fit that failed, until the next one, but not without a first one
            self.last_fit = self.n_total_env_steps
        generator = self._generator_there()
        moments = transitions.moments(self._moments)
        self.observed = moments["observed"]
        objective = self.world.objective
        objective.set_scale(moments["visited"])
        if objective.support is not None:
            objective.support.fit(self._visited_states(transitions))
        # A Batch may hold anything, and is checked; a replay has checked its rows.
        rows = _EncodedRows(self, transitions, moments) if given is None else self._rows(given)
        result = fit(self.dynamics, rows, settings, generator=generator)
        metrics = {"model/loss": float(result.loss.mean()), "model/transitions": len(transitions)}
        skipped = result.skipped
        if result.holdout_loss is not None:
            metrics["model/holdout_loss"] = float(result.holdout_loss.mean())
            # The other networks have no holdout to stop them, and so take as many steps as the dynamics.
            settings = replace(settings, max_steps=max(1, result.steps + result.skipped))
        if self.reward is not None:
            metrics["model/reward_loss"], skipped_reward = self.reward.fit(transitions, moments, settings, generator)
            skipped += skipped_reward
        if self.termination is not None:
            loss, skipped_here = self.termination.fit(transitions, moments, settings, generator)
            metrics |= {} if math.isnan(loss) else {"model/termination_loss": loss}
            skipped += skipped_here
        if self.value is not None:
            metrics["model/value_loss"] = self.value.fit(transitions, moments, settings, generator)
        self.last_fit = self.n_total_env_steps
        return metrics | ({"model/skipped_steps": skipped} if skipped else {})

    @torch.no_grad()
    def _moments(self, data: Batch) -> dict[str, Moments]:
        """Moments of a part of the transitions, as a fit needs them."""
        rows = self._rows(data)
        result = self.dynamics.moments({key: rows[key] for key in ("state", "context", "act", "state_next")})
        result["visited"], result["observed"] = Moments.of(_visited(rows, data)), Moments.of(data.obs)
        if self.reward is not None:
            result |= self.reward.moments(data)
        if self.termination is not None:
            result |= self.termination.moments(data)
        return result if self.value is None else result | self.value.moments(data.obs, data.rew)

    def _visited_states(self, transitions: Transitions) -> Tensor:
        """All states of the transitions, each once, (n, S)."""
        parts = (transitions.take(index) for index in chunks(len(transitions), self.device))
        return torch.cat([_visited(self._rows(part), part) for part in parts])

    def _generator_there(self) -> torch.Generator:
        """The generator of fits, on the device of the world model, which may have moved."""
        if self._generator.device.type != self.device.type:
            seed = seed_from(self._generator)
            self._generator = torch.Generator(self.device).manual_seed(seed)
        return self._generator

    def _fit_config(self) -> ModelLearningConfig:
        assert isinstance(self.config, ModelLearningConfig), "fits need a ModelLearningConfig"
        return self.config

    # ------------------------------------------------------------------ online updates

    def updates(self, draw: Callable[[int], Batch], replay: Replay) -> Iterator[Batch]:
        """Take the online updates that are due, and yield the rows of each after its step.

        Rows have the keys `state`, `state_next` (n, S), `context` (n, C) and `act` (n, A). `measuring` is True while a
        row is yielded whose losses are recorded: `record` then takes more metrics of the same update.

        Args:
            draw: Draws at most n transitions from the replay, where n is its argument.
            replay: Replay of the observations.
        """
        config = self._online_config()
        n = self.n_total_env_steps
        if n < config.n_first:
            return
        if self._first is None:
            if not self._fit_statistics(draw, replay):
                return
            self._first = self.last_report = n
        n_segments = (n - self._first) / self.segment_steps
        due = int(config.updates_per_segment * n_segments)
        if self.n_updates < due:
            self.dynamics.train()
            try:
                while self.n_updates < due:
                    rows = self._update(draw(config.batch_size))
                    if rows is not None:
                        yield rows
                    self.n_updates += 1
            finally:
                self.dynamics.eval()
        if n - self.last_refresh >= config.refresh_every:
            self.last_refresh = n
            self._refresh(draw, replay)

    @property
    def measuring(self) -> bool:
        """True if the losses of the current update are recorded."""
        return self.n_updates % MEASURE_EVERY == 0

    def record(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Add metrics to the next report, which shows their means."""
        self._means.add(metrics)

    def report(self) -> dict[str, float]:
        """Return mean metrics since the last report if the next one is due; empty otherwise."""
        if self.n_total_env_steps - self.last_report < self._online_config().report_every or not self._means:
            return {}
        self.last_report = self.n_total_env_steps
        return self._means.take() | {"model/updates": self.n_updates}

    def _online_config(self) -> OnlineLearningConfig:
        assert isinstance(self.config, OnlineLearningConfig), "online updates need an OnlineLearningConfig"
        return self.config

    def _update(self, data: Batch) -> Batch | None:
        """Take one step of the dynamics and one of the reward; None if there are no transitions to learn from."""
        rows = self._rows(data)
        if not len(rows.state):
            return None
        config = self._online_config()
        factor = 1 + (config.final_rate - 1) * share_of_span(config.decay, self.n_total_env_steps)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        losses = {"model/loss": self.dynamics.learn([rows])}
        if self.reward is not None:
            losses["model/reward_loss"] = self.reward.step(data, factor)
        if self.measuring:
            self.record(losses)
        return rows

    @torch.no_grad()
    def _fit_statistics(self, draw: Callable[[int], Batch], replay: Replay) -> bool:
        """Take the statistics of inputs and targets.

        Returns:
            True if there were enough transitions.
        """
        data = draw(N_STATISTICS)
        if int(data.get("n_whole", len(data.obs))) < 2:
            return False
        encoder = self.world.encoder
        if encoder.learned:
            encoder.fit(*(torch.as_tensor(replay.column(x), device=self.device) for x in ("obs", "obs_next")))
        rows = self._rows(data)
        self.dynamics.fit_statistics({key: rows[key] for key in ("state", "context", "act", "state_next")})
        if self.reward is not None:
            self.reward.fit_scales(data)
        return True

    @torch.no_grad()
    def _refresh(self, draw: Callable[[int], Batch], replay: Replay) -> None:
        """Update the statistics, and which states the data supports: both move as the policy improves."""
        self._fit_statistics(draw, replay)
        objective = self.world.objective
        if objective.support is None and not objective.uncertainty_weight:
            return  # nothing else depends on the data, which is read whole below
        states, _ = self.world.encode(torch.as_tensor(replay.column("obs_next"), device=self.device))
        self.world.objective.fit_statistics(states)

    # ------------------------------------------------------------------ both

    @torch.no_grad()
    def _rows(self, data: Batch) -> Batch:
        """Encoded transitions, as `ProbabilisticEnsemble.loss` takes them."""
        state, context = self.world.encode(data.obs)
        state_next, _ = self.world.encode(data.obs_next)
        act = action_spaces.for_model(self.world.task.action_space, data.act)
        terminated = data.terminated.to(state.dtype) if "terminated" in data else state.new_zeros(state.shape[:-1])
        rows = Batch(state=state, context=context, act=act, state_next=state_next, terminated=terminated)
        if "weight" in data:
            rows.weight = data.weight
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The world model, the optimisers, the schedule and the metrics since the last report."""
        return {
            "world": self.world.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **({} if self.reward is None else {"reward_optimizer": self.reward.state_dict()}),
            **({} if self.termination is None else {"termination_optimizer": self.termination.state_dict()}),
            **({} if self.value is None else {"value": self.value.state_dict()}),
            "means": self._means.state_dict(),
            **generator_state(self._generator_there()),
            **{name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.world.load_state_dict(state["world"])
        restore_optimizer("the model's optimizer", self.optimizer, state["optimizer"])
        if self.reward is not None:
            self.reward.load_state_dict(state["reward_optimizer"])
        if self.termination is not None:
            self.termination.load_state_dict(state["termination_optimizer"])
        if self.value is not None:
            self.value.load_state_dict(state["value"])
        self._means.load_state_dict(state["means"])
        restore_generator(self._generator_there(), state)
        for name in _NUMBERS:
            setattr(self, name, state[name])


def _visited(rows: Batch, data: Batch) -> Tensor:
    """States of some transitions; the last states of episodes are no transition's first state."""
    return torch.cat([rows.state, rows.state_next[data.last]]) if "last" in data else rows.state


class _EncodedRows:
    """Transitions as training rows of the dynamics, with the statistics of all of them."""

    def __init__(self, learner: WorldModelLearner, transitions: Transitions, moments: dict[str, Moments]) -> None:
        self.learner, self.transitions, self.moments = learner, transitions, moments

    def __len__(self) -> int:
        return len(self.transitions)

    def take(self, index: Tensor) -> dict[str, Tensor]:
        return dict(self.learner._rows(self.transitions.take(index)).items())

    def fit_statistics(self, ensemble: ProbabilisticEnsemble) -> None:
        if ensemble.network.needs_all_inputs:
            rows = self.take(torch.arange(len(self), device=ensemble.device))
            ensemble.network.fit_inputs(rows["state"], rows["context"], rows["act"])
        ensemble.set_moments(self.moments)


_NUMBERS = ("n_total_env_steps", "last_fit", "last_refresh", "last_report", "n_updates", "_first")
