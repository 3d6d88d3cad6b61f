"""A level that acts by a policy: its batches, updates, reports, actions, skipped updates, and resuming."""

import copy
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm.modelfree.td3 import TD3
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch

from layeredrl import off_policy
from layeredrl.faults import NonFiniteError
from layeredrl.levels import PolicyLearningConfig, PolicyLevel
from layeredrl.off_policy import SACConfig, TD3Config
from layeredrl.off_policy.actors import DeterministicPolicy
from layeredrl.storage import Checkpoints
from tests.recording import leaves

WIDTH, E, GAMMA = 3, 2, 0.9
ACTIONS = spaces.Box(-1.0, 1.0, (2,))
GOALS, CHOICES = spaces.Box(-5.0, 5.0, (2,)), spaces.Discrete(3, start=1)
LEARNING = PolicyLearningConfig(n_random_steps=0, batch_size=16, report_every=10, replay_size=200)
CPU = torch.device("cpu")
CONFIGS = {
    "sac": SACConfig(hidden=(8,), learning_rate=1e-2, discount=GAMMA),
    "td3": TD3Config(hidden=(8,), learning_rate=1e-2, discount=GAMMA),
}
LEVELS = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def make(config=CONFIGS["sac"], *, commands=None, seed=0, learning=None, n_envs=E, **settings):
    torch.manual_seed(seed)
    n_inputs = WIDTH + (0 if commands is None else spaces.flatdim(commands))
    algorithm = config.build(n_inputs, ACTIONS, CPU)
    settings = {"n_envs": n_envs, "learning": LEARNING if learning is None else learning, "seed": seed} | settings
    return PolicyLevel(algorithm, ACTIONS, commands, **settings)


def make_transitions(rng, n, commands=None):
    """Transitions of durations 1 to 5; some terminate, others are truncated."""
    duration = rng.integers(1, 6, n)
    info = Batch(duration=duration)
    if commands is not None:
        elapsed = rng.integers(0, 4, n)
        choices, goals = rng.integers(1, 4, (n, 1)), rng.uniform(-5, 5, (n, 2)).astype(np.float32)
        remaining = duration + rng.integers(0, 3, n)
        obs = rng.normal(size=(n, WIDTH)).astype(np.float32)
        info.command = Batch(
            action=choices if commands is CHOICES else goals, obs=obs, elapsed=elapsed, remaining=remaining
        )
    ends = rng.integers(0, 3, n)
    return Batch(
        obs=rng.normal(size=(n, WIDTH)).astype(np.float32),
        act=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        rew=rng.normal(size=n),
        terminated=ends == 1,
        truncated=ends == 2,
        obs_next=rng.normal(size=(n, WIDTH)).astype(np.float32),
        info=info,
    )


def observe(level, n_steps, seed=0, commands=None):
    rng, n_envs = np.random.default_rng(seed), len(level.replay.buffer.rings)
    for _ in range(n_steps):
        level.observe(make_transitions(rng, n_envs, commands), np.arange(n_envs))


def act(level, n=E, explore=True, seed=0, obs=None, command=None):
    obs = torch.linspace(-1, 1, n * WIDTH).view(n, WIDTH) if obs is None else obs
    generator = torch.Generator().manual_seed(seed)
    return level.act(obs, command, level.initial_memory(len(obs)), explore=explore, generator=generator)


def command_of(action):
    n = len(action)
    numbers = torch.zeros(n, dtype=torch.int64)
    return Batch(action=action, obs=torch.zeros(n, WIDTH), elapsed=numbers, remaining=numbers + 1)


def parameters(level):
    return {name: p.detach().clone() for name, p in level.algorithm.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def batches(monkeypatch):
    """Batches of all updates."""
    seen, original = [], off_policy.update

    def update(algorithm, batch):
        seen.append(copy.deepcopy(batch))
        return original(algorithm, batch)

    monkeypatch.setattr(off_policy, "update", update)
    return seen


@pytest.fixture
def numbers(monkeypatch):
    """Numbers of the updates, from 1, which replace all updates."""
    found: list[int] = []

    def update(algorithm, batch):
        found.append(len(found) + 1)
        return {"loss": float(found[-1]), "target": 100.0 + found[-1]}

    monkeypatch.setattr(off_policy, "update", update)
    return found


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize("commands", [None, GOALS, CHOICES], ids=["alone", "goals", "choices"])
def test_samples_are_the_stored_transitions(commands):
    level = make(commands=commands, learning=replace(LEARNING, batch_size=60))
    observe(level, 30, commands=commands)
    batch, rows = level.sample(), level.replay.all()
    stored = {tuple(rows.obs[i]): i for i in range(len(rows))}
    assert len(batch.obs) == 60
    for n in range(60):
        i = stored[tuple(batch.obs[n].numpy())]
        np.testing.assert_array_equal(batch.obs_next[n], rows.obs_next[i])
        np.testing.assert_array_equal(batch.act[n], rows.act[i])
        assert float(batch.rew[n]) == np.float32(rows.rew[i])
        duration = int(rows.info.duration[i])
        assert int(batch.duration[n]) == duration
        expected = 0.0 if rows.terminated[i] else math.prod([GAMMA] * duration)
        assert float(batch.discount[n]) == pytest.approx(expected, rel=1e-6)
        np.testing.assert_array_equal(level.replay.rows(batch.index[n : n + 1]).obs[0], rows.obs[i])
        if commands is None:
            continue
        given = rows.info.command
        for command, elapsed in ((batch.command, 0), (batch.next_command, duration)):
            np.testing.assert_array_equal(command.action[n], given.action[i])
            np.testing.assert_array_equal(command.obs[n], given.obs[i])
            assert int(command.elapsed[n]) == given.elapsed[i] + elapsed
            assert int(command.remaining[n]) == given.remaining[i] - elapsed
    assert set(batch.duration.tolist()) == {1, 2, 3, 4, 5}
    terminated = rows.terminated[[stored[tuple(row.numpy())] for row in batch.obs]]
    truncated = rows.truncated[[stored[tuple(row.numpy())] for row in batch.obs]]
    assert terminated.any()
    assert truncated.any()
    assert (batch.discount[torch.from_numpy(truncated)] > 0).all()
    assert ("command" in batch) == (commands is not None)


def test_a_relabelled_reward_changes_the_targets_but_not_the_replay():
    """tianshou itself would continue with the stored reward."""
    scale, found = [1.0], []

    def relabel(batch, replay):
        batch.rew = scale[0] * batch.obs_next[:, 0]
        return batch

    level = make(CONFIGS["td3"], relabel=relabel)
    observe(level, 10)
    before = copy.deepcopy(level.replay.all())
    states = [generator.get_state() for generator in level.replay.buffer.generators]
    for value in (1.0, 3.0):
        scale[0] = value
        for generator, state in zip(level.replay.buffer.generators, states, strict=True):
            generator.set_state(state)
        batch = level.sample()
        assert torch.equal(batch.rew, value * batch.obs_next[:, 0])
        torch.manual_seed(0)
        found.append((batch.obs_next[:, 0], off_policy.targets(level.algorithm, batch)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1] - found[0][1], 2 * found[0][0])
    after = level.replay.all()
    for key in ("obs", "rew", "act", "obs_next"):
        np.testing.assert_array_equal(after[key], before[key])


@LEVELS
def test_a_relabelled_reward_may_have_another_type(config):
    def relabel(batch, replay):
        batch.rew, batch.discount = batch.rew.double(), batch.discount.double()
        return batch

    levels = [make(config), make(config, relabel=relabel)]
    for level in levels:
        observe(level, 10)
        torch.manual_seed(0)
        level.learn(30)
    assert levels[0].n_updates > 0
    assert same(*(parameters(level) for level in levels))


def test_relabelled_commands_are_inputs_of_the_update_and_of_its_target(batches):

    def relabel(batch, replay):
        assert replay is level.replay
        batch.command.action = torch.full_like(batch.command.action, 4.0)
        batch.next_command.action = torch.full_like(batch.next_command.action, -4.0)
        batch.rew = torch.zeros_like(batch.rew)
        return batch

    level = make(commands=GOALS, relabel=relabel)
    observe(level, 20, commands=GOALS)
    rows = level.replay.all()
    stored = {tuple(obs): tuple(following) for obs, following in zip(rows.obs, rows.obs_next, strict=True)}
    level.learn(40)
    (batch,) = batches
    for n in range(16):
        obs, obs_next = batch.obs[n].tolist(), batch.obs_next[n].tolist()
        assert obs[WIDTH:] == [4.0, 4.0]
        assert obs_next[WIDTH:] == [-4.0, -4.0]
        assert stored[tuple(np.float32(obs[:WIDTH]))] == tuple(np.float32(obs_next[:WIDTH]))
    np.testing.assert_array_equal(batch.rew, 0)
    found = []
    for goal in (-4.0, 4.0):
        batch.obs_next[:, WIDTH:] = goal
        torch.manual_seed(0)
        found.append(off_policy.targets(level.algorithm, batch))
    continues = batch.discount > 0
    assert (found[0] != found[1])[continues].all()
    assert torch.equal(found[0][~continues], found[1][~continues])


def test_custom_inputs(batches):
    level = make(commands=GOALS, inputs=lambda obs, command: torch.cat([obs - command.obs, command.action], -1))
    observe(level, 20, commands=GOALS)
    level.learn(40)
    rows = level.replay.all()
    expected = {tuple(row) for row in np.concatenate([rows.obs - rows.info.command.obs, rows.info.command.action], 1)}
    assert {tuple(row) for row in batches[0].obs.numpy()} <= expected
    command = command_of(torch.ones(E, 2))
    command.obs = torch.linspace(-1, 1, E * WIDTH).view(E, WIDTH)
    seen = torch.cat([torch.zeros(E, WIDTH), torch.ones(E, 2)], -1)
    torch.testing.assert_close(act(level, explore=False, command=command).action, most_probable(level, seen))


# ------------------------------------------------------------------ how often


@pytest.mark.parametrize(
    ("ratio", "n_envs", "n_random_steps"), [(0.25, 1, 12), (1, 3, 12), (3, 1, 12), (3, 3, 12), (1, 1, 0)]
)
def test_updates_keep_their_ratio_to_the_transitions(ratio, n_envs, n_random_steps, numbers):
    """The transition of the first update counts, those of the random phase do not."""
    learning = replace(LEARNING, n_random_steps=n_random_steps, updates_per_transition=ratio, report_every=1000)
    level = make(learning=learning, n_envs=n_envs)
    assert level.learn(0) == {}  # there are no transitions
    for n in range(n_envs, 40, n_envs):
        observe(level, 1, seed=n)
        level.learn(n)
        first = max(n_random_steps, 1)
        assert level.n_updates == len(numbers) == (0 if n < first else math.floor(ratio * (n - first + 1)))


def test_transitions_of_several_steps_count_once(numbers):
    level = make(learning=replace(LEARNING, n_random_steps=20))
    for n in range(10, 101, 10):  # each of five environment steps, in two environments
        observe(level, 1, seed=n)
        level.learn(n)
        assert len(numbers) == (0 if n < 20 else 1 + 2 * (n // 10 - 2))


# ------------------------------------------------------------------ reports


def test_reports_are_means_since_the_last_one(numbers):
    level = make(n_envs=1, learning=replace(LEARNING, n_random_steps=8, updates_per_transition=2, report_every=5))

    def relabel(batch, replay):
        batch.rew = torch.full_like(batch.rew, len(numbers))
        return batch

    level.relabel = relabel
    reports = {}
    for n in range(1, 25):
        observe(level, 1, seed=n)
        metrics = level.learn(n)
        if metrics:
            reports[n] = metrics
    assert [*reports] == [13, 18, 23]
    first = 1
    for n, metrics in reports.items():
        last = 2 * (n - 7)
        mean = (first + last) / 2
        assert metrics == pytest.approx(
            {
                "policy/loss": mean,
                "policy/target": 100 + mean,
                "policy/reward": mean - 1.5,  # sampled before the two updates of a step
                "policy/updates": last,
            }
        )
        first = last + 1


def test_the_batches_of_a_step_s_updates_are_drawn_together(monkeypatch):
    """At most eight at a time; each update takes the next rows."""
    learning = replace(LEARNING, n_random_steps=0, updates_per_transition=10, batch_size=4)
    level, drawn, used = make(n_envs=1, learning=learning), [], []

    def relabel(batch, replay):
        batch.rew = torch.arange(len(batch.rew)).float() + 1000 * len(drawn)
        drawn.append(batch)
        return batch

    level.relabel = relabel
    monkeypatch.setattr(off_policy, "update", lambda algorithm, batch: used.append(batch) or {})
    observe(level, 1, seed=0)
    level.learn(1)
    assert [len(batch.rew) for batch in drawn] == [32, 8]
    assert [len(batch.rew) for batch in used] == [4] * 10
    assert level.n_updates == 10
    torch.testing.assert_close(torch.cat([b.rew for b in used]), torch.cat([b.rew for b in drawn]))
    torch.testing.assert_close(torch.cat([b.act for b in used]), torch.cat([b.act for b in drawn]))


@pytest.mark.parametrize(
    ("config", "losses"),
    [
        ("sac", ["actor_loss", "critic1_loss", "critic2_loss", "gradient_norm", "alpha", "alpha_loss"]),
        ("td3", ["actor_loss", "critic1_loss", "critic2_loss", "gradient_norm"]),
    ],
)
def test_the_names_of_the_metrics(config, losses):
    level = make(CONFIGS[config])
    observe(level, 10)
    level.learn(20)
    observe(level, 1)
    metrics = level.learn(30)
    assert sorted(metrics) == sorted(f"policy/{name}" for name in [*losses, "target", "reward", "updates"])
    assert all(math.isfinite(value) for value in metrics.values())


# ------------------------------------------------------------------ acting


def most_probable(level, inputs):
    """The action without noise, from the actor's layers."""
    with torch.no_grad():
        return level.algorithm.policy.actor.net(inputs)[0][..., : level.action_space.shape[0]].tanh()


SURPRISING = 1.95
"""Value of `kolmogorov` that is exceeded once in 1000."""


def kolmogorov(values, distribution):
    """Largest distance between the empirical and the expected distribution function, times the root of n."""
    n, expected = len(values), distribution(values.sort().values)
    steps = torch.arange(n + 1) / n
    return float(torch.maximum((expected - steps[:-1]).abs(), (expected - steps[1:]).abs()).max()) * n**0.5


def uniform(values):
    return (values + 1) / 2


@LEVELS
def test_the_random_phase_is_uniform_and_follows_the_generator(config):
    level = make(config, learning=replace(LEARNING, n_random_steps=10))
    obs = torch.zeros(1500, WIDTH)
    for n in (0, 9):
        level.learn(n)
        torch.manual_seed(n)
        action = act(level, obs=obs).action
        assert torch.equal(action, act(level, obs=obs).action)
        assert not torch.equal(action, act(level, obs=obs, seed=1).action)
        for column in action.T:
            assert kolmogorov(column, uniform) < SURPRISING
    torch.testing.assert_close(act(level, explore=False, obs=obs[:2]).action, most_probable(level, obs[:2]))
    level.learn(10)
    action = act(level, obs=obs).action
    assert kolmogorov(action[:, 0], uniform) > 2 * SURPRISING


def test_sac_explores_by_its_distribution():
    level = make()
    obs = torch.linspace(-1, 1, WIDTH).expand(4000, WIDTH)
    action = act(level, obs=obs).action
    assert (action.abs() <= 1).all()
    actor = level.algorithm.policy.actor
    with torch.no_grad():
        mean, log_std = actor.net(obs[:1])[0, 0].double().chunk(2)
        normal = torch.distributions.Normal(mean, log_std.exp())
    for j in range(2):
        assert kolmogorov(action[:, j].double().atanh(), lambda x, j=j: normal.cdf(x[:, None])[:, j]) < SURPRISING
    assert not torch.equal(action, act(level, obs=obs).action)  # it draws from torch's global generator
    torch.manual_seed(3)
    action = act(level, obs=obs).action
    torch.manual_seed(3)
    assert torch.equal(action, act(level, obs=obs).action)


def test_td3_adds_noise_and_clips():
    level = make(replace(CONFIGS["td3"], exploration_noise=0.5))
    obs = torch.linspace(-2, 2, WIDTH).expand(4000, WIDTH)
    center = most_probable(level, obs[:1])[0].numpy()
    torch.manual_seed(0)
    action = act(level, obs=obs).action.numpy()
    assert action.dtype == np.float32
    torch.manual_seed(0)
    expected = np.clip(center + 0.5 * torch.randn(4000, 2).numpy(), -1, 1)
    np.testing.assert_allclose(action, expected, atol=1e-6)
    assert action.max() == 1
    quiet = make(replace(CONFIGS["td3"], exploration_noise=0.0))
    torch.testing.assert_close(act(quiet).action, act(quiet, explore=False).action)


@LEVELS
@pytest.mark.parametrize("n", [1, 5])
def test_without_exploration_the_most_probable_action_is_taken(config, n):
    """In any number of environments, and without using a generator."""
    level = make(config)
    observe(level, 10)
    level.learn(20)
    obs = torch.linspace(-2, 2, n * WIDTH).view(n, WIDTH)
    before = torch.get_rng_state()
    decision = act(level, n, explore=False, obs=obs)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(decision.action, most_probable(level, obs))
    assert torch.equal(decision.action, act(level, n, explore=False, obs=obs).action)
    assert decision.duration.tolist() == [1] * n
    assert not decision.action.requires_grad
    for i in range(n):
        torch.testing.assert_close(act(level, 1, explore=False, obs=obs[i : i + 1]).action[0], decision.action[i])


def test_actions_last_the_duration():
    level = make(duration=4, learning=replace(LEARNING, n_random_steps=10))
    assert act(level).duration.tolist() == act(level, explore=False).duration.tolist() == [4] * E
    with pytest.raises(ValueError, match="duration is 0, expected at least 1"):
        make(duration=0)


@pytest.mark.parametrize(
    ("commands", "action", "seen"),
    [
        (GOALS, [[1.0, -2.0], [3.0, 0.5]], [[1.0, -2.0], [3.0, 0.5]]),
        (CHOICES, [[3], [1]], [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
    ],
    ids=["goals", "choices"],
)
def test_commands_change_the_action(commands, action, seen):
    level, obs = make(commands=commands), torch.full((2, WIDTH), 0.3)
    found = act(level, explore=False, obs=obs, command=command_of(torch.tensor(action))).action
    torch.testing.assert_close(found, most_probable(level, torch.cat([obs, torch.tensor(seen)], -1)))
    assert not torch.equal(found[0], found[1])


# ------------------------------------------------------------------ gradients that are not finite


def spoil(when, value=math.inf):
    """A relabelling that gives some batches, by their number from 1, a reward that is not finite."""
    calls = iter(range(1, 10**9))

    def relabel(batch, replay):
        if when(next(calls)):
            batch.rew[0] = value
        return batch

    return relabel


@pytest.mark.parametrize(("config", "value"), [("sac", math.nan), ("td3", math.inf)])
def test_updates_that_are_not_finite_are_skipped_and_counted_up_to_a_limit(config, value):
    level = make(CONFIGS[config], n_envs=1, learning=replace(LEARNING, max_skipped=2, report_every=4))
    level.relabel = spoil(lambda n: n >= 4, value)
    for n in range(1, 4):
        observe(level, 1, seed=n)
        level.learn(n)
    before = parameters(level)
    observe(level, 1, seed=4)
    assert level.learn(4) == {}
    observe(level, 1, seed=5)
    metrics = level.learn(5)
    assert metrics["policy/skipped_updates"] == 2
    assert metrics["policy/updates"] == 5
    assert all(math.isfinite(number) for number in metrics.values())
    assert same(parameters(level), before)
    for n in (6, 7):  # are counted anew
        observe(level, 1, seed=n)
        level.learn(n)
    observe(level, 1, seed=8)
    message = r"gradient of critic\..* of the policy level is not finite in update 7, after 2 others since the last"
    with pytest.raises(NonFiniteError, match=message):
        level.learn(8)
    assert same(parameters(level), before)
    level.relabel = None
    level.learn(8)
    assert not same(parameters(level), before)


def test_an_algorithm_of_tianshou_with_networks_of_one_s_own():
    """Is trained by its own update; updates that are not finite are skipped, too."""

    def network(width):
        return torch.nn.Sequential(
            torch.nn.Linear(width, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    class Critic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(WIDTH + 2)

        def forward(self, obs, act, info=None):
            return self.net(torch.cat([obs, act], -1))

    class Actor(torch.nn.Module):
        max_action = 1.0

        def __init__(self):
            super().__init__()
            self.net = torch.nn.ModuleList([network(WIDTH), network(WIDTH)])

        def forward(self, obs, state=None, info=None):
            return torch.cat([net(obs) for net in self.net], -1).tanh(), state

    torch.manual_seed(0)
    adam = AdamOptimizerFactory(lr=1e-2)
    policy = DeterministicPolicy(actor=Actor(), action_space=ACTIONS)
    algorithm = TD3(policy=policy, critic=Critic(), critic2=Critic(), policy_optim=adam, critic_optim=adam)
    learning = replace(LEARNING, n_random_steps=0, max_skipped=2, report_every=4)
    level = PolicyLevel(algorithm, ACTIONS, n_envs=1, learning=learning, relabel=spoil(lambda n: n in (2, 6, 7, 8)))
    before = parameters(level)
    reports = {}
    with pytest.raises(NonFiniteError, match=r"gradient of critic\.net\.0\.weight of the policy level .* in update 7"):
        run(level, range(1, 10), reports)
    assert reports[5]["policy/skipped_updates"] == 1
    assert all(math.isfinite(value) for value in reports[5].values())
    assert not any(torch.equal(p, before[name]) for name, p in level.algorithm.named_parameters())


@LEVELS
def test_updates_that_are_not_finite_are_found_among_those_taken_together(config):
    learning = replace(LEARNING, n_random_steps=0, updates_per_transition=8, report_every=3, max_skipped=2)
    level = make(config, n_envs=1, learning=learning)

    def relabel(batch, replay):
        batch.rew[[5, 3 * learning.batch_size]] = math.nan  # of the first and the fourth update
        return batch

    observe(level, 1, seed=1)
    level.learn(1)
    observe(level, 1, seed=2)
    level.relabel = relabel
    level.learn(2)
    assert (level.n_updates, level.n_skipped) == (16, 2)
    assert set(level._means.state_dict()["counts"].values()) == {14}
    assert all(p.isfinite().all() for p in parameters(level).values())
    observe(level, 1, seed=3)
    with pytest.raises(NonFiniteError, match="in update 16, after 2 others"):
        level.learn(3)


def test_a_level_is_saved_also_with_too_many_updates_that_were_skipped():
    """On a GPU they are still to be read when a level is saved."""
    level = make(n_envs=1, learning=replace(LEARNING, max_skipped=2))
    level._unread = [{"gradient_norm": math.nan}] * 4
    level.n_updates = 4
    state = level.state_dict()
    assert (state["n_updates"], state["n_skipped"]) == (4, 4)
    with pytest.raises(NonFiniteError, match="after 3 others"):
        level._settle()  # also if no further one is skipped
    level._settle()  # once: a run may go on


# ------------------------------------------------------------------ resuming


def run(level, steps, reports=None):
    for n in steps:
        observe(level, 1, seed=n)
        metrics = level.learn(n)
        if reports is not None and metrics:
            reports[n] = metrics


def save(level, folder):
    state = {"level": level.state_dict(), "replay": level.replay.state_dict()}
    Checkpoints(folder).save(state, level.n_total_env_steps)


@LEVELS
@pytest.mark.parametrize("n_steps", [4, 15], ids=["before the first update", "amid a reporting period"])
def test_a_level_resumes_bit_for_bit(config, n_steps, tmp_path):
    """Whatever its networks and seed were before."""
    learning = replace(LEARNING, n_random_steps=6, updates_per_transition=1.5, report_every=7)
    level = make(config, n_envs=1, learning=learning, relabel=spoil(lambda n: n % 3 == 0))
    run(level, range(1, n_steps + 1))
    assert (level.n_updates, level.n_skipped) == ((0, 0) if n_steps == 4 else (15, 1))
    save(level, tmp_path)
    state = Checkpoints(tmp_path).load()
    untouched = leaves(copy.deepcopy(state["level"]))
    other = make(config, n_envs=1, learning=learning, seed=1)
    run(other, range(1, 10))
    other.load_state_dict(state["level"])
    other.replay.load_state_dict(state["replay"])
    assert leaves(state["level"]) == untouched
    reports = ({}, {})
    for one, report in zip((level, other), reports, strict=True):
        one.relabel = None
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        run(one, range(n_steps + 1, n_steps + 16), report)
    assert len(reports[0]) >= (2 if n_steps == 15 else 1)
    assert reports[0] == reports[1]
    assert ("policy/skipped_updates" in next(iter(reports[0].values()))) == (n_steps == 15)
    assert leaves(level.state_dict()) == leaves(other.state_dict())


def test_the_state_of_another_policy_is_refused():
    level = make()
    for other, message in [
        (make(CONFIGS["td3"]), "alpha's optimizer"),
        (make(commands=GOALS), r"size mismatch for .*\[1, 5, 8\].*\[1, 3, 8\]"),
    ]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            level.load_state_dict(other.state_dict())


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Box(-2.0, 1.0, (2,)),
        spaces.Box(-1.0, np.inf, (2,)),
        spaces.Box(-1.0, 1.0, (2, 2)),
    ],
)
def test_other_action_spaces_are_refused(space):
    algorithm = CONFIGS["sac"].build(WIDTH, ACTIONS, CPU)
    with pytest.raises(ValueError, match=rf"action space is {re.escape(str(space))}, expected a flat Box of \[-1, 1\]"):
        PolicyLevel(algorithm, space, n_envs=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_random_steps": -1}, "n_random_steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"replay_size": 0}, "replay_size is 0"),
        ({"report_every": 0}, "report_every is 0"),
        ({"max_skipped": -1}, "max_skipped is -1"),
        ({"updates_per_transition": -0.5}, "updates_per_transition is -0.5"),
        ({"updates_per_transition": math.nan}, "updates_per_transition is nan"),
        ({"updates_per_transition": math.inf}, "updates_per_transition is inf"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyLearningConfig(**settings)
