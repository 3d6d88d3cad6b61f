"""Searches with Optuna: draws that are chosen from the scores of earlier ones."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.sweep.folder import is_done, read_metrics, write_whole
from experiments.sweep.space import Choice, Draw, Range, Search, Value
from experiments.sweep.study import Study, Trial

Known = list[tuple[dict[str, Value], float | None]]
"""Settings of the draws so far with their scores; None for those that are unfinished or failed."""

Suggest = Callable[[Search, int, Known], dict[str, Value]]
"""Chooses settings from the known draws and a seed."""


class Draws:
    """Draws of a search with Optuna, kept in draws.json.

    Tune saves the state of a searcher now and then: after a kill, a draw whose trials had begun would be drawn again.
    Here a draw is saved before its trials begin, and its score is read from the folders of its runs.

    Args:
        study: Study with a search.
        folder: Folder of the study.
        suggest: Chooses settings; Optuna by default.

    Raises:
        ValueError: draws.json cannot be read, or belongs to another search.
    """

    def __init__(self, study: Study, folder: Path, suggest: Suggest | None = None) -> None:
        if study.search is None:
            raise ValueError(f"{study.name} has no search")
        self.study, self.search, self.folder, self.path = study, study.search, folder, folder / "draws.json"
        self._suggest = suggest or optuna_suggest
        self._kept = self._read()

    @property
    def made(self) -> list[Draw]:
        """Draws that belong to the study as it is now: it may ask for fewer, or have fewer agents, than before."""
        pairs, n = self.study.pairs, self.search.n_trials
        return [d for d in self._kept if (d.agent, d.environment) in pairs and d.number < n]

    @property
    def n_total(self) -> int:
        """Number of draws of the whole search."""
        return self.search.n_trials * len(self.study.pairs)

    @property
    def more(self) -> bool:
        """True if there are draws to make."""
        return len(self.made) < self.n_total

    def trials(self) -> list[Trial]:
        """Trials of the draws so far."""
        return self.study.trials(self.made)

    def next(self) -> list[Trial]:
        """Make and save the next draw; return its trials, one for each seed.

        A draw depends on earlier draws and their scores only, so a search that was stopped goes on with the same ones.

        Raises:
            ValueError: Two trials would have the same name.
            OSError: The draw cannot be saved; it is not made.
        """
        made = self.made
        groups = self.study.pairs
        earlier = {group: [d for d in made if (d.agent, d.environment) == group] for group in groups}
        agent, env = min(groups, key=lambda group: len(earlier[group]))
        known: Known = [(draw.settings, self.score(draw)) for draw in earlier[agent, env]]
        seed = random.Random(f"{self.search.seed}/{agent}/{env}/{len(known)}").getrandbits(32)
        draw = Draw(agent, env, len(known), self._suggest(self.search, seed, known))
        trials = self.study.trials([*made, draw])[-len(self.study.seeds) :]
        content = {"search": self._settings(), "draws": [asdict(d) for d in (*self._kept, draw)]}
        write_whole(self.path, json.dumps(content, indent=2) + "\n")
        self._kept.append(draw)
        return trials

    def score(self, draw: Draw) -> float | None:
        """Mean of the metric over the seeds; None unless all runs are finished and have it."""
        trials = self.study.trials([draw])
        done = [trial for trial in trials if is_done(self.folder / trial.name, trial.words)]
        values = [read_metrics(self.folder / trial.name).get(self.search.metric, math.nan) for trial in done]
        if len(values) < len(trials) or not all(map(math.isfinite, values)):
            return None
        return sum(values) / len(values)

    def _read(self) -> list[Draw]:
        try:
            content = json.loads(self.path.read_text())
            settings, draws = content["search"], [Draw(**one) for one in content["draws"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} cannot be read: {type(error).__name__}: {error}") from error
        if settings != self._settings():
            raise ValueError(f"{self.path} has draws of another search; give the study another name")
        return draws

    def _settings(self) -> Any:
        """Everything that the draws depend on, as JSON returns it; not their number."""
        kinds = {name: asdict(kind) for name, kind in self.search.settings.items()}
        return json.loads(json.dumps({"settings": kinds, "seed": self.search.seed, "metric": self.search.metric}))


def optuna_suggest(search: Search, seed: int, known: Known) -> dict[str, Value]:
    """Choose settings by Optuna's tree-structured Parzen estimator; about ten random draws come first.

    A new searcher each time has no state that could be lost.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise a line for each draw

    def distribution(kind: Range | Choice) -> Any:
        if isinstance(kind, Choice):
            return optuna.distributions.CategoricalDistribution(kind.values)
        if kind.integer:
            return optuna.distributions.IntDistribution(int(kind.low), int(kind.high), log=kind.log)
        return optuna.distributions.FloatDistribution(kind.low, kind.high, log=kind.log)

    unscored = [settings for settings, score in known if score is None]
    searcher = OptunaSearch(
        {name: distribution(kind) for name, kind in search.settings.items()},
        metric=search.metric,
        mode="max",
        points_to_evaluate=unscored,
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),  # it keeps away from unscored draws
    )
    for settings, score in known:
        if score is not None:
            searcher.add_evaluated_point(settings, score)
    for i in range(len(unscored)):
        searcher.suggest(f"unscored{i}")
    drawn = searcher.suggest("next") or {}
    kinds = search.settings.items()
    return {name: kind.shorten(drawn[name]) if isinstance(kind, Range) else drawn[name] for name, kind in kinds}
