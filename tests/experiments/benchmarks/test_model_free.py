from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.benchmarks import model_free
from experiments.benchmarks.model_free import ModelFreeBenchmark, Ours, Products, Theirs
from layeredrl.off_policy import SACConfig, TD3Config
from tests.experiments.commands import call

pytestmark = pytest.mark.slow  # tianshou compiles what it needs for its returns

CONFIG = ModelFreeBenchmark(steps=3, n_stored=300)


SETTINGS = [SACConfig(hidden=(8,)), TD3Config(hidden=(8,), actor_every=3)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["sac", "td3"])
def test_both_sides_begin_alike_and_do_the_same_work(settings: SACConfig | TD3Config) -> None:
    ours, theirs = Ours(settings, CONFIG), Theirs(settings, CONFIG)
    actor = ours.level.algorithm.policy.actor.net
    obs = torch.randn(5, 17)
    torch.testing.assert_close(actor(obs)[0], theirs.algorithm.policy.actor.net(obs))
    values = torch.stack([one(obs, obs[:, :6])[:, 0] for one in (theirs.algorithm.critic, theirs.algorithm.critic2)])
    torch.testing.assert_close(ours.level.algorithm.critic(obs, obs[:, :6]), values)
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


class Counted(TorchDispatchMode):
    """Counts the multiplications of all matrix products."""

    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::bmm", "aten::baddbmm", "aten::addmm"):
            left = args[1] if func._schema.name.endswith("addbmm") else args[0]
            self.n += out.numel() * left.shape[-1]
        return out


@pytest.mark.parametrize("settings", SETTINGS, ids=["sac", "td3"])
def test_the_bare_products_are_those_of_an_update(settings: SACConfig | TD3Config) -> None:
    """But for those with one column, which are no products here."""
    ours, products = Ours(settings, CONFIG), Products(settings, CONFIG)
    with Counted() as bare:
        products.updates()
    ours.level.algorithm.train()
    with Counted() as own:
        ours.updates()
    assert own.n == pytest.approx(bare.n, rel=0.02)
    assert own.n <= bare.n


def test_the_table() -> None:
    call(model_free.main, "--rounds", 1, "--steps", 2, "--n-stored", 300, "--output", "t.md")
    rows = [line.split(" | ") for line in Path("t.md").read_text().splitlines() if " 2 x " in line]
    assert [row[:2] for row in rows] == [
        [f"| {name}, 2 x {width}", what]
        for width in (256, 64)
        for name in ("SAC", "TD3")
        for what in ("loop", "update alone")
    ]
    assert all(float(cell.strip(" |")) > 0 for row in rows for cell in row[2:])
