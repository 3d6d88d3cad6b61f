"""Updates of SAC and TD3: against tianshou's own, without synchronisation, and skipped where they are not finite."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layeredrl import off_policy
from layeredrl.off_policy import SACConfig, TD3Config
from tests.off_policy.test_algorithm import make, make_batch, make_standard, moved, parameters
from tests.recording import leaves

CONFIGS = {
    "sac": SACConfig(hidden=(8, 9), learning_rate=1e-2, initial_alpha=0.5),
    "sac with a fixed alpha": SACConfig(hidden=(8,), learning_rate=1e-2, alpha=0.3),
    "sac with layer norm": SACConfig(hidden=(8, 9), learning_rate=1e-2, critic_layer_norm=True, tau=0.1),
    "td3": TD3Config(hidden=(8, 9), learning_rate=1e-2),
    "td3 with layer norm": TD3Config(hidden=(8,), learning_rate=1e-2, critic_layer_norm=True, actor_every=3),
}
ALL = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def plain_parameters(algorithm, name):
    """Parameters of a network of tianshou's algorithm; of both critics, stacked as here."""
    if name.startswith("critic"):
        pair = (algorithm.get_submodule(one) for one in (name, name.replace("critic", "critic2")))
        both = [torch.stack(tensors) for tensors in zip(*(one.parameters() for one in pair), strict=True)]
    else:
        both = [p.unsqueeze(0) for p in algorithm.get_submodule(name).parameters()]
    return [p.mT if p.ndim == 3 else p.unsqueeze(1) for p in both]


def assert_updates_agree(config, n_updates):
    """Update this library's and tianshou's algorithm from the same networks, with the same batches and noise."""
    algorithm, standard = make(config), make_standard(config)
    networks = ["policy.actor", "critic", "critic_old", *(["actor_old"] if isinstance(config, TD3Config) else [])]
    for i in range(n_updates):
        metrics = []
        for one in (algorithm, standard):
            torch.manual_seed(i)
            metrics.append({key: float(value) for key, value in off_policy.update(one, make_batch(i)).items()})
        assert metrics[0].pop("gradient_norm") > 0
        assert metrics[0] == pytest.approx(metrics[1], abs=1e-4, rel=1e-4)
        for name in networks:
            own = [*algorithm.get_submodule(name).parameters()]
            for p, expected in zip(own, plain_parameters(standard, name), strict=True):
                torch.testing.assert_close(p, expected, atol=1e-4, rtol=1e-3)


@ALL
def test_updates_are_those_of_tianshou(config):
    assert_updates_agree(config, n_updates=20)


@pytest.mark.parametrize(("kind", "pessimism"), [(SACConfig, 0.0), (SACConfig, 0.4), (TD3Config, 0.0)])
def test_pessimism_is_the_share_of_half_the_difference_below_the_mean(kind, pessimism, monkeypatch):
    """In targets and in the loss of SAC's policy, where tianshou takes the minimum."""
    monkeypatch.setattr(torch, "min", lambda a, b: (a + b) / 2 - pessimism * (a - b).abs() / 2)
    assert_updates_agree(kind(hidden=(8, 9), learning_rate=1e-2, pessimism=pessimism), n_updates=5)


class NoReading(TorchDispatchMode):
    """Forbids operations that read a tensor's value, for which a GPU would have to wait."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@ALL
def test_an_update_reads_no_value(config):
    algorithm = make(config)
    off_policy.update(algorithm, make_batch())
    with NoReading():
        with pytest.raises(AssertionError):
            float(torch.ones(()))
        for i in range(3):
            off_policy.update(algorithm, make_batch(i))


@ALL
def test_optimizers_may_be_captured_on_a_gpu(config):
    for device, captured in (("cpu", False), ("cuda", True)):
        factory = config._adam(1e-3, torch.device(device))
        assert factory.kwargs == {"lr": 1e-3, "fused": True, "capturable": captured}


@ALL
@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e30])
def test_rewards_that_are_not_finite_change_nothing(config, value):
    """Also those whose gradient is too large to be squared, with which Adam can do nothing."""
    algorithm, batch = make(config), make_batch()
    off_policy.update(algorithm, batch)
    before, state = parameters(algorithm), leaves(off_policy.state_dict(algorithm)["optimizers"])
    batch.rew[2] = value
    for _ in range(3):  # the actor of TD3 would be updated in one of them
        assert not math.isfinite(off_policy.update(algorithm, batch)["gradient_norm"])
        assert off_policy.non_finite_gradient(algorithm).startswith("critic.")
    assert not moved(algorithm, before)
    assert leaves(off_policy.state_dict(algorithm)["optimizers"]) == state
    for i in range(3):
        assert math.isfinite(off_policy.update(algorithm, make_batch(i))["gradient_norm"])
    assert len(moved(algorithm, before)) == len(before)
    assert all(p.isfinite().all() for p in algorithm.parameters())


@ALL
def test_a_gradient_of_the_actor_that_is_not_finite_changes_the_critics_only(config, monkeypatch):
    algorithm = make(config)
    for i in range(3):
        off_policy.update(algorithm, make_batch(i))
    net, before = algorithm.policy.actor.net, parameters(algorithm)
    state = leaves(off_policy.state_dict(algorithm)["optimizers"]["optimizer 0"])
    with monkeypatch.context() as patch:
        original = net.backward
        patch.setattr(net, "backward", lambda gradient, tape: original(gradient * math.inf, tape))
        norms = [float(off_policy.update(algorithm, make_batch(i))["gradient_norm"]) for i in range(3)]
    assert not all(math.isfinite(norm) for norm in norms)  # TD3 updates its actor in one of them
    assert off_policy.non_finite_gradient(algorithm).startswith("policy.actor.")
    assert moved(algorithm, before) == {name for name in before if name.startswith("critic.")}
    assert leaves(off_policy.state_dict(algorithm)["optimizers"]["optimizer 0"]) == state
    for i in range(3):
        metrics = off_policy.update(algorithm, make_batch(i))
        assert all(math.isfinite(value) for value in metrics.values())


@ALL
def test_layer_norm_is_in_the_critics_only(config):
    algorithm = make(config)
    for network, expected in ((algorithm.policy.actor, False), (algorithm.critic, config.critic_layer_norm)):
        assert any("LayerNorm" in type(module).__name__ for module in network.modules()) == expected


def test_tianshou_s_trainer_is_refused():
    with pytest.raises(NotImplementedError, match="StackedSAC is trained by PolicyLevel, or by its `learn`"):
        make(CONFIGS["sac"])._update_with_batch(make_batch())
