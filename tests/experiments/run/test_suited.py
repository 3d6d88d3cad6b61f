"""Chosen settings are printed before a training, with reasons and the least time that it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.run import duration
from experiments.run.chosen import FACTS, as_json
from experiments.run.config import RunConfig, parse
from experiments.run.suited import print_choices
from layeredrl.environments import make_facts, make_task


def test_chosen_settings_are_printed_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["--env", "Pendulum-v1", "--planner.icem.horizon", "7"], print_choices)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Pendulum-v1: 3 observation dimensions, 1 action, episodes of at most 200 steps, ")
    assert "reward and termination to be learned" in first
    words = [line.split("  ")[1] for line in rest]
    assert "--common-noise" in words
    assert "--no-value" in words
    assert "--model.hidden 64 64" in words
    assert not any("horizon" in line for line in rest)  # given, not chosen
    assert all(len(line.split()) > 2 for line in rest)  # each has a reason
    typed = [word for line in words for word in line.split()]
    assert parse(["--env", "Pendulum-v1", *typed]).settings == parse(["--env", "Pendulum-v1"]).settings


def test_a_planner_that_is_not_chosen_is_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["--env", "Pendulum-v1", "--planner.kind", "cem"], print_choices)
    parse(["sac", "--env", "Pendulum-v1"], print_choices)
    output = capsys.readouterr().out
    assert "icem" not in output
    assert "td3" not in output
    assert "--sac.hidden 64 64" in output


def test_settings_that_guidance_replaces_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, listed in (([], True), (["--guided"], False)):
        parse(["--env", "MountainCarContinuous-v0", *flags], print_choices)
        output = capsys.readouterr().out
        assert ("--value" in output) == ("--discount" in output) == listed


def test_a_run_that_goes_on_keeps_the_facts_of_its_task(tmp_path: Path) -> None:
    words = ["--env", "Pendulum-v1", "--runs-dir", str(tmp_path), "--name", "r"]
    first = parse(words)
    facts = replace(make_facts("Pendulum-v1"), state_dim=30)  # an environment may differ each time
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / FACTS).write_text(as_json(facts))
    assert parse(words).settings.model.hidden == (200, 200, 200)
    assert parse([*words, "--fresh"]).settings == first.settings
    (tmp_path / "r" / FACTS).write_text("{")
    assert parse(words).settings == first.settings


def test_values_that_only_fit_the_chosen_settings_are_accepted() -> None:
    assert parse(["--env", "CartPole-v1", "--planner.icem.n-elites", "50"]).settings.planner.icem.n_elites == 50


@pytest.mark.parametrize(("limit", "told"), [(1e-6, True), (1e9, False)])
def test_a_long_training_says_so(
    limit: float, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config: RunConfig[Any] = parse(["pets", "--preset", "debug"])
    monkeypatch.setattr(duration, "LONG_S", limit)
    task = make_task(config.env)
    duration.print_long(config, task, 10_000)
    assert ("10,000 environment steps will take at least" in capsys.readouterr().out) == told
    duration.print_long(config, task, 100)
    assert not capsys.readouterr().out
