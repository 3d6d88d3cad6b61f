"""Study files: every trial's command can be parsed, and does what its name says."""

import contextlib
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.run.config import parse
from experiments.sweep.study import load
from layeredrl.environments import UnknownEnvironmentError

FOLDER = Path(__file__).parents[3] / "experiments" / "studies"
STUDIES = sorted(path for path in FOLDER.glob("*.py") if "study = Study(" in path.read_text())
RESULTS = FOLDER.parent / "results"


def configs(name: str) -> dict[str, object]:
    """Settings of the first seed by the study's name of the agent."""
    trials = load(FOLDER / f"{name}.py").trials()
    found = {}
    for trial in trials:
        with contextlib.suppress(UnknownEnvironmentError):  # of an extra that is not installed
            if trial.seed == 0:
                found[trial.agent] = parse([*trial.arguments(Path("runs"))])
    return found


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_command_can_be_parsed(path: Path) -> None:
    study = load(path)
    assert study.name == path.stem
    for agent, config in configs(path.stem).items():
        assert config.env in study.environments
        goal = config.trainer.stop_at_return
        assert (goal is not None) == (agent == "sac" and path.stem.startswith("pets_"))


def test_the_first_try_sets_nothing_but_the_steps_of_each_task() -> None:
    study = load(FOLDER / "first_try.py")
    found: dict[str, set[str]] = {}
    for trial in study.trials():
        agent, *words = trial.arguments(Path("runs"))
        flags = {word: after for word, after in pairwise([*words, ""]) if word.startswith("--")}
        steps = study.by_environment[trial.environment]["trainer.n_total_env_steps"]
        given = {"--env": trial.environment, "--seed": str(trial.seed), "--trainer.n-total-env-steps": str(steps)}
        assert agent == trial.agent
        assert flags.items() >= given.items()
        assert flags.keys() - given == {"--no-pictures", "--no-tensorboard", "--runs-dir", "--name"}
        found.setdefault(trial.environment, set()).add(trial.agent)
    assert len(found) == 13
    assert {env for env, agents in found.items() if "sac" not in agents} == {"CartPole-v1", "Acrobot-v1"}


@pytest.mark.parametrize("task", ["cartpole", "pusher"])
def test_ensembles_differ_as_their_names_say(task: str) -> None:
    found = configs(f"pets_{task}")
    models = {name: config.settings.model for name, config in found.items() if name != "sac"}
    assert {model.n_models * model.n_particles_per_model for model in models.values()} == {5}
    assert {name for name, model in models.items() if model.deterministic} == {"DE"}
    assert {name for name, model in models.items() if model.n_models == 1} == {"P"}
    assert {name for name, model in models.items() if model.propagation == "ts1"} == {"PE-TS1"}
    assert models["fast"].propagation == "tsinf"


def test_documented_commands_name_files_that_exist() -> None:
    for path in STUDIES:
        text = path.read_text()
        assert f"experiments/studies/{path.name}" in text
        if "Long results: " in text:
            first, *more = text.split("Long results: experiments/results/")[1].split(".\n")[0].split(", ")
            assert all((RESULTS / name).is_file() for name in (first, *more))
