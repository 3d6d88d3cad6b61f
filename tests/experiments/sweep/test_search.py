"""Searches with Optuna: scores that it gets, and that a search that was stopped goes on with the same draws."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.sweep import __main__ as sweep
from experiments.sweep.folder import WORDS
from experiments.sweep.search import Draws, Known
from experiments.sweep.space import Value
from experiments.sweep.study import Range, Search, Study, Trial
from tests.experiments.conftest import Refusal
from tests.experiments.sweeps import RUNS, a_study

SEARCH = Search(4, {"x": Range(0, 1)}, method="optuna")


class Recorder:
    """Chooses settings that depend on everything that it gets, and keeps that."""

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.seeds: list[int] = []

    def __call__(self, search: Search, seed: int, known: Known) -> dict[str, Value]:
        self.known.append(known)
        self.seeds.append(seed)
        return {name: random.Random(f"{seed}{known}").random() for name in search.settings}


def searching(**changes: object) -> Study:
    return a_study(**{"search": SEARCH, "common": (), "seeds": (0,), **changes})


def finish(trial: Trial, folder: Path = RUNS, column: str = "env/episode_return") -> None:
    """Leave a finished run whose return is its x, plus 100 times its seed."""
    run = folder / trial.name
    run.mkdir(parents=True, exist_ok=True)
    value = trial.settings["x"] + 100 * trial.seed
    (run / "metrics.csv").write_text(f"n_total_env_steps,{column},time/seconds\n1,{value!r},1.0\n")
    (run / "summary.json").touch()
    (run / WORDS).write_text(json.dumps(trial.words))


def search(study: Study, folder: Path = RUNS, n: int = 100) -> tuple[Draws, Recorder, list[Trial]]:
    """Make up to n draws; each is finished before the next one."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder, trials = Recorder(), list[Trial]()
    draws = Draws(study, folder, recorder)
    while draws.more and n:
        n -= 1
        trials += (made := draws.next())
        for trial in made:
            finish(trial, folder)
    return draws, recorder, trials


def test_each_agent_is_searched_separately_and_scores_are_means_over_seeds() -> None:
    draws, recorder, trials = search(searching(agents={"a": (), "b": ()}, seeds=(0, 1)))
    assert len(trials) == 2 * 4 * 2
    assert [trial.name for trial in trials][1:4] == [
        f"{n}-E-v0-draw000-seed{s}" for n, s in (("a", 1), ("b", 0), ("b", 1))
    ]
    assert [len(known) for known in recorder.known] == [0, 0, 1, 1, 2, 2, 3, 3]
    of_b = [draw.settings for draw in draws.made if draw.agent == "b"]
    assert recorder.known[-1] == [(settings, pytest.approx(settings["x"] + 50)) for settings in of_b[:3]]
    assert len(set(recorder.seeds)) == 8


def test_a_search_that_was_stopped_goes_on_with_the_same_draws() -> None:
    study = searching(agents={"a": (), "b": ()})
    whole, _, _ = search(study, Path("runs/whole"))
    first, _, _ = search(study, n=3)
    assert (first.more, len(first.trials())) == (True, 3)
    assert search(study)[0].made == whole.made


def test_a_longer_search_begins_with_the_same_draws() -> None:
    first, _, _ = search(searching())
    longer, _, trials = search(searching(search=replace(SEARCH, n_trials=6)))
    assert (longer.made[:4], len(trials)) == (first.made, 2)
    shorter, _, trials = search(searching(search=replace(SEARCH, n_trials=2)))
    assert (shorter.made, trials) == (first.made[:2], [])
    assert len(json.loads((RUNS / "draws.json").read_text())["draws"]) == 6


def test_unfinished_draws_and_those_without_the_metric_have_no_score() -> None:
    draws, _, trials = search(searching(seeds=(0, 1)), n=2)
    (RUNS / trials[0].name / "summary.json").unlink()
    finish(trials[3], column="eval/episode_return")
    assert [draws.score(draw) for draw in draws.made] == [None, None]
    finish(trials[0])
    assert draws.score(draws.made[0]) == pytest.approx(trials[0].settings["x"] + 50)


def test_a_draw_that_cannot_be_saved_is_not_made() -> None:
    draws = Draws(searching(), RUNS, Recorder())
    with pytest.raises(OSError, match="No such file"):
        draws.next()
    assert draws.made == []


YAML = "name: s\nagents: {a: []}\nenvironments: [E]\nsearch: {n_trials: 3, settings: {x: {low: 0, high: 1}}, "


def test_known_draws_are_listed(capsys: pytest.CaptureFixture[str], refusal: Refusal) -> None:
    Path("s.yaml").write_text(f"{YAML} method: optuna}}")
    sweep.main(["s.yaml", "--list"])
    out, err = capsys.readouterr()
    assert (out, err) == ("", "0 of 3 draws are made; others depend on them\n")
    draw = {"agent": "a", "environment": "E", "number": 0, "settings": {"x": 0.25}}
    ranges = {"x": {"low": 0.0, "high": 1.0, "log": False, "integer": False}}
    RUNS.mkdir(parents=True)
    (RUNS / "draws.json").write_text(
        json.dumps({"search": {"settings": ranges, "seed": 0, "metric": "return"}, "draws": [draw]})
    )
    sweep.main(["s.yaml", "--list"])
    out, err = capsys.readouterr()
    assert out == "python -m experiments.train a --env E --seed 0 --x 0.25 --runs-dir runs/s --name a-E-draw000-seed0\n"
    assert "1 of 3" in err
    Path("s.yaml").write_text(f"{YAML} method: optuna, seed: 7}}")
    assert "has draws of another search" in refusal(sweep.main, ["s.yaml", "--list"])
    (RUNS / "draws.json").write_text("[]")
    assert "draws.json cannot be read: TypeError" in refusal(sweep.main, ["s.yaml"])


def test_bad_searches_give_one_line(refusal: Refusal) -> None:
    for end, message in {
        "metric: evaluation}": "a random search uses no metric",
        "method: grid}": "search.method: Input should be 'random' or 'optuna'",
        "method: optuna, metric: loss}": "search.metric: Input should be 'return' or 'evaluation'",
    }.items():
        Path("s.yaml").write_text(YAML + end)
        assert message in refusal(sweep.main, ["s.yaml"])
