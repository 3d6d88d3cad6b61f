"""Searches that learn: draws that Optuna, through Ray Tune, chooses from what the earlier ones have brought.

Tune only suggests; when, where and how often a trial is made is decided by `experiments.sweep`, as in any study.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.sweep.guard import write_whole
from experiments.sweep.space import Choice, Draw, Range, Search, Value
from experiments.sweep.study import Study, Trial
from experiments.sweep.table import Progress

Known = list[tuple[dict[str, Value], float | None]]
"""Settings of the draws so far, and their scores; None for those under way, and for those that failed."""

Suggest = Callable[[Search, int, Known], dict[str, Value]]
"""Chooses settings from what is known; the number is a seed."""

_METRICS = {"return": "episode_return", "evaluation": "evaluation"}  # attributes of sweep_table.Metrics


class Draws:
    """The draws of a study that learns, kept in draws.json such that the same command goes on with the same ones.

    Each agent is searched on its own in each environment: what is good for one need not be for another, and returns
    in different environments cannot be compared. The score of a draw is the mean over the seeds.

    Args:
        study: Whose search it is.
        folder: Of the study.
        suggest: Chooses settings; Optuna by default.

    Raises:
        ValueError: The draws that are there cannot be read, or were made by another search.
    """

    def __init__(self, study: Study, folder: Path, suggest: Suggest | None = None) -> None:
        if study.search is None:
            raise ValueError(f"{study.name} has no search")
        self.study, self.search, self.path = study, study.search, folder / "draws.json"
        self._suggest, self._kept = suggest, self._read()

    @property
    def made(self) -> list[Draw]:
        """Those that are part of the study as it is now, which may ask for fewer, or without an agent."""
        agents, environments, n = self.study.agents, self.study.environments, self.search.n_trials
        kept = self._kept
        return [one for one in kept if one.agent in agents and one.environment in environments and one.number < n]

    @property
    def more(self) -> bool:
        """Whether there are draws to come."""
        return len(self.made) < self._n_all

    def trials(self) -> list[Trial]:
        """Those of the draws so far."""
        return self.study.trials(self.made)

    def next(self, progress: Sequence[Progress]) -> list[Trial]:
        """Make the next draw; its trials, one for each seed.

        It depends on nothing but the earlier draws and their scores: a study that was stopped goes on as it would
        have done anyway.

        Args:
            progress: How far the trials of all earlier draws are.

        Raises:
            ValueError: Ray Tune or Optuna is missing, or two trials would have the same name.
            OSError: The draw cannot be kept; it is not made.
        """
        agent, env = self._group()
        by_name = {one.trial.name: one for one in progress}
        known: Known = []
        for earlier in self.made:
            if (earlier.agent, earlier.environment) == (agent, env):
                score = self.score([by_name[trial.name] for trial in self.study.trials([earlier])])
                known.append((earlier.settings, score))
        seed = random.Random(f"{self.search.seed}/{agent}/{env}/{len(known)}").getrandbits(32)
        suggest = self._suggest or optuna_suggest()
        draw = Draw(agent, env, len(known), suggest(self.search, seed, known))
        begun = self.study.trials([*self.made, draw])[-len(self.study.seeds) :]
        self._write([*self._kept, draw])
        self._kept.append(draw)
        return begun

    def score(self, trials: Sequence[Progress]) -> float | None:
        """Mean over trials; None unless all are done and have one."""
        values = [getattr(one.metrics, _METRICS[self.search.metric]) for one in trials if one.state == "done"]
        if len(values) < len(trials) or any(value is None or not math.isfinite(value) for value in values):
            return None
        return float(sum(values) / len(values))

    def told(self) -> str:
        """How much of the search is known."""
        return f"the draws of this search are not known beforehand; {len(self.made)} of {self._n_all} are made"

    @property
    def _n_all(self) -> int:
        return self.search.n_trials * len(self.study.agents) * len(self.study.environments)

    def _group(self) -> tuple[str, str]:
        """Agent and environment that have the fewest draws, the first of several."""
        counts = {(agent, env): 0 for env in self.study.environments for agent in self.study.agents}
        for draw in self.made:
            counts[draw.agent, draw.environment] += 1
        return min(counts, key=lambda group: counts[group])

    def _read(self) -> list[Draw]:
        try:
            kept = json.loads(self.path.read_text())
            settings, draws = kept["search"], [Draw(**one) for one in kept["draws"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} cannot be read: {type(error).__name__}: {error}") from error
        if settings != self._settings():
            told = "has draws from other settings than those of the search now; give the study another name"
            raise ValueError(f"{self.path} {told}")
        return draws

    def _write(self, draws: Sequence[Draw]) -> None:
        kept = {"search": self._settings(), "draws": [asdict(draw) for draw in draws]}
        write_whole(self.path, json.dumps(kept, indent=2) + "\n", "new")

    def _settings(self) -> Any:
        """What decides about draws, but for how many there are, as JSON gives it back."""
        kinds = {name: asdict(kind) for name, kind in self.search.settings.items()}
        return json.loads(json.dumps({"settings": kinds, "seed": self.search.seed, "metric": self.search.metric}))


def optuna_suggest() -> Suggest:
    """What chooses by Optuna's tree-structured Parzen estimator; about ten draws at random come first.

    Raises:
        ValueError: Ray Tune or Optuna is missing.
    """
    try:
        import optuna
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        told = "a search with optuna needs it and Ray Tune, in the checkout: pip install -c constraints.txt -e '.[ray]'"
        raise ValueError(told) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line for each draw otherwise

    def distribution(kind: Range | Choice) -> Any:
        if isinstance(kind, Choice):
            return optuna.distributions.CategoricalDistribution(kind.values)
        if kind.integer:
            return optuna.distributions.IntDistribution(int(kind.low), int(kind.high), log=kind.log)
        return optuna.distributions.FloatDistribution(kind.low, kind.high, log=kind.log)

    def suggest(search: Search, seed: int, known: Known) -> dict[str, Value]:
        # A new searcher each time has no state that could be lost. What is under way or has failed is, to this one,
        # suggested and not heard of; constant_liar keeps away from that.
        unknown = [settings for settings, score in known if score is None]
        searcher = OptunaSearch(
            {name: distribution(kind) for name, kind in search.settings.items()},
            metric=search.metric,
            mode="max",
            points_to_evaluate=unknown,
            sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        for settings, score in known:
            if score is not None:
                searcher.add_evaluated_point(settings, score)
        for i in range(len(unknown)):
            searcher.suggest(f"unknown{i}")
        drawn = searcher.suggest("next") or {}
        kinds = search.settings.items()
        return {name: kind.shorten(drawn[name]) if isinstance(kind, Range) else drawn[name] for name, kind in kinds}

    return suggest
