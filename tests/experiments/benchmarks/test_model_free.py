from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.benchmarks import model_free
from experiments.benchmarks.model_free import ModelFreeBenchmark, Ours, Theirs
from tests.experiments.commands import call

pytestmark = pytest.mark.slow  # tianshou compiles what it needs for its returns

CONFIG = ModelFreeBenchmark(steps=3, n_stored=300)


def test_both_sides_begin_alike_and_do_the_same_work() -> None:
    ours, theirs = Ours((8,), CONFIG), Theirs((8,), CONFIG)
    networks = ours.level.algorithm.state_dict(), theirs.algorithm.state_dict()
    for name in dict(theirs.algorithm.named_parameters()):
        assert torch.equal(networks[0][name], networks[1][name])
    mine, other = ours.level.replay.all(), theirs.buffer[theirs.buffer.sample_indices(0)]
    for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next"):
        np.testing.assert_array_equal(mine[key], other[key])
    before = {name: p.clone() for name, p in theirs.algorithm.named_parameters()}
    for _ in range(2):
        ours.loop()
        theirs.loop()
    assert len(ours.level.replay) == len(theirs.buffer) == 306
    assert ours.level.n_updates == 6
    steps = [
        side.critic_optim._optim.state_dict()["state"][0]["step"] for side in (ours.level.algorithm, theirs.algorithm)
    ]
    assert steps == [6, 6]
    assert all(not torch.equal(p, before[name]) for name, p in theirs.algorithm.named_parameters())


def test_the_table() -> None:
    call(model_free.main, "--rounds", 1, "--steps", 2, "--n-stored", 300, "--output", "t.md")
    rows = [line.split(" | ") for line in Path("t.md").read_text().splitlines() if line.startswith("| 2 x ")]
    assert [row[:2] for row in rows] == [
        [f"| 2 x {width}", what] for width in (256, 64) for what in ("loop", "update alone")
    ]
    assert all(float(cell.strip(" |")) > 0 for row in rows for cell in row[2:])
