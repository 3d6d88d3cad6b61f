"""What a world model predicts of transitions that it has not been fitted to yet."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tianshou.data import Batch

from layeredrl import action_spaces
from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.storage import Replay
from layeredrl.world_model.world_model import WorldModel

N_FITS = 20
"""Fits over which terminations are counted: they are rare."""


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

    def seen(self) -> None:
        """Count all transitions so far as seen."""
        self._seen = [ring.n_added for ring in self.replay.buffer.rings]

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        """Root mean square errors of the next state and the reward, and precision and recall of terminations.

        Errors of the state are in units of its change, those of the reward in units of its standard deviation. Only
        what is learned is measured, and precision and recall over the last fits.
        """
        data = self._transitions()
        if not len(data.obs):
            return {}
        world = self.world
        (state, context), (state_next, _) = world.encode(data.obs), world.encode(data.obs_next)
        action = action_spaces.for_model(world.task.action_space, data.act, state.dtype)
        mean, weights, _, term_prob = self.dynamics.predict(state, context, action)
        predicted = (mean * weights.unsqueeze(-1)).sum(-2).mean(1)
        result = {"unseen/state_error": float(((predicted - state_next) / self.dynamics.unit).square().mean().sqrt())}
        if world.reward_net is not None:
            error = world.reward_net.to_units(world.reward(state, context, data.act, state_next))
            error = error - world.reward_net.to_units(data.rew)
            result["unseen/reward_error"] = float(error.square().mean().sqrt())
        if world.task.termination is None:
            result |= self._terminations(term_prob > 0.5, data.terminated)
        return result

    def _terminations(self, predicted: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
        self._counts.append((int((predicted & true).sum()), int(predicted.sum()), int(true.sum())))
        right, n_predicted, n_true = (sum(counts) for counts in zip(*self._counts, strict=True))
        result = {"unseen/termination_precision": right / n_predicted} if n_predicted else {}
        return result | ({"unseen/termination_recall": right / n_true} if n_true else {})

    def _transitions(self) -> Batch:
        """Transitions since the last call of `seen`, that are still in the replay."""
        rings = self.replay.buffer.rings
        start = [max(seen, ring.n_added - len(ring)) for seen, ring in zip(self._seen, rings, strict=True)]
        slots = self.replay.buffer.slots(start, [ring.n_added for ring in rings])
        columns = self.replay.buffer.columns()
        device = self.dynamics.device
        rows = {name: torch.from_numpy(np.asarray(columns[name][slots])) for name in _COLUMNS}
        return Batch({name: (x.float() if x.is_floating_point() else x).to(device) for name, x in rows.items()})

    def state_dict(self) -> dict[str, Any]:
        """Which transitions have been seen, and the counts of terminations."""
        return {"seen": list(self._seen), "counts": [list(counts) for counts in self._counts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._seen = list(state["seen"])
        self._counts = deque(((a, b, c) for a, b, c in state["counts"]), maxlen=N_FITS)


_COLUMNS = ("obs", "obs_next", "act", "rew", "terminated")
