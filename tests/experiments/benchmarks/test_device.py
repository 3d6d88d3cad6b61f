"""The command for a GPU, in its quick mode on the CPU."""

from pathlib import Path

import pytest
import torch

from experiments.benchmarks import device
from experiments.benchmarks.device import Clock, arrived, balanced, matrix_rate
from layeredrl.episodes import Episode
from tests.experiments.commands import call


def test_the_quick_mode_measures_everything(tmp_path: Path) -> None:
    output = tmp_path / "device.md"
    call(device.main, "--quick", "--device", "cpu", "--output", output)
    rows = [line.strip("| ").split(" | ") for line in output.read_text().splitlines() if line.startswith("| ")]
    values = {row[0]: row[1:] for row in rows}
    for name in (
        "rollout, 8 candidates, float32, eager",
        "rollout, 16 candidates, bfloat16, eager",
        "bare products, 16 candidates, float32",
        "1 environments",
        "2 environments",
        "SAC, eager",
        "random actions",
        "SAC acts, 8 updates",
    ):
        assert all(float(cell) > 0 for cell in values[name])
    trained = {name: cells for name, cells in values.items() if cells[-1] in ("yes", "no")}
    assert len(trained) == 2
    for n_steps, seconds, rate, _ in trained.values():
        assert float(rate) == pytest.approx(float(n_steps) / float(seconds), rel=0.01)
    assert "--quick" in output.read_text()


def test_a_measurement_is_the_mean_of_many_calls() -> None:
    calls = []
    clock = Clock(torch.device("cpu"), 0.0)
    assert clock(lambda: calls.append(1)) >= 0
    assert len(calls) == 4  # three before
    assert matrix_rate(clock, 8, torch.float32) > 0


def test_when_training_ends() -> None:
    def episode(value: float, success: bool) -> Episode:
        return Episode(0, value, 1, 1, success)

    assert not balanced([])
    assert balanced([episode(3.0, False), episode(200.0, False)])
    assert not balanced([episode(199.0, False)])
    assert not arrived([episode(0.0, True)] * 99)
    assert arrived([episode(0.0, False)] * 50 + [episode(0.0, True)] * 95 + [episode(0.0, False)] * 5)
    assert not arrived([episode(0.0, True)] * 94 + [episode(0.0, False)] * 6)
