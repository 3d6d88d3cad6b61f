"""Updates of a latent world model, against plain loops."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layeredrl.world_model import LatentLearner, LatentLearningConfig
from tests.recording import leaves
from tests.world_model.latent_tasks import make_latent, subsequences


def make(noisy=True, encoder=None, **settings):
    world = make_latent(noisy=noisy, dropout=0.0, encoder=encoder)
    return LatentLearner(world, LatentLearningConfig(**settings), seed=1)


def test_losses_are_those_of_a_plain_loop():
    learner, batch = make(), subsequences(n=6)
    batch.terminated[2, 3] = batch.terminated[1, 4] = True
    batch.valid[2, 4] = False
    world = copy.deepcopy(learner.world)
    target, generator = copy.deepcopy(learner.target), copy.deepcopy(learner._generator)
    noise = torch.randn((3, 6, 2), generator=generator)
    pair = torch.randperm(3, generator=generator)[:2].tolist()
    expected = dict.fromkeys(("consistency", "reward", "value", "termination"), 0.0)
    scale = world.scale
    for i in range(6):
        state = world.encoder(batch.obs[0, i])[0]
        for t in range(3):
            if not batch.valid[t, i]:
                continue
            joint, weight = torch.cat([state, batch.act[t, i]]), 0.5**t / 17  # of 18 steps, one is not valid
            observed = world.encoder(batch.obs_next[t, i])[0]
            following = world.policy.act(observed, noise[t, i])
            values = scale.decode(target(torch.cat([observed, following])[None]))[:, 0]
            goal = batch.rew[t, i] + 0.9 * (not batch.terminated[t, i]) * values[pair].min()
            state = world.dynamics.net(joint)
            ends = world.dynamics.ends(state)[0]
            logits = world.critics(joint[None])[:, 0]
            expected["consistency"] += weight * (state - observed).square().mean()
            expected["reward"] += weight * scale.loss(world.reward_logits(joint), batch.rew[t, i])
            expected["value"] += weight * torch.stack([scale.loss(x, goal) for x in logits]).mean()
            flag = batch.terminated[t, i].float()
            expected["termination"] += 1 / 17 * F.binary_cross_entropy(ends.sigmoid(), flag)
    metrics = learner.update(batch)
    weights = sum(0.5**t * float(batch.valid[t].sum()) for t in range(3)) / 17
    for name, loss in expected.items():
        loss = loss if name == "termination" else loss / weights  # means over steps are reported
        torch.testing.assert_close(metrics[f"{name}_loss"], loss.detach(), rtol=1e-4, atol=1e-5)
    assert not metrics["skipped"]


def test_policy_loss_is_that_of_a_plain_loop():
    learner, batch = make(tau=0.5), subsequences(n=6)
    batch.terminated[1, 2] = True
    batch.valid[2, 2] = batch.valid[2, 4] = False
    states = torch.rand(4, 6, 16)
    world, generator = copy.deepcopy(learner.world), copy.deepcopy(learner._generator)
    noise, pair = torch.randn((4, 6, 2), generator=generator), torch.randperm(3, generator=generator)[:2].tolist()
    values, entropies = torch.zeros(4, 6), torch.zeros(4, 6)
    for t in range(4):
        for i in range(6):
            action, log_prob = world.policy(states[t, i], noise[t, i])
            logits = world.critics(torch.cat([states[t, i], action])[None])[:, 0]
            values[t, i], entropies[t, i] = world.scale.decode(logits)[pair].mean().detach(), -log_prob.detach()
    distance = np.quantile(values[0], 0.95) - np.quantile(values[0], 0.05)
    scale = 1 + 0.5 * (max(distance, 1) - 1)
    alive = torch.ones(4, 6)
    alive[2, 2] = alive[3, 2] = alive[3, 4] = 0  # reached by a termination, or beyond an episode
    weights = 0.5 ** torch.arange(4.0)[:, None] * alive / alive.sum()
    expected = -(weights * (values / scale + 1e-4 * 2 * entropies)).sum()
    metrics, _ = learner._update_policy(states, batch.valid & ~batch.terminated)
    torch.testing.assert_close(metrics["policy_loss"], expected, rtol=1e-4, atol=1e-5)
    assert float(learner.value_scale) == pytest.approx(scale, rel=1e-4)


def test_what_lies_beyond_an_episode_makes_no_difference():
    batch = subsequences()
    batch.valid[1:, :5] = False
    other = copy.deepcopy(batch)
    for key in ("obs", "obs_next", "act", "rew"):
        other[key][1:, :5] = torch.randn_like(other[key][1:, :5])
    other.terminated[1:, :5] = True
    learners = [make() for _ in range(2)]
    for learner, data in zip(learners, (batch, other), strict=True):
        learner.metrics = learner.update(data)
    assert len(learner.metrics) == 10
    for name, value in learner.metrics.items():
        torch.testing.assert_close(value, learners[0].metrics[name], rtol=1e-3, atol=1e-5)
    for a, b in zip(*(learner.world.named_parameters() for learner in learners), strict=True):
        torch.testing.assert_close(a[1].grad, b[1].grad, rtol=1e-3, atol=1e-6, msg=a[0])


def test_an_update_draws_the_two_critics_that_plans_end_in_anew():
    learner = make()
    pairs = {tuple(learner.update(subsequences(seed=i)) and learner.world.pair.tolist()) for i in range(8)}
    assert len(pairs) > 1
    assert all(a != b for a, b in pairs)


def learnt(learner):
    state = learner.state_dict()
    return leaves({name: state[name] for name in ("networks", "value_scale")})


@pytest.mark.parametrize(("key", "value", "free"), [("rew", torch.nan, ("policy", "value_scale")), ("obs", 1e30, ())])
def test_a_gradient_that_is_not_finite_changes_nothing(key, value, free):
    """A reward that is not finite leaves the policy's own gradient finite; an absurd observation does not."""
    learner, batch = make(), subsequences()
    before = learnt(learner)
    batch[key][0, 0] = value
    assert learner.update(batch)["skipped"] == 1
    for name, value in learnt(learner).items():
        if name != ".networks.world.pair" and not any(part in name for part in free):
            assert value == before[name], name
    assert learner.update(subsequences())["skipped"] == 0


def own_encoder(obs_dim, latent_dim):
    """Has a frozen layer, one that nothing uses, and dropout."""
    net = nn.Sequential(nn.Linear(obs_dim, 8).requires_grad_(False), nn.Dropout(0.5), nn.Linear(8, latent_dim))
    net.register_module("unused", nn.Linear(2, 2))
    net.forward = lambda obs: net[2](net[1](net[0](obs)))
    return net


def test_an_encoder_of_ones_own_learns_what_it_lets_learn():
    learner = make(encoder=own_encoder)
    net = learner.world.encoder.net
    frozen, learned = net[0].weight.clone(), net[2].weight.clone()
    seen = []
    net[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    assert learner.update(subsequences())["skipped"] == 0
    assert torch.equal(net[0].weight, frozen)
    assert not torch.equal(net[2].weight, learned)
    assert sorted(seen) == [False, True]  # targets without dropout, what learns with it


def test_an_encoder_may_have_batch_norm():
    def encoder(obs_dim, latent_dim):
        return nn.Sequential(nn.Linear(obs_dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, latent_dim))

    learner, batch = make(encoder=encoder), subsequences(n=8)  # as many as features: axes may be mistaken
    assert learner.update(batch)["skipped"] == 0
    assert learner.world.encoder.net[1].running_mean.any()
    with torch.no_grad():
        encode = learner.world.encoder
        at_once, apart = encode(batch.obs_next)[0], torch.stack([encode(obs)[0] for obs in batch.obs_next])
    torch.testing.assert_close(at_once, apart)


def test_target_critics_follow_and_the_encoder_learns_more_slowly():
    learner = make(tau=0.25)
    slow = [p.clone() for p in learner.target.parameters()]
    learner.update(subsequences())
    for before, after, fast in zip(slow, learner.target.parameters(), learner.world.critics.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25 * (fast - before))
    assert [group["lr"] for group in learner.model_optimizer.param_groups] == pytest.approx([0.9e-4, 3e-4])


def test_gradients_are_clipped_to_a_norm():
    learner = make(max_norm=1e-3)
    learner.update(subsequences())
    norm = torch.stack([p.grad.norm() for p in learner._learned]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_it_learns_to_predict_and_to_act():
    """Points pushed around, with the first coordinate as the reward: pushing to the right is best."""
    learner = make(noisy=False, learning_rate=2e-3, batch_size=64)
    first = learner.update(subsequences(n=64))
    for i in range(150):
        last = learner.update(subsequences(n=64, seed=i))
    assert last["reward_loss"] < 0.7 * first["reward_loss"]
    world, obs = learner.world, torch.randn(50, 2)
    with torch.no_grad():
        action = world.policy.act(world.encode(obs)[0])
    assert action[:, 0].mean() > 0.3


def test_restored_learning_goes_on_the_same():
    learner = make()
    learner.update(subsequences())
    other = make()
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        torch.manual_seed(3)
        each.update(subsequences(seed=5))
    assert leaves(other.state_dict()) == leaves(learner.state_dict())
    assert np.isfinite(float(learner.value_scale))
