"""What a person reads before a training: chosen settings with reasons, and how long it takes at least."""

from typing import Any

import pytest

from experiments.run import duration
from experiments.run.config import RunConfig, parse
from experiments.run.suited import print_choices


def test_chosen_settings_are_printed_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["--env", "Pendulum-v1", "--planner.icem.horizon", "7"], print_choices)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Pendulum-v1: 3 observed numbers, 1 action, episodes of at most 200 steps, ")
    assert "reward and termination to be learned" in first
    words = [line.split("  ")[1] for line in rest]
    assert "--common-noise" in words
    assert "--no-value" in words
    assert "--model.hidden 64 64" in words
    assert not any("horizon" in line for line in rest)  # given, not chosen
    assert all(len(line.split()) > 2 for line in rest)  # each has a reason
    typed = [word for line in words for word in line.split()]
    assert parse(["--env", "Pendulum-v1", *typed]).settings == parse(["--env", "Pendulum-v1"]).settings


@pytest.mark.parametrize(("limit", "told"), [(1e-6, True), (1e9, False)])
def test_a_long_training_says_so(
    limit: float, told: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config: RunConfig[Any] = parse(["pets", "--preset", "debug"])
    monkeypatch.setattr(duration, "LONG_S", limit)
    duration.print_long(config, 10_000)
    assert ("10,000 environment steps will take at least" in capsys.readouterr().out) == told
    duration.print_long(config, 100)
    assert not capsys.readouterr().out
