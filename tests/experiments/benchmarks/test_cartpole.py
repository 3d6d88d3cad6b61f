import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio.v3 as iio
import pytest

from experiments.benchmarks import cartpole
from experiments.benchmarks.cartpole import CartPoleBenchmark, Result, _solved_at, table
from tests.experiments.commands import call, run_train

STEPS = [20, 120, 320, 520, 720, 920]


@pytest.mark.parametrize(
    ("returns", "solved_at"),
    [
        ([20, 100, 200, 200, 200, 200], 720),  # at the end of the third, whatever follows
        ([200, 200, 200, 10, 10, 10], 320),
        ([200, 200, 199, 200, 200, 200], 920),
        ([200, 200, 199, 200, 200, 10], None),
        ([10, 10, 10, 10, 200, 200], None),
    ],
)
def test_solved_is_three_full_episodes_in_a_row(returns: list[float], solved_at: int | None) -> None:
    assert _solved_at(STEPS, returns, 200) == solved_at


def test_without_episodes_nothing_is_solved() -> None:
    assert _solved_at([], [], 200) is None


def test_the_table_says_what_was_measured() -> None:
    config = CartPoleBenchmark(seeds=(0, 1, 2), n_envs=2, output=Path("t.md"), train_args=("--preset", "paper"))
    results = [
        Result(0, 700, 0.01, STEPS, [1.0, 2.0]),
        Result(1, None, 0.03, STEPS, [3.5]),
        Result(2, 900, 0.02, STEPS, [200.0]),
    ]
    text = table(config, results)
    assert "    python -m experiments.benchmarks.cartpole --seeds 0 1 2 --n-envs 2 -- --preset paper\n" in text
    assert "| 0 | 700 | 0.0100 | 1, 2 |\n| 1 | not | 0.0300 | 3.5 |\n| 2 | 900 | 0.0200 | 200 |\n" in text
    assert "2 of 3 solved; steps: median 800, largest 900; CPU seconds per step: median 0.0200, largest 0.0300." in text


def test_a_table_in_which_nothing_is_solved() -> None:
    text = table(CartPoleBenchmark(), [Result(0, None, 0.01, [], [])])
    assert "0 of 1 solved; steps: none;" in text
    assert "python -m experiments.benchmarks.cartpole --seeds 0 1 2 3 4 5 6 7 8 9\n" in text


def test_the_command_trains_every_seed_and_reads_its_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: list[str], **_: Any) -> None:
        assert command[1:3] == ["-m", "experiments.train"]
        run_train(*command[3:])

    monkeypatch.setattr(cartpole, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": run}))  # a run calls git
    shorter = ["--preset", "debug", "--trainer.n-total-env-steps", 80]
    call(cartpole.main, "--seeds", 3, 4, "--output", "out/t.md", "--", *shorter)
    rows = [line for line in Path("out/t.md").read_text().splitlines() if line.startswith(("| 3 |", "| 4 |"))]
    assert len(rows) == 2
    assert all("| not | 0.0" in row for row in rows)
    assert iio.imread("out/t.png").ndim == 3
    assert "Result(seed=4" in capsys.readouterr().out
