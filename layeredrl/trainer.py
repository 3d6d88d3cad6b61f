"""The training loop. It knows no algorithm."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layeredrl.checks import require_counts
from layeredrl.collector import Collector, Episode
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger
from layeredrl.randomness import fork_globals, globals_state, restore_globals


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and how often to look up."""

    n_total_env_steps: int = 1000
    """Environment steps, summed over all instances."""
    eval_every: int = 0
    """Environment steps between evaluations without exploration; 0 for none."""
    eval_episodes: int = 5
    """Episodes of an evaluation."""
    checkpoint_every: int = 1000
    """Environment steps between checkpoints; one more is written at the end."""
    pictures_every: int = 20_000
    """Environment steps between pictures of what was learned, and once more at the end; 0 for none at all."""

    def __post_init__(self) -> None:
        require_counts(self, n_total_env_steps=1, eval_every=0, eval_episodes=1, checkpoint_every=1, pictures_every=0)


_STATE_KEYS = {"agent", "collector", "episodes", "experience", "globals", "loggers", "n_total_env_steps", "trainer"}


class Trainer:
    """Collects, learns, evaluates, logs and saves, in turns.

    Args:
        agent: What is trained.
        collector: Feeds it.
        logger: Takes the metrics.
        config: Settings.
        evaluate: Plays a number of episodes without exploration, in environments of its own.
        save: Writes a checkpoint of this trainer, and says whether it could; also before a `Fault` is passed on.
        stop: Asked after every step whether to end early.
        draw: Draws what was learned after so many environment steps, without a change to the agent.

    Attributes:
        episodes: All finished training episodes, in the order in which they ended.
        last_score: Mean return of the last evaluation; None before there was one.
    """

    def __init__(
        self,
        agent: Hierarchy,
        collector: Collector,
        logger: Logger,
        config: TrainerConfig,
        *,
        evaluate: Callable[[int], list[Episode]] | None = None,
        save: Callable[["Trainer"], bool] | None = None,
        stop: Callable[[], bool] = lambda: False,
        draw: Callable[[int], None] | None = None,
    ) -> None:
        self.agent, self.collector, self.logger, self.config = agent, collector, logger, config
        self.evaluate, self.save, self.stop, self.draw = evaluate, save, stop, draw
        self.episodes: list[Episode] = []
        self.last_eval = self.last_save = self._n_saved = self._n_drawn = 0
        self.last_score: float | None = None
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    @property
    def finished(self) -> bool:
        """Whether all steps have been taken."""
        return self.collector.n_total_env_steps >= self.config.n_total_env_steps

    @property
    def score(self) -> float | None:
        """How good the agent is: by the last evaluation, or, without evaluations, by the last ten episodes."""
        if (self.evaluate is not None and self.config.eval_every) or not self.episodes:
            return self.last_score
        return float(np.mean([episode.episode_return for episode in self.episodes[-10:]]))

    @property
    def seconds(self) -> float:
        """Time that training has taken, earlier processes included."""
        return time.perf_counter() - self._start

    @property
    def cpu_seconds(self) -> float:
        """Time that this process has computed, and earlier ones."""
        return time.process_time() - self._start_cpu

    def run(self) -> None:
        """Train to the end, or until `stop`; saves at the end in either case."""
        while not self.finished and not self.stop():
            try:
                self._step()
            except Fault:
                self._save_rest()
                raise
            if self.collector.n_total_env_steps - self.last_save >= self.config.checkpoint_every:
                self._save()
        if self.finished:
            self._draw()
        self._save_rest()

    def _step(self) -> None:
        n_before = self.collector.n_total_env_steps
        episodes = self.collector.step(explore=True)
        n = self.collector.n_total_env_steps
        self.episodes += episodes
        clock = {"time/seconds": self.seconds, "time/cpu_seconds": self.cpu_seconds}
        for episode in episodes:
            told: dict[str, float] = {
                "env/episode_return": episode.episode_return,
                "env/episode_length": episode.length,
            }
            if episode.success is not None:
                told["env/success"] = float(episode.success)
            self.logger.log({**told, **clock}, n)
        learned = self.agent.learn(n)
        if learned:
            learned["time/env_steps_per_second"] = n / clock["time/seconds"]
        if learned or episodes:
            self.logger.log({**self.collector.take_metrics(), **learned}, n)
        self.logger.log({}, n)  # progress, also where there is nothing to record
        if self.evaluate is not None and self.config.eval_every and n - self.last_eval >= self.config.eval_every:
            with fork_globals():
                played = self.evaluate(self.config.eval_episodes)
            self.last_eval = n
            self.last_score = float(np.mean([episode.episode_return for episode in played]))
            rate = success_rate(played)
            told = {"eval/episode_return": self.last_score} | ({} if rate is None else {"eval/success": rate})
            self.logger.log(told, n)
        every = self.config.pictures_every
        if every and n // every > n_before // every:  # at the same steps in a run that was stopped and goes on
            self._draw()

    def _draw(self) -> None:
        n = self.collector.n_total_env_steps
        if self.draw is not None and self.config.pictures_every and self._n_drawn < n:
            self._n_drawn = n
            with fork_globals():
                self.draw(n)

    def _save(self) -> None:
        self.last_save = self.collector.n_total_env_steps  # also if it fails: not every step needs another try
        if self.save is not None and self.save(self):
            self._n_saved = self.last_save

    def _save_rest(self) -> None:
        if self._n_saved < self.collector.n_total_env_steps:
            self._save()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run goes on from, so that nobody can tell that it was stopped.

        What the agent has learned is apart, under "agent", from what only training needs.
        """
        return {
            "n_total_env_steps": self.collector.n_total_env_steps,
            "agent": self.agent.state_dict(),
            "experience": self.agent.experience(),
            "collector": self.collector.state_dict(),
            "loggers": self.logger.state_dict(),
            "globals": globals_state(),
            "episodes": torch.tensor([_row(episode) for episode in self.episodes], dtype=torch.float64),
            "trainer": {
                "last_eval": self.last_eval,
                "last_save": self.last_save,
                "last_score": self.last_score,
                "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if state.keys() != _STATE_KEYS:
            keys, expected = ", ".join(sorted(state)), ", ".join(sorted(_STATE_KEYS))
            raise ValueError(f"the state has the keys {keys}, expected {expected}")
        self.agent.load_state_dict(state["agent"])
        self.agent.load_experience(state["experience"])
        self.collector.load_state_dict(state["collector"])
        self.logger.load_state_dict(state["loggers"])
        rows = state["episodes"].tolist()
        self.episodes = [
            Episode(int(i), value, int(length), int(n), None if math.isnan(success) else bool(success))
            for i, value, length, n, success in rows
        ]
        own = state["trainer"]
        self.last_eval, self.last_save, self.last_score = own["last_eval"], own["last_save"], own["last_score"]
        self._start = time.perf_counter() - own["seconds"]
        self._start_cpu = time.process_time() - own["cpu_seconds"]
        self._n_saved = self.collector.n_total_env_steps
        restore_globals(state["globals"])


def success_rate(episodes: Sequence[Episode]) -> float | None:
    """Share of the episodes that succeeded, among those whose environment spoke of success; None if none did."""
    told = [episode.success for episode in episodes if episode.success is not None]
    return float(np.mean(told)) if told else None


def _row(episode: Episode) -> list[float]:
    success = math.nan if episode.success is None else float(episode.success)
    return [episode.env_id, episode.episode_return, episode.length, episode.n_total_env_steps, success]
