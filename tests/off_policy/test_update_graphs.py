"""Policy updates as graphs, recorded as aten operations, against the same updates without graphs."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from layeredrl import off_policy
from layeredrl.off_policy import OffPolicyAlgorithm, SACConfig, TD3Config
from layeredrl.off_policy.update_graphs import UpdateGraphs

ACTIONS = spaces.Box(-1.0, 1.0, (2,))
CONFIGS = {
    "sac": SACConfig(hidden=(8, 8)),
    "sac, fixed alpha": SACConfig(hidden=(8,), alpha=0.2, critic_layer_norm=True),
    "td3": TD3Config(hidden=(8,), actor_every=3),
}
N = 6


class Record:
    """Captures a function as aten operations: what Python computes is frozen."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        self.captures += 1
        record = make_fx(function)()
        outputs = tuple(x.clone() for x in record())

        def replay() -> None:
            self.replays += 1
            for output, value in zip(outputs, record(), strict=True):
                output.copy_(value)

        return replay, outputs


def make(config: Any, capture: Any = None) -> OffPolicyAlgorithm:
    torch.manual_seed(0)
    algorithm = config.build(3, ACTIONS, torch.device("cpu"))
    algorithm.graphs = None if capture is None else UpdateGraphs(capture, "cpu")
    return algorithm


def batch(seed: int, n: int = N) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    obs, obs_next, act = (torch.randn(n, width, generator=generator) for width in (3, 3, 2))
    return Batch(obs=obs, obs_next=obs_next, act=act.tanh(), rew=obs[:, 0], discount=torch.full((n,), 0.9))


def train(algorithm: OffPolicyAlgorithm, seeds: range, change: Callable[[Batch], None] | None = None) -> list[dict]:
    metrics = []
    for seed in seeds:
        torch.manual_seed(seed)
        data = batch(seed)
        if change is not None:
            change(data)
        metrics.append({name: float(x) for name, x in off_policy.update(algorithm, data).items()})
    return metrics


def require_same(one: OffPolicyAlgorithm, other: OffPolicyAlgorithm) -> None:
    a, b = (off_policy.state_dict(x) for x in (one, other))
    torch.testing.assert_close(a["networks"], b["networks"])
    torch.testing.assert_close(a["optimizers"], b["optimizers"])
    assert a["counters"] == b["counters"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_replays_are_the_updates(config):
    record = Record()
    one, other = make(config), make(config, record)
    for expected, actual in zip(train(one, range(9)), train(other, range(9)), strict=True):
        assert actual == pytest.approx(expected, rel=1e-4, abs=1e-6)
    require_same(one, other)
    n_kinds = 2 if isinstance(config, TD3Config) else 1  # with and without a step of the actor
    assert record.captures == len(other.graphs) == n_kinds
    assert record.replays == 8 + n_kinds  # the first update makes the optimisers' state; each capture is tried once


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_replays_skip_what_is_not_finite(config):
    def spoil(data: Batch) -> None:
        data.rew[0] = math.nan

    record = Record()
    one, other = make(config), make(config, record)
    for algorithm in (one, other):
        train(algorithm, range(4))
        before = copy.deepcopy(off_policy.state_dict(algorithm)["networks"])
        (metrics,) = train(algorithm, range(4, 5), spoil)
        assert not math.isfinite(metrics["gradient_norm"])
        torch.testing.assert_close(off_policy.state_dict(algorithm)["networks"], before, rtol=0, atol=0)
        train(algorithm, range(5, 8))
    require_same(one, other)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_loaded_state_is_captured_anew(config):
    record = Record()
    one, other = make(config), make(config, record)
    train(one, range(4))
    saved = copy.deepcopy(off_policy.state_dict(one))
    train(other, range(20, 26))
    off_policy.load_state_dict(other, saved)
    train(one, range(4, 8))
    train(other, range(4, 8))
    require_same(one, other)


def test_another_size_or_learning_rate_is_another_capture():
    record = Record()
    one, other = make(CONFIGS["sac"]), make(CONFIGS["sac"], record)
    for algorithm in (one, other):
        train(algorithm, range(3))
        torch.manual_seed(0)
        off_policy.update(algorithm, batch(3, n=4))
        for optimizer in off_policy.optimizers(algorithm).values():
            optimizer.param_groups[0]["lr"] = 0.1
        train(algorithm, range(3, 5))
    require_same(one, other)
    assert record.captures == 3


def wrong(function: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
    """A capture whose replay does nothing."""
    return lambda: None, function()


def impossible(function: Callable[[], tuple[Tensor, ...]]) -> Any:
    function()
    raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("capture", "reason"), [(wrong, "its replay differs"), (impossible, "operation not permitted")]
)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_cannot_be_captured_runs_without_graphs_after_one_warning(config, capture, reason):
    one, other = make(config), make(config, capture)
    train(one, range(6))
    with pytest.warns(RuntimeWarning, match=f"policy updates are not replayed as CUDA graphs.*{reason}") as found:
        train(other, range(6))
    assert len(found) == 1
    assert other.graphs.refused
    require_same(one, other)


def test_updates_on_another_device_are_not_captured():
    algorithm = make(CONFIGS["sac"])
    algorithm.graphs = UpdateGraphs(impossible)  # for tensors of a GPU
    train(algorithm, range(3))
    assert len(algorithm.graphs) == 0
    assert not algorithm.graphs.refused


def test_a_copy_captures_anew():
    record = Record()
    one = make(CONFIGS["sac"], record)
    train(one, range(4))
    other = copy.deepcopy(one)
    assert len(other.graphs) == 0
    for algorithm in (one, other):
        train(algorithm, range(4, 7))
    require_same(one, other)
