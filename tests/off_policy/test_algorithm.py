"""Training on relabelled batches: targets, two critics, gradients that are not finite, and states."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.ddpg import DDPG
from tianshou.algorithm.modelfree.sac import SAC
from tianshou.algorithm.optim import LRSchedulerFactory, TorchOptimizerFactory
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step

from experiments.benchmarks.tianshou_algorithms import make_tianshou
from layeredrl import off_policy
from layeredrl.off_policy import NonFiniteGradientError, SACConfig, TD3Config
from layeredrl.storage import Checkpoints
from tests.recording import leaves

CPU = torch.device("cpu")
INPUTS, N = 3, 7
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
TUNED = SACConfig(hidden=(8,), learning_rate=1e-2, initial_alpha=0.5)
FIXED = SACConfig(hidden=(8,), learning_rate=1e-2, alpha=0.3)
DELAYED = TD3Config(hidden=(8,), learning_rate=1e-2)
CONFIGS = {"sac": TUNED, "sac with a fixed alpha": FIXED, "td3": DELAYED}


def make(config, seed=0, n_inputs=INPUTS):
    torch.manual_seed(seed)
    return config.build(n_inputs, ACTIONS, CPU)


def make_standard(config, seed=0):
    """The algorithm of tianshou itself."""
    torch.manual_seed(seed)
    return make_tianshou(config, INPUTS, ACTIONS)


def make_batch(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(n, INPUTS, generator=generator),
        obs_next=torch.randn(n, INPUTS, generator=generator),
        act=torch.rand(n, 2, generator=generator) * 2 - 1,
        rew=torch.randn(n, generator=generator),
        discount=torch.rand(n, generator=generator) * (torch.arange(n) % 3 > 0),
    )


class Halving(LRSchedulerFactory):
    def create_scheduler(self, optim):
        return torch.optim.lr_scheduler.ExponentialLR(optim, 0.5)


def parameters(algorithm):
    return {name: p.detach().clone() for name, p in algorithm.named_parameters()}


def moved(algorithm, before):
    """Names of the parameters that have changed."""
    return {name for name, p in algorithm.named_parameters() if not torch.equal(p, before[name])}


def slow_minimum(algorithm, obs, action, row):
    return float(algorithm.critic_old(obs[row : row + 1], action[row : row + 1]).min())


# ------------------------------------------------------------------ targets


@pytest.mark.parametrize("config", [TUNED, FIXED], ids=["tuned", "fixed"])
def test_the_target_of_sac_is_that_of_a_plain_loop(config):
    algorithm, batch = make(config), make_batch()
    for seed in range(2):
        off_policy.update(algorithm, make_batch(seed))  # networks and slow copies differ now
    torch.manual_seed(5)
    found = off_policy.targets(algorithm, batch)

    torch.manual_seed(5)
    actor = algorithm.policy.actor
    with torch.no_grad():
        mean, log_deviation = actor.net(batch.obs_next)[0].chunk(2, -1)
        deviation = log_deviation.clamp(-20, 2).exp()
        raw = torch.normal(torch.zeros(N, 2), torch.ones(N, 2)) * deviation + mean
        action = raw.tanh()
        alpha = 0.3 if config is FIXED else math.exp(float(algorithm.alpha._log_alpha))
        for row in range(N):
            log_prob = 0.0
            for j in range(2):
                m, s, x, a = (float(t[row, j]) for t in (mean, deviation, raw, action))
                log_prob += -0.5 * ((x - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)
                log_prob -= math.log(1 - a * a + 1.1920929e-07)
            value = slow_minimum(algorithm, batch.obs_next, action, row) - alpha * log_prob
            expected = float(batch.rew[row]) + float(batch.discount[row]) * value
            assert float(found[row]) == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found[batch.discount == 0], batch.rew[batch.discount == 0])


def test_the_target_of_td3_is_that_of_a_plain_loop():
    config = TD3Config(hidden=(8,), policy_noise=1.0, noise_clip=0.4, actor_every=1, tau=0.5)
    algorithm, batch = make(config), make_batch()
    for seed in range(3):
        off_policy.update(algorithm, make_batch(seed))
    torch.manual_seed(5)
    found = off_policy.targets(algorithm, batch)

    torch.manual_seed(5)
    noise = torch.randn(N, 2).clamp(-0.4, 0.4)
    assert (noise.abs() == 0.4).any()
    with torch.no_grad():
        slow_actor = algorithm.actor_old.module
        action = slow_actor(batch.obs_next)[0] + noise
        assert not torch.equal(action - noise, algorithm.policy.actor(batch.obs_next)[0])
        for row in range(N):
            value = slow_minimum(algorithm, batch.obs_next, action, row)
            expected = float(batch.rew[row]) + float(batch.discount[row]) * value
            assert float(found[row]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_update_fits_the_critics_to_the_targets(config):
    algorithm, batch = make(config), make_batch()
    torch.manual_seed(3)
    expected = off_policy.targets(algorithm, batch)
    with torch.no_grad():
        losses = critic_losses(algorithm, batch, expected)
    torch.manual_seed(3)
    metrics = off_policy.update(algorithm, batch)
    assert float(metrics["target"]) == pytest.approx(float(expected.mean()), abs=1e-6)
    assert [float(metrics[f"critic{i}_loss"]) for i in (1, 2)] == pytest.approx(losses, rel=1e-5)
    with torch.no_grad():
        later = critic_losses(algorithm, batch, expected)
    assert later[0] < losses[0]
    assert later[1] < losses[1]


def critic_losses(algorithm, batch, expected):
    return (algorithm.critic(batch.obs, batch.act) - expected).square().mean(-1).tolist()


def test_the_metrics_of_an_update():
    names = {"actor_loss", "critic1_loss", "critic2_loss", "target", "gradient_norm"}
    assert off_policy.update(make(DELAYED), make_batch()).keys() == names
    assert off_policy.update(make(FIXED), make_batch()).keys() == names | {"alpha"}
    metrics = off_policy.update(make(TUNED), make_batch())
    assert metrics.keys() == names | {"alpha", "alpha_loss"}
    assert float(metrics["alpha"]) == pytest.approx(0.5, rel=0.02)  # one step from where it began
    assert all(value.shape == () for value in metrics.values())  # tensors: nothing was read from the device


def test_alpha_falls_above_the_target_entropy_and_rises_below_it():
    for target, sign in ((-50.0, -1), (1.36, 1)):  # two actions have at most 1.367
        algorithm = make(SACConfig(hidden=(8,), initial_alpha=0.5, target_entropy=target))
        for seed in range(5):
            alpha = off_policy.update(algorithm, make_batch(seed))["alpha"]
        assert (alpha - 0.5) * sign > 1e-4


def test_an_entropy_that_no_policy_has_is_refused():
    with pytest.raises(ValueError, match=r"target_entropy is 1\.5, expected less than 1\.367, .* 2 action dim"):
        make(SACConfig(target_entropy=1.5))


@pytest.mark.parametrize("config", [SACConfig(hidden=(8,), tau=0.25), TD3Config(hidden=(8,), tau=0.25)])
def test_slow_copies_follow_by_tau(config):
    algorithm = make(config)
    before = parameters(algorithm)
    off_policy.update(algorithm, make_batch())
    after = parameters(algorithm)
    slow = [name for name in before if "_old." in name]
    assert len(slow) == (4 if isinstance(config, SACConfig) else 8)
    for name in slow:
        fast = name.replace("critic_old.module", "critic").replace("actor_old.module", "policy.actor")
        torch.testing.assert_close(after[name], 0.75 * before[name] + 0.25 * after[fast])


def test_td3_updates_its_actor_with_delay():
    algorithm = make(TD3Config(hidden=(8,), actor_every=3))
    acted = []
    for i in range(7):
        before = parameters(algorithm)
        off_policy.update(algorithm, make_batch(i))
        names = moved(algorithm, before)
        assert any(name.startswith("critic.") for name in names)
        acted.append(any(name.startswith("policy.actor.") for name in names))
    assert acted == [True, False, False, True, False, False, True]


def test_schedulers_step_with_every_update_and_are_saved():
    def build():
        factory = TorchOptimizerFactory(torch.optim.Adam, lr=1.0).with_lr_scheduler_factory(Halving())
        standard = make_standard(FIXED)
        adam = TorchOptimizerFactory(torch.optim.Adam, lr=1e-2)
        networks = {"critic": standard.critic, "critic2": standard.critic2, "critic_optim": adam}
        return SAC(policy=standard.policy, alpha=0.1, policy_optim=factory, **networks)

    algorithm = build()
    for i in range(3):
        off_policy.update(algorithm, make_batch(i))
    (scheduler,) = algorithm.lr_schedulers
    assert scheduler.get_last_lr() == [0.125]
    other = build()
    off_policy.load_state_dict(other, copy.deepcopy(off_policy.state_dict(algorithm)))
    assert other.lr_schedulers[0].state_dict() == scheduler.state_dict()
    off_policy.update(other, make_batch())
    assert other.lr_schedulers[0].get_last_lr() == [0.0625]


def test_schedulers_of_algorithms_of_this_library_step_too():
    algorithm = FIXED.build(INPUTS, ACTIONS, CPU)
    (optimizer, *_) = off_policy.optimizers(algorithm).values()
    rate = optimizer.param_groups[0]["lr"]
    algorithm.lr_schedulers.append(Halving().create_scheduler(optimizer))
    for i in range(3):
        off_policy.update(algorithm, make_batch(i))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 8)


# ------------------------------------------------------------------ two critics


@pytest.mark.parametrize("config", [TUNED, DELAYED], ids=["sac", "td3"])
def test_the_critics_differ_and_stay_different(config):
    algorithm, batch = make(config), make_batch()
    off_policy.check_algorithm(algorithm)
    for n_updates in (0, 10):
        for i in range(n_updates):
            off_policy.update(algorithm, make_batch(i))
        with torch.no_grad():
            one, two = algorithm.critic(batch.obs, batch.act)
        assert (one - two).abs().max() > 1e-3
    off_policy.check_algorithm(algorithm)


def test_equal_critics_are_refused():
    adam = TorchOptimizerFactory(torch.optim.Adam, lr=1e-2)
    policy, critic = make_standard(FIXED).policy, make_standard(FIXED).critic
    for twin in (None, critic):  # of the former tianshou makes a copy
        algorithm = SAC(policy=policy, alpha=0.2, critic=critic, critic2=twin, policy_optim=adam, critic_optim=adam)
        with pytest.raises(ValueError, match=r"critic2 of SAC is a copy of critic, .* pass a second critic"):
            off_policy.check_algorithm(algorithm)


def test_an_algorithm_with_one_critic_is_trained():
    adam, standard = TorchOptimizerFactory(torch.optim.Adam, lr=1e-2), make_standard(DELAYED)
    algorithm = DDPG(policy=standard.policy, critic=standard.critic, policy_optim=adam, critic_optim=adam, tau=0.005)
    off_policy.check_algorithm(algorithm)
    before = parameters(algorithm)
    assert off_policy.update(algorithm, make_batch()).keys() == {"actor_loss", "critic_loss", "target"}
    assert len(moved(algorithm, before)) == len(before)


# ------------------------------------------------------------------ gradients of tianshou's own algorithms


@pytest.mark.parametrize(("config", "value"), [(TUNED, math.nan), (DELAYED, -math.inf), (TUNED, 1e30)])
def test_rewards_that_are_not_finite_change_no_parameter_and_no_optimizer(config, value):
    """Also those whose gradient is too large to be squared, with which Adam can do nothing."""
    algorithm, batch = make_standard(config), make_batch()
    off_policy.guard_gradients(algorithm)
    off_policy.update(algorithm, batch)
    before, state = parameters(algorithm), leaves(off_policy.state_dict(algorithm)["optimizers"])
    batch.rew[2] = value
    with pytest.raises(NonFiniteGradientError, match=r"^critic\."):
        off_policy.update(algorithm, batch)
    assert off_policy.non_finite_gradient(algorithm).startswith("critic.")
    assert not moved(algorithm, before)
    assert leaves(off_policy.state_dict(algorithm)["optimizers"]) == state
    off_policy.update(algorithm, make_batch(1))
    assert off_policy.non_finite_gradient(algorithm) == "a parameter"
    assert any(name.startswith("critic.") for name in moved(algorithm, before))
    assert all(p.isfinite().all() for p in algorithm.parameters())


@pytest.mark.parametrize("name", ["critic2", "policy.actor", "alpha"])
def test_each_optimizer_is_guarded(name):
    algorithm = make_standard(TUNED)
    off_policy.guard_gradients(algorithm)
    victim = [p for n, p in algorithm.named_parameters() if n.startswith(f"{name}.")][-1]
    victim.register_hook(lambda gradient: gradient * math.nan)
    before = parameters(algorithm)
    with pytest.raises(NonFiniteGradientError, match=rf"^{name}\."):
        off_policy.update(algorithm, make_batch())
    assert not any(n.startswith(f"{name}.") for n in moved(algorithm, before))
    assert any(n.startswith("critic.") for n in moved(algorithm, before))  # which was updated before


def test_the_error_names_a_parameter_that_has_a_gradient():
    algorithm = make_standard(FIXED)
    algorithm.critic_optim._optim.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    algorithm.critic_optim._optim.param_groups.reverse()
    off_policy.guard_gradients(algorithm)
    batch = make_batch()
    batch.rew[0] = math.nan
    with pytest.raises(NonFiniteGradientError, match=r"^critic\."):
        off_policy.update(algorithm, batch)


# ------------------------------------------------------------------ states


@pytest.mark.parametrize(("config", "n_updates"), [(TUNED, 0), (TUNED, 3), (FIXED, 1), (DELAYED, 1), (DELAYED, 3)])
def test_an_algorithm_resumes_bit_for_bit(config, n_updates, tmp_path):
    """TD3 amid its delay; SAC with the optimiser of alpha, which tianshou's own state leaves out."""
    algorithm = make(config)
    for i in range(n_updates):
        off_policy.update(algorithm, make_batch(i))
    Checkpoints(tmp_path).save({"algorithm": off_policy.state_dict(algorithm)}, 0)
    state = Checkpoints(tmp_path).load()["algorithm"]
    untouched = leaves(copy.deepcopy(state))
    other = make(config, seed=1)
    off_policy.update(other, make_batch(9))
    off_policy.load_state_dict(other, state)
    assert leaves(state) == untouched
    metrics = []
    for one in (algorithm, other):
        torch.manual_seed(7)
        metrics.append([off_policy.update(one, make_batch(10 + i)) for i in range(3)])
    assert metrics[0] == metrics[1]
    assert leaves(off_policy.state_dict(other)) == leaves(off_policy.state_dict(algorithm))


@pytest.mark.parametrize("config", [TUNED, DELAYED], ids=["sac", "td3"])
def test_settings_are_not_restored(config):
    algorithm = make(replace(config, discount=0.5, tau=0.5))
    off_policy.load_state_dict(algorithm, off_policy.state_dict(make(config)))
    assert (algorithm.gamma, algorithm.tau) == (0.5, 0.5)


def test_all_optimizers_are_found():
    assert [*off_policy.optimizers(make(TUNED))] == ["optimizer 0", "optimizer 1", "alpha's optimizer"]
    assert [*off_policy.optimizers(make(FIXED))] == ["optimizer 0", "optimizer 1"]
    assert [*off_policy.optimizers(make_standard(FIXED))] == ["optimizer 0", "optimizer 1", "optimizer 2"]
    for algorithm in [build(config) for config in CONFIGS.values() for build in (make, make_standard)]:
        trained = {
            id(p) for o in off_policy.optimizers(algorithm).values() for g in o.param_groups for p in g["params"]
        }
        assert trained == {id(p) for n, p in algorithm.named_parameters() if "_old." not in n}


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        ((TUNED,), (FIXED,), "the state has .*, alpha's optimizer, expected optimizer 0, optimizer 1$"),
        ((DELAYED,), (TUNED,), "the state has .*, expected .*alpha's optimizer"),
        ((DELAYED,), (FIXED,), "actor_old|policy"),
        ((FIXED,), (DELAYED,), "actor_old|policy"),
        ((FIXED, 0, 4), (FIXED,), r"size mismatch for .*\[1, 4, 8\].*\[1, 3, 8\]"),
    ],
)
def test_the_state_of_another_algorithm_is_refused(saved, own, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        off_policy.load_state_dict(make(*own), off_policy.state_dict(make(*saved)))


def test_an_optimizer_of_other_shapes_is_refused():
    algorithm = make(FIXED)
    off_policy.update(algorithm, make_batch())
    state = copy.deepcopy(off_policy.state_dict(algorithm))
    state["optimizers"]["optimizer 1"]["state"][0]["exp_avg"] = torch.zeros(8, 4)
    with pytest.raises(ValueError, match=r"optimizer 1 has exp_avg of shape \(8, 4\), expected"):
        off_policy.load_state_dict(make(FIXED), state)


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (SACConfig, {"hidden": ()}, r"hidden is \(\), expected at least one width"),
        (SACConfig, {"hidden": (8, 0)}, r"hidden is \(8, 0\)"),
        (SACConfig, {"learning_rate": 0.0}, "learning_rate is 0.0"),
        (SACConfig, {"discount": 1.1}, "discount is 1.1"),
        (TD3Config, {"tau": 0.0}, "tau is 0.0"),
        (SACConfig, {"alpha": -1.0}, "alpha is -1.0"),
        (SACConfig, {"initial_alpha": 0.0}, "initial_alpha is 0.0"),
        (TD3Config, {"exploration_noise": -0.1}, "exploration_noise is -0.1"),
        (TD3Config, {"policy_noise": math.nan}, "policy_noise is nan"),
        (TD3Config, {"noise_clip": 0.0}, "noise_clip is 0.0"),  # with which tianshou does not clip at all
        (TD3Config, {"actor_every": 0}, "actor_every is 0"),
    ],
)
def test_settings_out_of_range_are_named(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_settings_reach_tianshou():
    sac = make(SACConfig(hidden=(5, 6), learning_rate=0.02, discount=0.9, tau=0.1, target_entropy=-7.0))
    assert (sac.gamma, sac.tau, sac.alpha._target_entropy) == (0.9, 0.1, -7.0)
    assert {o.param_groups[0]["lr"] for o in off_policy.optimizers(sac).values()} == {0.02}
    for network in (sac.policy.actor, sac.critic):
        weights = [p for name, p in network.named_parameters() if name.endswith("weight")]
        assert [weight.shape[-1] for weight in weights[:2]] == [5, 6]
    assert not any("norm" in type(module).__name__.lower() for module in sac.modules())
    assert make(SACConfig())._optimizers[0]._optim.param_groups[0]["lr"] == 3e-4
    assert make(SACConfig()).alpha._target_entropy == -2.0  # minus the number of actions
    assert make(SACConfig(initial_alpha=0.3)).alpha.value == pytest.approx(0.3)
    td3 = make(TD3Config(exploration_noise=0.7, policy_noise=0.3, noise_clip=0.6, actor_every=4))
    assert (td3.policy_noise, td3.noise_clip, td3.update_actor_freq) == (0.3, 0.6, 4)
    assert td3.policy.exploration_noise._sigma == 0.7
    assert make(TD3Config(exploration_noise=0.0)).policy.exploration_noise is None


def test_actions_outside_of_an_update_are_deterministic_and_targets_are_not():
    algorithm, batch = make(FIXED), make_batch()
    assert not torch.equal(off_policy.targets(algorithm, batch), off_policy.targets(algorithm, batch))
    assert not algorithm.policy.is_within_training_step
    off_policy.update(algorithm, batch)
    assert not algorithm.policy.is_within_training_step
    seen = Batch(obs=batch.obs, info=Batch())
    with policy_within_training_step(algorithm.policy, enabled=False):
        assert torch.equal(algorithm.policy(seen).act, algorithm.policy(seen).act)
