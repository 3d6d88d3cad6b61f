"""The training loop. It knows no algorithm."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layeredrl.checks import require_counts
from layeredrl.collector import Collector, Episode
from layeredrl.hierarchy import Hierarchy
from layeredrl.loggers import Logger
from layeredrl.randomness import fork_globals


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

    def __post_init__(self) -> None:
        require_counts(self, n_total_env_steps=1, eval_every=0, eval_episodes=1, checkpoint_every=1)


class Trainer:
    """Collects, learns, evaluates, logs and saves, in turns.

    Args:
        agent: What is trained.
        collector: Feeds it.
        logger: Takes the metrics.
        config: Settings.
        evaluate: Plays a number of episodes without exploration, in environments of its own.
        save: Writes a checkpoint, given the environment steps so far.
    """

    def __init__(
        self,
        agent: Hierarchy,
        collector: Collector,
        logger: Logger,
        config: TrainerConfig,
        *,
        evaluate: Callable[[int], list[Episode]] | None = None,
        save: Callable[[int], None] | None = None,
    ) -> None:
        self.agent, self.collector, self.logger, self.config = agent, collector, logger, config
        self.evaluate, self.save = evaluate, save
        self.episodes: list[Episode] = []

    def run(self) -> list[Episode]:
        """Train to the end; returns all finished training episodes in the order in which they ended."""
        config = self.config
        start, start_cpu = time.perf_counter(), time.process_time()
        n = last_eval = last_save = 0
        while n < config.n_total_env_steps:
            episodes = self.collector.step(explore=True)
            n = self.collector.n_total_env_steps
            self.episodes += episodes
            clock = {"time/seconds": time.perf_counter() - start, "time/cpu_seconds": time.process_time() - start_cpu}
            for episode in episodes:
                self.logger.log(
                    {"env/episode_return": episode.episode_return, "env/episode_length": episode.length, **clock}, n
                )
            if learned := self.agent.learn(n):
                told = self.collector.take_metrics()
                self.logger.log({**told, **learned, "time/env_steps_per_second": n / clock["time/seconds"]}, n)
            self.logger.log({}, n)  # progress, also where there is nothing to record
            if self.evaluate is not None and config.eval_every and n - last_eval >= config.eval_every:
                last_eval = n
                with fork_globals():
                    returns = [episode.episode_return for episode in self.evaluate(config.eval_episodes)]
                self.logger.log({"eval/episode_return": float(np.mean(returns))}, n)
            if self.save is not None and n - last_save >= config.checkpoint_every:
                last_save = n
                self.save(n)
        if self.save is not None and last_save < n:
            self.save(n)
        return self.episodes
