"""The training loop. It knows no algorithm."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from layeredrl.checks import require_counts
from layeredrl.episodes import Episode, EpisodeCollector
from layeredrl.faults import Fault
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger
from layeredrl.randomness import fork_globals, globals_state, restore_globals


@dataclass(frozen=True)
class TrainerConfig:
    """Length of a training run, and the intervals of evaluations, checkpoints and pictures."""

    n_total_env_steps: int = 1000
    """Number of environment steps, summed over all instances."""
    stop_at_return: float | None = None
    """Return at which training ends early: mean return of an evaluation, or, without evaluations, return of a training
    episode. None: never."""
    eval_every: int = 0
    """Environment steps between evaluations without exploration; 0 for none."""
    eval_episodes: int = 5
    """Number of episodes of an evaluation."""
    eval_max_steps: int = 5_000
    """Steps after which an episode of an evaluation is cut off, for environments without an end."""
    checkpoint_every: int = 1000
    """Environment steps between checkpoints; one more is written at the end."""
    pictures_every: int = 20_000
    """Environment steps between pictures of what was learned, with one more at the end; 0 for none at all."""

    def __post_init__(self) -> None:
        require_counts(self, n_total_env_steps=1, eval_every=0, eval_episodes=1, eval_max_steps=1)
        require_counts(self, checkpoint_every=1, pictures_every=0)
        if self.stop_at_return is not None and not math.isfinite(self.stop_at_return):
            raise ValueError(f"stop_at_return is {self.stop_at_return}, expected a finite number or None")


_STATE_KEYS = {"agent", "collector", "episodes", "experience", "globals", "loggers", "n_total_env_steps", "trainer"}


class Trainer:
    """Alternate between collecting, learning, evaluating, logging and saving.

    Args:
        agent: Agent to train.
        collector: Steps the training environments.
        logger: Receives the metrics.
        config: Settings.
        evaluate: Plays the given number of episodes without exploration, in environments of its own; returns none if
            it was stopped, and is called again when the run goes on.
        save: Writes a checkpoint of this trainer and returns True if that succeeded; also called before a `Fault` is
            raised again.
        stop: Called after every step; training ends early once it returns True.
        draw: Draws pictures of what was learned after the given number of environment steps, without a change to the
            agent.

    Attributes:
        episodes: All finished training episodes, in the order in which they ended.
        last_score: Mean return of the last evaluation; None before the first one.
    """

    def __init__(
        self,
        agent: Hierarchy,
        collector: EpisodeCollector,
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
        self.last_eval = self.last_save = self._n_saved = self._n_drawn = self._n_before = 0
        self.last_score: float | None = None
        self._best_return = -math.inf
        self._start, self._start_cpu = time.perf_counter(), time.process_time()

    @property
    def finished(self) -> bool:
        """If True, all environment steps have been taken, or `stop_at_return` was reached."""
        return self.collector.n_total_env_steps >= self.config.n_total_env_steps or self.goal_reached

    @property
    def goal_reached(self) -> bool:
        """If True, the last evaluation, or without evaluations any training episode, reached `stop_at_return`."""
        goal, best = self.config.stop_at_return, self.last_score if self._evaluates else self._best_return
        return goal is not None and best is not None and best >= goal

    @property
    def _evaluates(self) -> bool:
        return self.evaluate is not None and self.config.eval_every > 0

    @property
    def score(self) -> float | None:
        """Mean return of the last evaluation, or, without evaluations, of the last ten training episodes."""
        if self._evaluates or not self.episodes:
            return self.last_score
        return float(np.mean([episode.episode_return for episode in self.episodes[-10:]]))

    @property
    def seconds(self) -> float:
        """Wall time of training in seconds, including that of earlier processes."""
        return time.perf_counter() - self._start

    @property
    def cpu_seconds(self) -> float:
        """CPU time in seconds of this process and earlier ones."""
        return time.process_time() - self._start_cpu

    def run(self) -> None:
        """Train until `finished` or `stop`; saves at the end in either case.

        An evaluation that a fault has ended is repeated first when the run goes on, so that the run is the same as one
        without the fault. If it fails again, it is left out when the run goes on once more.
        """
        try:
            if self._evaluation_is_due:
                self._evaluate_and_draw()
        except Fault:
            self.last_eval = self.collector.n_total_env_steps
            self._save()
            raise
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
            metrics: dict[str, float] = {
                "env/episode_return": episode.episode_return,
                "env/episode_length": episode.length,
            }
            if episode.success is not None:
                metrics["env/success"] = float(episode.success)
            self.logger.log({**metrics, **clock}, n)
            self._best_return = max(self._best_return, episode.episode_return)
        learned = self.agent.learn(n)
        if learned:
            learned["time/env_steps_per_second"] = n / clock["time/seconds"]
        if learned or episodes:
            self.logger.log({**self.collector.take_metrics(), **learned}, n)
        self.logger.log({}, n)  # updates the progress display, also where there is nothing to record
        self._n_before = n_before
        self._evaluate_and_draw()

    @property
    def _evaluation_is_due(self) -> bool:
        return self._evaluates and self.collector.n_total_env_steps - self.last_eval >= self.config.eval_every

    def _evaluate_and_draw(self) -> None:
        n = self.collector.n_total_env_steps
        if self.evaluate is not None and self._evaluation_is_due:
            with fork_globals():
                played = self.evaluate(self.config.eval_episodes)
            if not played:  # a request to stop came first: the evaluation is made when the run goes on
                return
            self.last_eval = n
            self.last_score = float(np.mean([episode.episode_return for episode in played]))
            rate = success_rate(played)
            metrics = {"eval/episode_return": self.last_score} | ({} if rate is None else {"eval/success": rate})
            self.logger.log(metrics, n)
        every = self.config.pictures_every
        if every and n // every > self._n_before // every:  # at the same steps in a run that was stopped and goes on
            self._draw()

    def _draw(self) -> None:
        n = self.collector.n_total_env_steps
        if self.draw is not None and self.config.pictures_every and self._n_drawn < n:
            self._n_drawn = n
            with fork_globals():
                self.draw(n)

    def _save(self) -> None:
        self.last_save = self.collector.n_total_env_steps  # also if it fails: do not try again at every step
        if self.save is not None and self.save(self):
            self._n_saved = self.last_save

    def _save_rest(self) -> None:
        if self._n_saved < self.collector.n_total_env_steps:
            self._save()

    def state_dict(self) -> dict[str, Any]:
        """State from which a resumed run continues exactly as if it had not been stopped.

        "agent" holds what the agent has learned; the other keys are needed for training only.
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
                "n_before": self._n_before,
                "last_eval": self.last_eval,
                "last_save": self.last_save,
                "last_score": self.last_score,
                "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds,
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
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
        self._best_return = max((episode.episode_return for episode in self.episodes), default=-math.inf)
        own = state["trainer"]
        self._n_before = own.get("n_before", self.collector.n_total_env_steps)  # missing in older checkpoints
        self.last_eval, self.last_save, self.last_score = own["last_eval"], own["last_save"], own["last_score"]
        self._start = time.perf_counter() - own["seconds"]
        self._start_cpu = time.process_time() - own["cpu_seconds"]
        self._n_saved = self.collector.n_total_env_steps
        restore_globals(state["globals"])


def success_rate(episodes: Sequence[Episode]) -> float | None:
    """Share of successful episodes, among those whose environment reports success; None if there are none."""
    reported = [episode.success for episode in episodes if episode.success is not None]
    return float(np.mean(reported)) if reported else None


def _row(episode: Episode) -> list[float]:
    success = math.nan if episode.success is None else float(episode.success)
    return [episode.env_id, episode.episode_return, episode.length, episode.n_total_env_steps, success]
