"""Faults in the 31st step of a training, and the messages about them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from layeredrl.levels import RandomLevel
from layeredrl.models import ProbabilisticEnsemble
from layeredrl.off_policy.actor_critic import StackedActorCritic
from layeredrl.world_model import WorldModel
from tests.experiments.tasks import Drift

WHEN = 31
"""Step of the training, from 1."""

Outcome = tuple[Any, Any, Any, Any, Any]


class Faulty(Drift):
    """An ordinary drift, until `spoil` is set, which changes the outcome of a step."""

    spoil: Callable[[Outcome], Outcome] | None = None
    n_steps = 0

    def step(self, action: Any) -> Any:
        Faulty.n_steps += 1
        outcome = super().step(action)
        return Faulty.spoil(outcome) if Faulty.spoil is not None and Faulty.n_steps == WHEN else outcome


@dataclass(frozen=True)
class Fault:
    """A fault of environment, agent or learning."""

    name: str
    arguments: tuple[str, ...]
    cause: Callable[[], contextlib.AbstractContextManager[None]]
    messages: tuple[str, ...]
    """Parts of the message."""


def _in_the_environment(spoil: Callable[[Outcome], Any]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def cause() -> Iterator[None]:
        if "Faulty-v0" not in gym.registry:
            gym.register("Faulty-v0", Faulty, max_episode_steps=15)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Faulty, "n_steps", 0)
            patch.setattr(Faulty, "spoil", staticmethod(spoil))
            yield

    return cause


def _raise(outcome: Outcome) -> Any:
    raise ZeroDivisionError("two lines\nof the environment's own")


def _with(index: int, value: Any) -> Callable[[Outcome], Any]:
    return lambda outcome: (*outcome[:index], value, *outcome[index + 1 :])


def _in_the_action(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
    @contextlib.contextmanager
    def cause() -> Iterator[None]:
        real_act, calls = RandomLevel.act, iter(range(1, 10**9))

        def act(level: RandomLevel, *args: Any, **kwargs: Any) -> Any:
            decision = real_act(level, *args, **kwargs)
            if next(calls) == WHEN:
                decision.action.copy_(change(decision.action))
            return decision

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RandomLevel, "act", act)
            yield

    return cause


@contextlib.contextmanager
def nan_losses(when: Callable[[int], bool] = lambda call: True, member: int = 1) -> Iterator[None]:
    """Have a member's loss be NaN in some calls, counted from 1."""
    real, calls = ProbabilisticEnsemble.member_losses, iter(range(1, 10**9))

    def member_losses(ensemble: ProbabilisticEnsemble, batch: Any) -> torch.Tensor:
        losses = real(ensemble, batch)
        spoiled = torch.arange(len(losses)) == member
        return torch.where(spoiled, losses * torch.nan, losses) if when(next(calls)) else losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProbabilisticEnsemble, "member_losses", member_losses)
        yield


@contextlib.contextmanager
def nan_scores(when: Callable[[int], bool] = lambda decision: True) -> Iterator[None]:
    """Have all candidates' scores be NaN in some decisions, counted from 1, of planners with two iterations."""
    real, calls = WorldModel.score_from, iter(range(10**9))

    def score(world: WorldModel, *args: Any, **kwargs: Any) -> torch.Tensor:
        scores = real(world, *args, **kwargs)
        return scores * torch.nan if when(next(calls) // 2 + 1) else scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorldModel, "score_from", score)
        yield


@contextlib.contextmanager
def _nan_targets() -> Iterator[None]:
    """Have all targets of critics be NaN from the twelfth update on."""
    real, calls = StackedActorCritic._slow_value, iter(range(1, 10**9))

    def value(algorithm: StackedActorCritic, obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
        found = real(algorithm, obs, act)
        return found * torch.nan if next(calls) >= 12 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StackedActorCritic, "_slow_value", value)
        yield


_FAULTY = ("random", "--env", "Faulty-v0")
_STEP = "environment 0"

FAULTS = [
    *(
        Fault(name, _FAULTY, _in_the_environment(spoil), (_STEP, *messages))
        for name, spoil, messages in [
            ("an observation with NaN", _with(0, np.array([np.nan, 0.0])), ("nan",)),
            ("an observation of another shape", _with(0, np.zeros(3)), ("(3,)",)),
            ("no observation", _with(0, None), ("None",)),
            ("a reward of NaN", _with(1, np.nan), ("nan",)),
            ("a reward that is a word", _with(1, "much"), ("much",)),
            ("an end that is a word", _with(2, "maybe"), ("maybe",)),
            ("four values in place of five", lambda outcome: outcome[:4], ("4",)),
            ("an environment that raises", _raise, ("ZeroDivisionError", "two lines of the environment's own")),
        ]
    ),
    *(
        Fault(name, ("random",), _in_the_action(change), ("the action of environment 0 is", *messages))
        for name, change, messages in [
            ("an action out of bounds", lambda a: a * 0 + 1.5, ("[1.5]", "expected one of Box(-1.0, 1.0")),
            ("an action of NaN", lambda a: a * torch.nan, ("[nan]",)),
        ]
    ),
    Fault(
        "a discrete action that there is not",
        ("random", "--env", "CartPole-v1"),
        _in_the_action(lambda a: a * 0 + 2),
        ("the action of environment 0 is [2], expected one of Discrete(2)",),
    ),
    Fault(
        "a loss of NaN",
        ("pets", "--learning.n-random-steps", "30", "--learning.fit.max-skipped", "1", "--learning.first-epochs", "4"),
        nan_losses,
        ("the loss of member 1 is not finite", "in batch 0 of epoch 2", "the largest number is", ", in "),
    ),
    Fault(
        "a gradient of NaN",
        ("sac", "--learning.max-skipped", "0"),
        _nan_targets,
        ("the gradient of critic.", "of the policy level is not finite in update 11, after 0 others"),
    ),
    Fault(
        "plans without a finite score",
        ("pets", "--learning.n-random-steps", "27", "--learning.max-failed-plans", "3"),
        nan_scores,
        ("no candidate had a finite score in the environments 0", "rewards, terminations or values are not"),
    ),
]
