"""Settings of learning a world model: when, and from how much."""

import math
from dataclasses import dataclass, field
from typing import Literal

from layeredrl.checks import require_choice, require_counts, require_number, require_pair
from layeredrl.models.fitting import FitConfig
from layeredrl.models.nets import TerminationMLP
from layeredrl.task import TaskSpec
from layeredrl.world_model.encoders import Encoder

CAUTION = 0.5


@dataclass(frozen=True)
class ModelLearningConfig:
    """When and how a world model is fitted to all transitions, in epochs."""

    n_random_steps: int = 200
    """Environment steps with random actions before the first fit."""
    fit_every: int = 200
    """Environment steps from one fit to the next; with several environments, at least as many."""
    first_epochs: int = 5
    """Passes over the data in the first fit, which starts from random parameters; `fit.max_steps` bounds it too."""
    fit: FitConfig = field(default_factory=FitConfig)
    """Settings of a fit."""
    reward_learning_rate: float = 1e-3
    """Learning rate of the reward network, where the task's reward is not known."""
    termination: Literal["dynamics", "next_state"] = "dynamics"
    """Predictor of terminations that are not known. dynamics: the ensemble, from state and action; next_state: a
    separate network, from the next state, trained on batches of which half are terminations."""
    caution: float = CAUTION
    """With next_state: 0 for unbiased probabilities, 1 for those of the balanced batches. Where values are
    positive, larger ones make plans and policies avoid states near those in which episodes ended; where they are
    negative, seek them."""
    max_failed_plans: int = 10
    """Number of decisions between two fits that may be random because no plan has a finite score; one more is an
    error."""
    replay_size: int = 1_000_000
    """Number of transitions kept, all environments together."""

    def __post_init__(self) -> None:
        require_counts(self, n_random_steps=1, fit_every=1, first_epochs=1, max_failed_plans=0, replay_size=1)
        require_number("reward_learning_rate", self.reward_learning_rate, 0, math.inf, open_low=True)
        require_choice("termination", self.termination, ("dynamics", "next_state"))
        require_number("caution", self.caution, 0, 1)
        if self.termination == "dynamics" and self.caution != CAUTION:
            raise ValueError(
                f"caution is {self.caution}, expected {CAUTION}: it has an effect only if termination is 'next_state', "
                "and termination is 'dynamics'"
            )

    def make_termination(self, encoder: Encoder, task: TaskSpec) -> TerminationMLP | None:
        """The termination's network, drawn from torch's global generator; None if it is known, or the dynamics'."""
        if self.termination == "dynamics" or task.termination is not None:
            return None
        return TerminationMLP(encoder.state_dim + encoder.context_dim, caution=self.caution)


@dataclass(frozen=True)
class OnlineLearningConfig:
    """When and how a world model is learned from batches of the newest transitions, while they are collected."""

    n_first: int = 2000
    """Environment steps before the first update."""
    updates_per_segment: float = 2.0
    """Number of updates for each segment of `segment_steps` environment steps, such as an executed skill."""
    batch_size: int = 256
    """Transitions of an update."""
    newest: float = 0.5
    """Share of the replay, the newest, from which batches are drawn: the policy below changes, and outcomes with it."""
    final_rate: float = 0.1
    """Factor of the learning rate at the end of `decay`."""
    decay: tuple[int, int] = (60_000, 120_000)
    """Environment steps between which the learning rate falls linearly."""
    refresh_every: int = 2000
    """Environment steps between two updates of the supported states and of the statistics of dynamics and reward."""
    reward_learning_rate: float = 1e-3
    """Learning rate of the reward network and of a learned encoder, where the task's reward is not known."""
    report_every: int = 1000
    """Environment steps between two reports of metrics."""

    def __post_init__(self) -> None:
        require_counts(self, n_first=1, batch_size=2, refresh_every=1, report_every=1)
        require_number("newest", self.newest, 0, 1, open_low=True)
        for name in ("updates_per_segment", "final_rate"):
            require_number(name, getattr(self, name), 0, math.inf)
        require_number("reward_learning_rate", self.reward_learning_rate, 0, math.inf, open_low=True)
        require_span("decay", self.decay)


def require_span(name: str, span: tuple[int, int]) -> None:
    """Raise unless a span of environment steps begins at zero or later and does not end before it begins."""
    require_pair(name, span)
    start, stop = span
    if not 0 <= start <= stop:
        raise ValueError(f"{name} is {(start, stop)}, expected two increasing numbers of steps")


def share_of_span(span: tuple[int, int], n_total_env_steps: int) -> float:
    """Elapsed share of a span of environment steps, in [0, 1]."""
    start, stop = span
    return min(max((n_total_env_steps - start) / max(stop - start, 1), 0.0), 1.0)
