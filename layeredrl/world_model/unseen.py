"""Errors of a world model on transitions that it has not been fitted to yet."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch

from layeredrl import action_spaces
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.normalization import Moments, merged, varies
from layeredrl.randomness import generator_state, restore_generator
from layeredrl.storage import Replay
from layeredrl.world_model.world_model import WorldModel

N_FITS = 20
"""Fits over which terminations are counted: they are rare."""
N_STARTS = 64
"""Largest number of states from which returns are predicted."""


class UnseenTransitions:
    """The transitions of a replay since the last fit, as a test of the model before it learns from them.

    Args:
        world: The world model.
        replay: The replay of an environment step each.
    """

    def __init__(self, world: WorldModel, replay: Replay) -> None:
        assert isinstance(world.dynamics, ProbabilisticEnsemble)
        self.world, self.dynamics, self.replay = world, world.dynamics, replay
        self._seen = [0] * len(replay.buffer.rings)
        self._counts: deque[tuple[int, int, int]] = deque(maxlen=N_FITS)  # terminations predicted rightly, at all, true
        self._moments: dict[str, Moments] = {}
        self._generator = torch.Generator(world.dynamics.device).manual_seed(0)

    @torch.no_grad()
    def seen(self) -> None:
        """Count all transitions so far as seen."""
        data = self._transitions()
        if len(data.obs):
            self._moments = self._moments_with(self.world.encode(data.obs)[0], self.world.encode(data.obs_next)[0])
        self._seen = [ring.n_added for ring in self.replay.buffer.rings]

    @torch.no_grad()
    def metrics(self, n_steps: int) -> dict[str, float]:
        """Measure how well the model predicts transitions that it has not seen.

        Root mean square errors of the next state, in standard deviations of what is predicted of it so far, the change
        or itself, over the dimensions that have varied; and of the reward, in its standard deviation. Precision and
        recall of terminations, over the last fits; and mean returns over `n_steps` steps, predicted for the actions
        that were taken, and achieved, from states whose episode has as many left. Rewards and terminations are measured
        only where they are learned.

        Args:
            n_steps: Steps of a return.
        """
        data = self._transitions()
        if not len(data.obs):
            return {}
        world = self.world
        (state, context), (state_next, _) = world.encode(data.obs), world.encode(data.obs_next)
        action = action_spaces.for_model(world.task.action_space, data.act, state.dtype)
        mean, weights, _, term_prob = self.dynamics.predict(state, context, action)
        predicted = (mean * weights.unsqueeze(-1)).sum(-2).mean(1)
        result = self._state_error(predicted, state, state_next)
        if world.reward_net is not None:
            error = world.reward_net.to_units(world.reward(state, context, data.act, state_next))
            error = error - world.reward_net.to_units(data.rew)
            result["unseen/reward_error"] = float(error.square().mean().sqrt())
        if world.termination_net is not None:
            term_prob = world.termination(state, context, data.act, predicted)
        if world.task.termination is None:
            result |= self._terminations(term_prob > 0.5, data.terminated)
        return result | self._returns(data, n_steps)

    def _state_error(self, predicted: torch.Tensor, state: torch.Tensor, state_next: torch.Tensor) -> dict[str, float]:
        moments = self._moments_with(state, state_next)
        std, size = moments["targets"].variance.sqrt(), moments["state"].mean_square.sqrt()
        varied = varies(std, size)
        if not varied.any():
            return {}
        error = (predicted - state_next)[:, varied] / std[varied]
        return {"unseen/state_error": float(error.square().mean().sqrt())}

    def _moments_with(self, state: torch.Tensor, state_next: torch.Tensor) -> dict[str, Moments]:
        """Moments of targets and states of all transitions so far and of these (n, S), in the state's units."""
        targets = self.dynamics.targets({"state": state, "state_next": state_next})
        new = {"targets": Moments.of(targets), "state": Moments.of(state)}
        return merged([self._moments, new]) if self._moments else new

    def _terminations(self, predicted: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
        self._counts.append((int((predicted & true).sum()), int(predicted.sum()), int(true.sum())))
        right, n_predicted, n_true = (sum(counts) for counts in zip(*self._counts, strict=True))
        result = {"unseen/termination_precision": right / n_predicted} if n_predicted else {}
        return result | ({"unseen/termination_recall": right / n_true} if n_true else {})

    def _returns(self, data: Batch, n_steps: int) -> dict[str, float]:
        goes_on = (data.obs_next[:-1] == data.obs[1:]).all(-1) & ~data.last[:-1]
        if len(data.obs) < n_steps:
            return {}
        whole = goes_on.unfold(0, n_steps - 1, 1).all(-1) if n_steps > 1 else torch.ones_like(data.last)
        starts = whole.nonzero()[:, 0]
        if not len(starts):
            return {}
        starts = starts[torch.linspace(0, len(starts) - 1, min(N_STARTS, len(starts))).long()]
        steps = starts.unsqueeze(-1) + torch.arange(n_steps, device=starts.device)
        rollout = self.world.rollout(data.obs[starts], data.act[steps], statistics=False, generator=self._generator)
        predicted = (rollout.reward * rollout.alive).sum(-1).mean()
        return {
            "unseen/return_predicted": float(predicted),
            "unseen/return_achieved": float(data.rew[steps].sum(-1).mean()),
        }

    def _transitions(self) -> Batch:
        """Transitions since the last call of `seen`, that are still in the replay, in the order of time."""
        rings = self.replay.buffer.rings
        start = [max(seen, ring.n_added - len(ring)) for seen, ring in zip(self._seen, rings, strict=True)]
        slots = self.replay.buffer.slots(start, [ring.n_added for ring in rings])
        columns = self.replay.buffer.columns()
        device = self.dynamics.device
        rows = {name: torch.from_numpy(np.asarray(columns[name][slots])) for name in _COLUMNS}
        data = Batch({name: (x.float() if x.is_floating_point() else x).to(device) for name, x in rows.items()})
        data.last = data.terminated | data.truncated
        stops = np.cumsum([ring.n_added - first for ring, first in zip(rings, start, strict=True)])
        data.last[torch.from_numpy(stops[stops > 0] - 1).to(device)] = True  # then another environment's rows follow
        return data

    def state_dict(self) -> dict[str, Any]:
        """Which transitions have been seen, their moments, the counts of terminations, and the generator's state."""
        return {
            "seen": list(self._seen),
            "moments": {name: list(moments) for name, moments in self._moments.items()},
            "counts": [list(counts) for counts in self._counts],
            **generator_state(self._generator),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._seen, device = list(state["seen"]), self.dynamics.device
        self._moments = {
            name: Moments(n, mean.to(device), variance.to(device))
            for name, (n, mean, variance) in state["moments"].items()
        }
        self._counts = deque(((a, b, c) for a, b, c in state["counts"]), maxlen=N_FITS)
        restore_generator(self._generator, state)


_COLUMNS = ("obs", "obs_next", "act", "rew", "terminated", "truncated")
