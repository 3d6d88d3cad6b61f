"""Searches that learn: what they are told, and that a study which was stopped goes on with the same draws."""

import io
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments.sweep import __main__ as sweep
from experiments.sweep.guard import Attempt, Told
from experiments.sweep.search import Known
from experiments.sweep.space import Value
from experiments.sweep.study import Range, Search, Study
from tests.experiments.conftest import Refusal
from tests.experiments.sweeps import RUNS, Script, a_study, make, prepare, table

SEARCH = Search(4, {"x": Range(0, 1)}, method="optuna")


class Recorder:
    """In place of Optuna: draws that depend on all that it is told, which it keeps."""

    def __init__(self) -> None:
        self.told: list[Known] = []
        self.seeds: list[int] = []

    def __call__(self, search: Search, seed: int, known: Known) -> dict[str, Value]:
        self.told.append(known)
        self.seeds.append(seed)
        return {name: random.Random(f"{seed}{known}").random() for name in search.settings}


def finish(attempt: Attempt, columns: str = "env/episode_return") -> Told:
    """End a trial with a return of its x, and of its seed as hundreds."""
    words = dict(zip(attempt.words[1::2], attempt.words[2::2], strict=True))
    folder = Path(attempt.folder)
    folder.mkdir(parents=True)
    value = float(words["--x"]) + 100 * int(words["--seed"])
    (folder / "metrics.csv").write_text(f"n_total_env_steps,{columns},time/seconds\n1,{value!r},1.0\n")
    (folder / "summary.json").touch()
    attempt.file("done").write_text(json.dumps(attempt.words))
    return {"outcome": "done", "message": ""}


def searching(**changes: object) -> Study:
    return a_study(**{"search": SEARCH, "common": (), "seeds": (0,), **changes})


def drawn(folder: Path = RUNS) -> list[dict[str, object]]:
    return json.loads((folder / "draws.json").read_text())["draws"]


def test_each_agent_is_searched_on_its_own_and_seeds_are_averaged() -> None:
    study = searching(agents={"a": (), "b": ()}, seeds=(0, 1))
    made = make(study, pool := Script(finish), suggest=(recorder := Recorder()))
    assert made.done
    assert len(pool.attempts) == len(table()) == 2 * 4 * 2
    assert [attempt.trial for attempt in pool.attempts][1:4] == [
        "a-E-v0-draw000-seed1",
        "b-E-v0-draw000-seed0",
        "b-E-v0-draw000-seed1",
    ]
    assert [len(known) for known in recorder.told] == [0, 0, 1, 1, 2, 2, 3, 3]
    of_b = [one["settings"] for one in drawn() if one["agent"] == "b"]
    assert recorder.told[-1] == [(settings, pytest.approx(settings["x"] + 50)) for settings in of_b[:3]]
    assert len(set(recorder.seeds)) == 8


@pytest.mark.parametrize("n_tries", [1, 3, 6, 7])
def test_a_search_that_is_killed_goes_on_with_the_same_draws(n_tries: int) -> None:
    study = searching(agents={"a": (), "b": ()})
    assert make(study, Script(finish), Path("runs/whole"), suggest=Recorder()).done

    def tell(attempt: Attempt) -> Told:
        if len(pool.attempts) > n_tries:
            raise KeyboardInterrupt
        return finish(attempt)

    pool = Script(tell)
    with pytest.raises(KeyboardInterrupt):
        make(study, pool, suggest=Recorder())
    assert make(study, again := Script(finish), suggest=Recorder()).done
    assert drawn() == drawn(Path("runs/whole"))
    assert len(again.attempts) == 8 - n_tries  # those that had ended are not made again


def test_a_longer_search_has_the_same_draws_first() -> None:
    assert make(searching(), Script(finish), suggest=Recorder()).done
    first = drawn()
    longer = searching(search=replace(SEARCH, n_trials=6))
    assert make(longer, pool := Script(finish), suggest=Recorder()).done
    assert len(pool.attempts) == 2
    assert drawn()[:4] == first
    shorter = searching(search=replace(SEARCH, n_trials=2))
    assert make(shorter, pool := Script(finish), suggest=Recorder()).done
    assert not pool.attempts
    assert len(table()) == 2
    assert len(drawn()) == 6


def test_what_fails_has_no_score() -> None:
    def tell(attempt: Attempt) -> Told:
        bad = "draw000" in attempt.trial
        return {"outcome": "bad", "message": "no"} if bad else finish(attempt)

    study = searching(seeds=(0, 1))
    made = make(study, Script(tell), suggest=(recorder := Recorder()))
    assert not made.done
    assert [score is None for _, score in recorder.told[-1]] == [True, False, False]


@pytest.mark.parametrize(("metric", "n_learned"), [("return", 0), ("evaluation", 3)])
def test_a_metric_that_no_trial_has_is_told(metric: str, n_learned: int) -> None:
    said = io.StringIO()
    study = searching(search=replace(SEARCH, metric=metric))
    pool = Script(lambda attempt: finish(attempt, "eval/episode_return"))
    pool.room = lambda: 1
    make(study, pool, suggest=(recorder := Recorder()), console=Console(file=said))
    assert sum(score is not None for _, score in recorder.told[-1]) == n_learned
    assert ("draw000-seed0: has no return to learn from" in said.getvalue()) == (n_learned == 0)


def test_draws_wait_for_room_and_none_are_made_once_the_study_stops() -> None:
    pool = Script(lambda attempt: {"outcome": "stopped", "message": ""})
    made = prepare(searching(), pool, suggest=(recorder := Recorder()))
    made.run(lambda: True)
    assert len(recorder.told) == 2
    assert recorder.told[1] == [(drawn()[0]["settings"], None)]  # under way
    assert not made.done


def test_a_draw_that_cannot_be_kept_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "WRITE_S", 0.0)
    said, path = io.StringIO(), RUNS / "draws.json.new.tmp"
    path.mkdir(parents=True)

    def stop() -> bool:
        assert path.is_dir() != bool(pool.attempts)
        if path.is_dir():
            path.rmdir()
        return False

    made = prepare(searching(), pool := Script(finish), suggest=Recorder(), console=Console(file=said))
    made.run(stop)
    assert made.done
    assert "draws.json cannot be written" in said.getvalue()


YAML = "name: s\nagents: {a: []}\nenvironments: [E]\nsearch: {n_trials: 3, settings: {x: {low: 0, high: 1}}, "


def test_draws_that_are_known_are_listed(capsys: pytest.CaptureFixture[str], refusal: Refusal) -> None:
    Path("s.yaml").write_text(f"{YAML} method: optuna}}")
    sweep.main(["s.yaml", "--list"])
    said, noted = capsys.readouterr()
    assert said == ""
    assert noted == "the draws of this search are not known beforehand; 0 of 3 are made\n"
    draw = {"agent": "a", "environment": "E", "number": 0, "settings": {"x": 0.25}}
    ranges = {"x": {"low": 0.0, "high": 1.0, "log": False, "integer": False}}
    RUNS.mkdir(parents=True)
    (RUNS / "draws.json").write_text(
        json.dumps({"search": {"settings": ranges, "seed": 0, "metric": "return"}, "draws": [draw]})
    )
    sweep.main(["s.yaml", "--list"])
    said, noted = capsys.readouterr()
    assert said == (
        "python -m experiments.train a --env E --seed 0 --x 0.25 --runs-dir runs/s --name a-E-draw000-seed0\n"
    )
    assert "1 of 3 are made" in noted
    Path("s.yaml").write_text(f"{YAML} method: optuna, seed: 7}}")
    assert "has draws from other settings than those of the search now" in refusal(sweep.main, ["s.yaml", "--list"])


def test_searches_that_make_no_sense_give_one_line(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("s.yaml").write_text(f"{YAML} metric: evaluation}}")
    assert "a search at random looks at no metric" in refusal(sweep.main, ["s.yaml"])
    Path("s.yaml").write_text(f"{YAML} method: grid}}")
    assert "search.method: Input should be 'random' or 'optuna'" in refusal(sweep.main, ["s.yaml"])
    Path("s.yaml").write_text(f"{YAML} method: optuna, metric: loss}}")
    assert "search.metric: Input should be 'return' or 'evaluation'" in refusal(sweep.main, ["s.yaml"])
    Path("s.yaml").write_text(f"{YAML} method: optuna}}")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "a search with optuna needs it and Ray Tune" in refusal(sweep.main, ["s.yaml"])
    RUNS.mkdir(parents=True)
    (RUNS / "draws.json").write_text('{"search": {"settings": {"y": {}}}, "draws": []}')
    assert "has draws from other settings" in refusal(sweep.main, ["s.yaml"])
    (RUNS / "draws.json").write_text("[]")
    assert "draws.json cannot be read: TypeError" in refusal(sweep.main, ["s.yaml"])
