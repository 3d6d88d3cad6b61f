"""Study files, and the trials of a study."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.run.config import parse
from experiments.sweep import __main__ as sweep
from experiments.sweep.folder import WORDS
from experiments.sweep.study import Choice, Range, Search, load
from tests.experiments.conftest import Refusal
from tests.experiments.sweeps import RUNS, a_study

ROOT = Path(__file__).parents[3]


def test_a_grid_is_every_combination_under_names_that_stay() -> None:
    grid = {"sac.learning_rate": (0.1, "1e-3"), "n_envs": (1, 4)}
    study = a_study(agents={"sac": (), "fast": ("sac", "--preset", "debug", "--steps", 7)}, grid=grid)
    trials = {trial.name: trial for trial in study.trials()}
    assert len(trials) == 2 * 2 * 4
    one = trials["fast-E-v0-learning_rate=0.1-n_envs=4-seed1"]
    assert one.words == (
        *("sac", "--env", "E-v0", "--seed", "1", "--steps", "7", "--preset", "debug"),
        *("--sac.learning-rate", "0.1", "--n-envs", "4"),
    )
    more = replace(study, seeds=(1, 2, 0), grid={**grid, "n_envs": (2, 1, 4)}, environments=("F/x:G-v0", "E-v0"))
    others = {trial.name: trial for trial in more.trials()}
    assert trials.items() <= others.items()


def test_settings_of_an_agent_and_of_the_grid_replace_common_ones() -> None:
    study = a_study(
        agents={"mine": {"agent": "pets", "pictures": True, "icem": {"n_samples": 9}}},
        common=("--no-pictures", "--icem.n_samples=3", "--wandb-tags", "a", "b"),
        grid={"icem.n-samples": (5,)},
        seeds=(0,),
    )
    (trial,) = study.trials()
    assert trial.words[5:] == ("--pictures", "--icem.n-samples", "5", "--wandb-tags", "a", "b")
    assert trial.words[0] == "pets"


def test_an_environment_has_settings_of_its_own_and_may_be_left_out_for_an_agent() -> None:
    study = a_study(
        agents={"a": {}, "b": {"steps": 7}},
        environments=("E-v0", "F-v0"),
        by_environment={"F-v0": {"steps": 6, "x": 1}},
        skip={"b": {"E-v0": "no such actions"}},
        seeds=(0,),
    )
    words = {trial.name: trial.words[5:] for trial in study.trials()}
    assert words == {
        "a-E-v0-seed0": ("--steps", "5"),
        "a-F-v0-seed0": ("--steps", "6", "--x", "1"),
        "b-F-v0-seed0": ("--steps", "7", "--x", "1"),
    }


def test_a_search_draws_the_same_again() -> None:
    kinds = {"a.b": Range(1e-5, 1e-2, log=True), "n": Range(1, 8, integer=True), "c": Choice(("x", None))}
    study = a_study(common=(), search=Search(20, kinds), seeds=(0,))
    drawn = [trial.settings for trial in study.trials()]
    assert [trial.settings for trial in study.trials()] == drawn
    assert [trial.name for trial in study.trials()][7] == "a-E-v0-draw007-seed0"
    assert all(1e-5 <= one["a.b"] <= 1e-2 and one["n"] in range(1, 9) and one["c"] in ("x", None) for one in drawn)
    assert len({one["a.b"] for one in drawn}) == 20
    assert sum(one["a.b"] < 1e-3 for one in drawn) > 10  # two of three decades
    longer = replace(study, search=Search(30, {**kinds, "d": Range(0, 1)}))
    assert [{**one, "d": 0} for one in drawn] == [{**trial.settings, "d": 0} for trial in longer.trials()][:20]
    assert [trial.settings for trial in replace(study, search=Search(20, kinds, seed=1)).trials()] != drawn


def test_yaml_and_python_say_the_same() -> None:
    Path("a.yaml").write_text(
        "{name: s, agents: {a: [pets, --x, 1]}, environments: [E-v0], seeds: [0, 1, 2], common: {pictures: false},"
        " search: {n_trials: 2, settings: {x: {low: 1e-3, high: 1}, y: {values: [1, b]}}}, resources: {gpus: 0.25}}"
    )
    Path("a.py").write_text(
        "from experiments.sweep import Choice, Range, Resources, Search, Study\n"
        "study = Study('s', {'a': ('pets', '--x', 1)}, ('E-v0',), range(3), {'pictures': False}, resources="
        "Resources(gpus=0.25), search=Search(2, {'x': Range(0.001, 1), 'y': Choice((1, 'b'))}))\n"
    )
    assert load(Path("a.yaml")) == load(Path("a.py"))


def test_the_study_of_cart_poles_is_what_train_takes() -> None:
    trials = load(ROOT / "experiments/studies/cartpole.py").trials()
    configs = {trial.name: parse(trial.arguments(Path("runs/cartpole"))) for trial in trials}
    assert len(configs) == 9
    assert {(config.agent, config.seed) for config in configs.values()} == {
        (agent, seed) for agent in ("pets", "sac", "random") for seed in range(3)
    }
    for name, config in configs.items():
        assert config.folder == Path("runs/cartpole") / name
        assert not config.pictures


GOOD = "name: s\nagents: {a: []}\nenvironments: [E]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read"),
        ("[1]", "does not hold the fields of a study"),
        ("name: s", "agents: Field required"),
        (GOOD + "sedes: [1]", "sedes: Unexpected keyword argument"),
        (GOOD + "seeds: [1, 1]", "seeds has a value twice: 1, 1"),
        (GOOD + "seeds: []", "seeds is empty"),
        (GOOD + "grid: {x: [1, 1]}", "grid: x has a value twice"),
        (GOOD + "grid: {x: 3}", "grid.x: Input should be a list"),
        (GOOD + "common: [--seed, 3]", "common sets seed, which a study sets in another way: seeds"),
        (GOOD + "common: {fresh: true}", "common sets fresh"),
        (GOOD + "common: [x]", "common begins with 'x', expected an option"),
        (GOOD + "grid: {x: [1]}\nsearch: {n_trials: 1, settings: {y: {values: [1]}}}", "a grid or a search, not both"),
        (GOOD + "search: {n_trials: 1, settings: {y: {low: 2, high: 1}}}", "expected low < high"),
        (GOOD + "resources: {gpus: 1.5}", "gpus is 1.5, expected a share below 1 or a whole number"),
        (GOOD + "by_environment: {F: {x: 1}}", "by_environment names 'F', expected one of E"),
        (GOOD + "skip: {b: {E: why}}", "skip names 'b', expected one of a"),
        (GOOD + "skip: {a: {F: why}}", "skip: a names 'F', expected one of E"),
        (GOOD + "retries: -1", "retries is -1, expected at least 0"),
        (GOOD.replace("name: s", "name: a/b"), "'a/b' is not the name of a folder"),
        (GOOD.replace("[E]", "[a/b, a-b]"), "two trials would be called a-a-b-seed0"),
    ],
)
def test_a_bad_study_gives_one_line(text: str, message: str, refusal: Refusal) -> None:
    Path("bad.yaml").write_text(text)
    assert message in refusal(sweep.main, ["bad.yaml"])


def test_bad_arguments_give_one_line(refusal: Refusal) -> None:
    Path("good.yaml").write_text(GOOD)
    Path("bad.py").write_text("1 / 0")
    Path("none.py").write_text("studies = 3")
    assert "study.toml is no study" in refusal(sweep.main, ["study.toml"])
    assert "missing.py is not there" in refusal(sweep.main, ["missing.py"])
    assert "bad.py cannot be read: ZeroDivisionError" in refusal(sweep.main, ["bad.py"])
    assert "none.py does not hold a Study called study" in refusal(sweep.main, ["none.py"])
    assert "--cpus is 0" in refusal(sweep.main, ["good.yaml", "--cpus", "0"])
    assert "Unrecognized options: --gpus" in refusal(sweep.main, ["good.yaml", "--gpus"])
    RUNS.mkdir(parents=True)
    (RUNS / "config.json").touch()
    assert "the folder of a run, not of a study" in refusal(sweep.main, ["good.yaml"])


def test_the_commands_of_a_study_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good.yaml").write_text(GOOD.replace("a: []", "a: [], b: []") + "skip: {b: {E: too slow}}")
    sweep.main(["good.yaml", "--list", "--runs-dir", "a b"])
    command = "python -m experiments.train a --env E --seed 0 --runs-dir 'a b/s' --name a-E-seed0\n"
    assert capsys.readouterr() == (command, "s: b is left out in E: too slow\n")


def test_a_finished_study_needs_no_ray(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.yaml").write_text(GOOD)
    run = RUNS / "a-E-seed0"
    run.mkdir(parents=True)
    (run / "summary.json").touch()
    (run / WORDS).write_text('["a", "--env", "E", "--seed", "0"]')
    monkeypatch.setitem(sys.modules, "ray", None)
    sweep.main(["good.yaml"])
    assert capsys.readouterr().out == "s: all 1 trials are finished\n"


def test_without_ray_the_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("good.yaml").write_text(GOOD)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # restores the variables that the command sets
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["good.yaml"])
    assert "expected the extra ray: pip install 'layeredrl[ray]'" in capsys.readouterr().err


def test_reading_a_study_loads_neither_ray_nor_torch() -> None:
    code = "import sys, experiments.sweep.training, experiments.sweep.search"
    code += "; assert not {'ray', 'optuna', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
