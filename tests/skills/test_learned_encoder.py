"""States that are learned by what they tell of the reward: what teaches them, what they find, and what follows them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import envs  # noqa: F401  registers the mazes
from agents.splates import SPlaTESAgent as Recipe
from layeredrl.collector import Collector
from layeredrl.environments import make_task, make_vector_env
from layeredrl.skills import DADS, SkillModelConfig, SPlaTES
from layeredrl.storage import Checkpoints
from layeredrl.world_model import LearnedEncoder
from tests.skills.test_learned_reward import learn_along, pay
from tests.skills.test_model_based import flat
from tests.skills.walk import TASK, WIDTH, Walk, as_batch, make_world

CONFIG = SkillModelConfig(
    n_first=40, batch_size=32, n_priors=3, std=0.5, updates_per_segment=4, refresh_every=20, report_every=20
)
METHODS = pytest.mark.parametrize("kind", [SPlaTES, DADS])
GOAL = [2, 3]


def make(kind=SPlaTES, config=CONFIG, *, learned=(2, 2), **world):
    return kind(TASK, make_world(learned=learned, **world), 5, config=config)


def mixing():
    """Rotates the position and what does not matter into each other, (WIDTH, WIDTH); the goal stays."""
    moving = [i for i in range(WIDTH) if i not in GOAL]
    mix = np.eye(WIDTH)
    mix[np.ix_(moving, moving)] = np.linalg.qr(np.random.default_rng(3).normal(size=(5, 5)))[0]
    return mix


def explained(x, y):
    """Share of the variance of each column of y (n, Y) that is linear in x (n, X)."""
    x = np.column_stack([x, np.ones(len(x))])
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - rest.var(0) / y.var(0)


def gradients(method):
    encoder = method.world.encoder
    return [parameter.grad for parameter in encoder.parameters()]


# ------------------------------------------------------------------ who teaches it


@METHODS
def test_only_the_reward_teaches_it(kind):
    method, walk = make(kind), Walk(2, pay=pay)
    learn_along(method, walk, 20)
    method.dynamics.train()
    for parameter in method.world.parameters():
        parameter.grad = None
    segments = method.segments(walk.replay, 32)
    method.dynamics.learn([method._transitions(segments)])
    assert gradients(method) == [None, None]
    batch = as_batch(walk.rows[0])
    method.inputs(batch.obs, batch.command).sum().requires_grad_().backward()
    method.reward(batch).sum().backward()
    assert gradients(method) == [None, None]
    method.learned_reward.learn(segments, 1.0)
    moving = [i for i in range(WIDTH) if i not in GOAL]
    to_state, to_context = gradients(method)
    assert to_state[:, moving].all()
    assert not to_state[:, GOAL].any()
    assert to_context[:, GOAL].all()
    assert not to_context[:, moving].any()


@METHODS
def test_it_finds_what_the_reward_depends_on(kind):
    """The position, rotated into dimensions that change as much, and the goal."""
    config = SkillModelConfig(n_first=2000, updates_per_segment=1, newest=1.0, reward_learning_rate=1e-2)
    method, mix = make(kind, config), mixing()
    walk = Walk(32, noise=0.2, mix=mix, pay=pay)
    torch.manual_seed(1)
    learn_along(method, walk, 120)
    assert method.n_updates < 400
    encoder = method.world.encoder
    assert encoder.changes.tolist() == [i not in GOAL for i in range(WIDTH)]
    obs = np.concatenate([np.stack([row.obs_next for row in rows]) for rows in walk.rows])
    truth = obs @ mix.T
    state, context = (x.numpy() for x in encoder(torch.as_tensor(obs)))
    before = make(kind).world.encoder
    before.fit(torch.as_tensor(obs[:-1]), torch.as_tensor(obs[:-1] + encoder.changes.numpy()))
    at_first = before(torch.as_tensor(obs))[0].numpy()
    assert explained(at_first, truth[:, :2]).mean() < 0.8
    assert explained(state, truth[:, :2]).min() > 0.93
    assert explained(truth[:, :2], state).min() > 0.93
    assert explained(context, truth[:, GOAL]).min() > 0.99


# ------------------------------------------------------------------ what follows it


def test_what_is_relative_to_the_state_follows_it():
    method, walk = make(), Walk(2, pay=pay, noise=0.2)
    learn_along(method, walk, 30)
    with torch.no_grad():
        method.world.encoder.to_state.copy_(torch.tensor([[0.0] * 6 + [1.0], [0.0] * 5 + [1.0, 0.0]]))
    method.config = replace(method.config, updates_per_segment=0.0)
    learn_along(method, walk, 10)
    assert method.last_refresh == 80
    rows = method._transitions(method.segments(walk.replay, 4000))
    step = (rows.state_next - rows.state).std(0)
    torch.testing.assert_close(method.dynamics.unit, step, rtol=0.1, atol=0.0)
    (mean,) = [x for name, x in method.dynamics.network.named_buffers() if "mean" in name]
    torch.testing.assert_close(mean.flatten()[:2], rows.state.mean(0), rtol=0.1, atol=0.1)
    net = method.world.reward_net
    torch.testing.assert_close(net.inputs.mean[:2], rows.state.mean(0), rtol=0.1, atol=0.1)
    states = method.world.encode(torch.as_tensor(walk.replay.column("obs_next")))[0]
    torch.testing.assert_close(method.world.objective.state_scale, states.std(0, correction=0))


def test_a_policy_sees_its_way_in_the_learned_state():
    method, walk = make(learned=(3, 2)), Walk(2, pay=pay)
    learn_along(method, walk, 30)
    batch = as_batch(walk.rows[0])
    found = method.inputs(batch.obs, batch.command)
    assert found.shape == (30, method.n_inputs) == (30, 5 + 3 + 2 + 1)
    way = (batch.obs - batch.command.obs) * method.world.encoder.standardizer.inverse_std
    torch.testing.assert_close(found[:, 5:8], 2 * way @ method.world.encoder.to_state.mT, rtol=1e-4, atol=1e-4)
    assert not found.requires_grad


@METHODS
def test_after_a_stop_it_goes_on_as_if_nothing_had_been(kind, tmp_path):
    """Bit for bit: the encoder, the reward, its optimiser, and what the next report tells."""
    settings = {"pay": pay, "size": 40, "noise": 0.2}
    method, walk = make(kind), Walk(2, **settings)
    torch.manual_seed(3)
    learn_along(method, walk, 27)
    saved = {"method": method.state_dict(), "replay": walk.replay.state_dict(), "torch": torch.get_rng_state()}
    Checkpoints(tmp_path).save(saved, 54)
    told = learn_along(method, walk, 20)

    other, again = make(kind, seed=9), Walk(2, **settings).step(27)
    state = Checkpoints(tmp_path).load()
    again.replay.load_state_dict(state["replay"])
    other.load_state_dict(state["method"])
    torch.set_rng_state(state["torch"])
    assert learn_along(other, again, 20) == told
    assert told[80]["model/reward_loss"] > 0
    found, expected = flat(other.state_dict()), flat(method.state_dict())
    assert found == expected
    assert any("reward_optimizer.state.0.exp_avg" in key for key in expected)
    assert any("encoder.to_state" in key for key in expected)


# ------------------------------------------------------------------ in the recipe


def test_the_recipe_learns_it_in_a_maze():
    config = replace(Recipe.preset("debug"), encoder="learned", latent_dim=3, context_dim=1)
    torch.manual_seed(0)
    agent = config.build(make_task("Maze2D-Simple-v0", n_envs=2), torch.device("cpu"), seed=0)
    world = agent.levels[1].method.world
    assert isinstance(world.encoder, LearnedEncoder)
    assert (world.encoder.state_dim, world.encoder.context_dim) == (3, 1)
    assert world.task.reward is None
    before = world.encoder.to_state.detach().clone()
    env = make_vector_env("Maze2D-Simple-v0", 2)
    collector, told = Collector(env, agent, seed=0), {}
    for _ in range(60):
        collector.step(explore=True)
        told |= agent.learn(collector.n_total_env_steps) | collector.take_metrics()
    env.close()
    assert world.encoder.changes.tolist() == [True, True, False, False, True, True]
    assert not torch.equal(world.encoder.to_state, before)
    assert all(np.isfinite(value) for value in told.values())
    assert {"model/reward_loss", "plan/score"} <= told.keys()


def test_the_recipe_learns_a_reward_that_nobody_knows_of_parts_of_the_observation():
    task = replace(make_task("Maze2D-Simple-v0", n_envs=2), reward=None)
    agent = Recipe.preset("debug").build(task, torch.device("cpu"), seed=0)
    method = agent.levels[1].method
    assert method.learned_reward is not None
    assert method.learned_reward.encoder is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "fixed"}, "encoder is 'fixed', expected one of parts, learned"),
        ({"encoder": "learned", "latent_dim": 0}, "latent_dim is 0, expected at least 1"),
        ({"encoder": "learned", "context_dim": 9}, "context_dim is 9, expected at most the observation's 6"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(Recipe.preset("debug"), **settings).build(make_task("Maze2D-Simple-v0"), torch.device("cpu"), seed=0)
