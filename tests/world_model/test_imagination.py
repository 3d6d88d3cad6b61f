"""Imagined transitions, of networks that move a point by known amounts, against a plain loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import nn

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.storage import Checkpoints, Replay
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, Imagination, ImaginationConfig, WorldModel
from layeredrl.world_model.imagination import AT_ONCE
from layeredrl.world_model.transitions import BatchTransitions, ReplayTransitions
from tests.models.networks import ConstantNet, DriftNet, ExplodingNet, Members
from tests.world_model.points import known_reward

CPU, GAMMA = torch.device("cpu"), 0.9
ACTION = spaces.Box(-1.0, 1.0, (2,))
OBSERVATION = spaces.Box(-1e6, 1e6, (2,))
CONFIG = ImaginationConfig(n_branches=100, n_steps=(3, 3), kept_fits=2)
DATA = BatchTransitions(Batch(obs=torch.arange(20.0).view(10, 2)))


def policy(obs):
    return torch.sin(obs)


def make(nets, config=CONFIG, *, observation=OBSERVATION, kind=ProbabilisticEnsemble, n_modes=1, **task):
    task = TaskSpec(observation, ACTION, **{"reward": known_reward} | task)
    encoder = Encoder(task)
    dynamics = kind(
        encoder.state_space,
        encoder.context_space,
        ACTION,
        Members(nets),
        n_models=len(nets),
        normalize_targets=False,
        n_modes=n_modes,
    )
    return Imagination(WorldModel(encoder, dynamics, task), config, GAMMA, seed=1)


def all_rows(ring):
    return ring.rows(ring.n_added - len(ring), ring.n_added)


def imagined(imagination, data=DATA, n_total_env_steps=0):
    metrics = imagination.imagine(data, policy, n_total_env_steps)
    return Batch(all_rows(imagination.ring)), metrics


def steps_of(rows, n_steps=3):
    """Rows by step and branch, where every branch went all the way: (steps, branches, ...)."""
    return [Batch({key: x[i * 100 : (i + 1) * 100] for key, x in rows.items()}) for i in range(n_steps)]


class PartingNet(DriftNet):
    """Moves by one a step until beyond 19, where it moves by `parted`."""

    def __init__(self, parted):
        super().__init__(1.0, std=0.1, term_prob=0.0)
        self.parted = nn.Parameter(torch.tensor(parted))

    def forward(self, state, context, action):
        (mean, std), weights, term_prob = super().forward(state, context, action)
        beyond = (state[..., :1] > 19).unsqueeze(-2)
        return (torch.where(beyond, self.parted, mean), std), weights, term_prob


def test_branches_follow_the_policy_from_states_of_the_data():
    rows, metrics = imagined(make([DriftNet(0.5, std=1e-6, term_prob=0.0)]))
    assert len(rows.obs) == 300
    first, second, third = steps_of(rows)
    assert set(map(tuple, first.obs.tolist())) == set(map(tuple, DATA.batch.obs.tolist()))
    assert torch.equal(first.obs_next, second.obs)
    assert torch.equal(second.obs_next, third.obs)
    torch.testing.assert_close(rows.act, torch.sin(rows.obs))
    moved = rows.obs + 0.5 + rows.act.sum(-1, keepdim=True)
    torch.testing.assert_close(rows.obs_next, moved, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.rew, -rows.obs_next.square().sum(-1))
    assert (rows.discount == GAMMA).all()
    assert (metrics["imagination/length"], metrics["imagination/cut"], metrics["imagination/terminated"]) == (3, 0, 0)
    assert metrics["imagination/reward"] == pytest.approx(float(rows.rew.mean()), rel=1e-5)
    assert metrics["imagination/transitions"] == 300


def test_branches_end_with_the_predicted_probability_and_are_discounted_by_it():
    imagination = make([DriftNet(term_prob=0.25)], replace(CONFIG, n_branches=3 * AT_ONCE + 5))
    rows, metrics = imagined(imagination)
    assert metrics["imagination/length"] == pytest.approx(1 + 0.75 + 0.75**2, abs=0.05)
    assert metrics["imagination/terminated"] == pytest.approx(1 - 0.75**3, abs=0.02)
    torch.testing.assert_close(rows.discount, torch.full_like(rows.discount, 0.75 * GAMMA))


def test_a_known_termination_replaces_the_learned_one():
    def termination(state, context, action, next_state):
        return next_state[..., 0] > 10

    rows, _ = imagined(make([DriftNet(term_prob=0.25)], termination=termination))
    assert torch.equal(rows.discount == 0, rows.obs_next[:, 0] > 10)
    real = set(map(tuple, DATA.batch.obs.tolist()))
    later = [tuple(obs) not in real for obs in rows.obs.tolist()]
    assert any(later)
    assert (rows.obs[torch.tensor(later), 0] <= 10).all()


def test_noise_has_the_predicted_size_unless_branches_are_deterministic():
    nets = [DriftNet(0.5, std=0.3, term_prob=0.0)]
    for deterministic in (False, True):
        config = replace(CONFIG, n_branches=20_000, n_steps=(1, 1), deterministic=deterministic)
        rows, _ = imagined(make(nets, config))
        noise = rows.obs_next - rows.obs - 0.5 - rows.act.sum(-1, keepdim=True)
        assert float(noise.std()) == pytest.approx(0.0 if deterministic else 0.3, abs=0.005)


def test_deterministic_branches_follow_the_mean_of_several_modes():
    net = ConstantNet(torch.tensor([[0.0, 0.0], [4.0, 8.0]]), torch.ones(2, 2), torch.tensor([0.25, 0.75]))
    rows, _ = imagined(make([net], replace(CONFIG, deterministic=True), n_modes=2))
    torch.testing.assert_close(rows.obs_next - rows.obs, torch.tensor([[3.0, 6.0]]).expand(300, 2))


@pytest.mark.parametrize("member_of", ["step", "branch"])
def test_each_step_or_branch_has_a_member_of_its_own(member_of):
    nets = [DriftNet(100.0 * i, std=1e-6, term_prob=0.0) for i in range(3)]
    config = replace(CONFIG, member_of=member_of)
    rows, _ = imagined(make(nets, config))
    chosen = ((rows.obs_next - rows.obs)[:, 0] / 100).round().long().view(3, 100)
    for step in chosen:
        assert sorted(torch.bincount(step, minlength=3).tolist()) == [33, 33, 34]
    assert bool((chosen[0] == chosen[1]).all()) == (member_of == "branch")


def test_members_compute_their_own_rows_where_branches_have_ended():
    # Members that end half of their branches leave the others with more rows than they have.
    nets = [ConstantNet(torch.full((1, 2), 7.0 * i), torch.full((1, 2), 1e-6), term_prob=i / 2) for i in range(2)]
    rows, _ = imagined(make(nets, replace(CONFIG, member_of="branch")))
    moved = (rows.obs_next - rows.obs)[:, 0].round().long()
    assert set(moved.tolist()) == {0, 7}
    torch.testing.assert_close(rows.discount, torch.where(moved == 7, 0.5 * GAMMA, GAMMA))
    assert int((moved == 0).sum()) == 150


@pytest.mark.parametrize("bound", ["schedule", "macura"])
def test_the_member_that_moves_a_state_also_ends_it(bound):
    nets = [ConstantNet(torch.full((1, 2), 7.0 * i), torch.ones(1, 2), term_prob=i / 2) for i in range(2)]
    rows, _ = imagined(make(nets, replace(CONFIG, bound=bound, divergence_factor=100.0)))
    moved = (rows.obs_next - rows.obs)[:, 0] > 3.5
    assert float((torch.where(moved, 0.5, 1.0) * GAMMA == rows.discount).float().mean()) > 0.99
    assert 0.2 < float(moved.float().mean()) < 0.8


def test_what_grows_beyond_belief_within_a_branch_is_cut():
    class GrowingNet(DriftNet):
        def forward(self, state, context, action):
            (mean, std), weights, term_prob = super().forward(state, context, action)
            return (mean + 1e5 * state.unsqueeze(-2), std), weights, term_prob

    imagination = make([GrowingNet(term_prob=0.0)], replace(CONFIG, n_steps=(6, 6)))
    imagination.dynamics.size.fill_(20.0)
    rows, metrics = imagined(imagination)
    assert rows.obs_next.abs().max() < 2e7
    assert metrics["imagination/cut"] == 1


def test_a_termination_that_is_no_number_is_left_out():
    def termination(state, context, action, next_state):
        return torch.where(next_state[..., 0] > 10, torch.nan, 0.0)

    rows, metrics = imagined(make([DriftNet()], termination=termination))
    assert (rows.obs_next[:, 0] <= 10).all()
    assert (rows.discount == GAMMA).all()
    assert metrics["imagination/cut"] > 0.3


def test_what_leaves_the_finite_range_is_left_out():
    rows, metrics = imagined(make([ExplodingNet(limit=10.0)], termination=lambda s, c, a, n: n[..., 0] > 1e9))
    assert (rows.obs[:, 0] <= 10).all()
    assert rows.obs_next.isfinite().all()
    assert metrics["imagination/cut"] > 0.3


def test_the_number_of_steps_grows_with_the_schedule():
    imagination = make([DriftNet()], replace(CONFIG, n_steps=(1, 5), schedule=(100, 500)))
    assert [imagination.n_steps(n) for n in (0, 100, 199, 200, 300, 499, 500, 9999)] == [1, 1, 1, 2, 3, 4, 5, 5]
    assert make([DriftNet()] * 2, replace(CONFIG, n_steps=(1, 5), bound="macura")).n_steps(0) == 5


@pytest.mark.parametrize("bound", ["macura", "infoprop"])
def test_branches_are_cut_where_members_disagree(bound):
    config = replace(CONFIG, bound=bound, n_branches=500, n_steps=(10, 10), divergence_quantile=0.5)
    rows, metrics = imagined(make([PartingNet(1.0), PartingNet(-1.0)], config))
    assert (rows.obs[:, 0] <= 19).all()  # none of the data is beyond
    assert metrics["imagination/cut"] > 0.1
    assert len(rows.obs) > 500


def test_transitions_of_the_last_fits_are_learned_from():
    imagination = make([DriftNet(term_prob=0.0)], replace(CONFIG, n_branches=10))
    sizes = []
    for n_steps in (3, 1, 1):
        imagination.config = replace(CONFIG, n_branches=10, n_steps=(n_steps, n_steps))
        imagination.imagine(DATA, policy, 0)
        sizes.append(len(imagination))
    assert sizes == [30, 40, 20]
    newest = all_rows(imagination.ring)["obs"][-20:].tolist()
    assert all(obs in newest for obs in imagination.sample(500).obs.tolist())


def test_goals_stay_and_only_the_state_moves():
    observation = spaces.Dict(desired_goal=spaces.Box(-9, 9, (1,)), observation=spaces.Box(-9, 9, (2,)))
    data = BatchTransitions(Batch(obs=torch.randn(10, 3)))

    def reward(state, context, action, next_state):
        return context[..., 0]

    imagination = make([DriftNet(1.0, std=1e-6, term_prob=0.0)], observation=observation, reward=reward)
    imagination.imagine(data, lambda obs: torch.zeros(len(obs), 2), 0)
    rows = Batch(all_rows(imagination.ring))
    assert torch.equal(rows.obs[:, 0], rows.obs_next[:, 0])
    assert torch.equal(rows.rew, rows.obs[:, 0])
    torch.testing.assert_close(rows.obs_next[:, 1:], rows.obs[:, 1:] + 1, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bound", ["schedule", "macura"])
def test_a_restored_imagination_goes_on_alike(bound, tmp_path):
    first, second = (make([DriftNet(0.1 * i) for i in (1, 2)], replace(CONFIG, bound=bound)) for _ in range(2))
    first.imagine(DATA, policy, 0)
    Checkpoints(tmp_path).save(first.state_dict(), 1)
    second.load_state_dict(Checkpoints(tmp_path).load())
    results = [(each.imagine(DATA, policy, 0), each.sample(100).obs) for each in (first, second)]
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_a_state_has_no_transitions_that_are_not_learned_from_any_more():
    config = replace(CONFIG, n_branches=10, n_steps=(1, 8), schedule=(100, 200))
    imagination = make([DriftNet(term_prob=0.0)], config)
    for _ in range(5):
        imagination.imagine(DATA, policy, 0)
    assert len(imagination.ring) == 50
    assert len(imagination.state_dict()["ring"]["rows"].rows["obs"]) == len(imagination) == 20


def test_transitions_of_a_replay_are_starts():
    replay = Replay(50, 2)
    for i in range(30):
        obs = np.array([[i, 0], [i, 1]], np.float32)
        over = np.zeros(2, bool)
        row = {"obs": obs, "act": obs, "rew": obs[:, 0].astype(float), "terminated": over, "truncated": over}
        replay.add(Batch(**row, obs_next=obs + 1, info=Batch(duration=np.ones(2, int))), np.arange(2))
    data = ReplayTransitions(replay, 1, CPU)
    data.update()
    rows, _ = imagined(make([DriftNet(term_prob=0.0)], replace(CONFIG, n_branches=2000)), data)
    starts = rows.obs[:2000]
    assert {tuple(x) for x in starts.tolist()} == {(float(i), float(j)) for i in range(5, 30) for j in range(2)}


def test_bad_input():
    for settings, message in (
        ({"n_steps": (3, 2)}, "n_steps is .3, 2., expected two numbers, the second at least the first"),
        ({"n_steps": (2,)}, "n_steps is .2,., expected two numbers"),
        ({"n_steps": 5}, "n_steps is 5, expected two numbers"),
        ({"schedule": 1000}, "schedule is 1000, expected two numbers"),
        ({"schedule": (1, 2, 3)}, "schedule is .1, 2, 3., expected two numbers"),
        ({"loss_quantiles": (0.9,)}, r"loss_quantiles is .0\.9,., expected two numbers"),
        ({"divergence_factor": float("inf")}, r"divergence_factor is inf, expected a number in \(0, inf\)"),
        ({"n_steps": (0, 2)}, "n_steps is 0, expected at least 1"),
        ({"bound": "luck"}, "bound is 'luck', expected one of schedule, macura, infoprop"),
        ({"n_branches": 0}, "n_branches is 0"),
        ({"loss_quantiles": (0.5, 1.5)}, "loss_quantiles is 1.5"),
        ({"schedule": (5, 4)}, "schedule is .5, 4."),
    ):
        with pytest.raises(ValueError, match=message):
            replace(CONFIG, **settings)
    with pytest.raises(TypeError, match=r"n_steps is 1\.5"):
        replace(CONFIG, n_steps=(1.5, 2.5))
    with pytest.raises(ValueError, match="n_models is 1 and n_modes is 1 with the bound macura, expected at least two"):
        make([DriftNet()], replace(CONFIG, bound="macura"))
    for bound in ("macura", "infoprop"):
        with pytest.raises(TypeError, match=f"dynamics is DeterministicEnsemble with the bound {bound}, expected"):
            make([DriftNet()] * 2, replace(CONFIG, bound=bound), kind=DeterministicEnsemble)


def test_a_state_without_all_of_the_observation_is_refused():
    world = make([DriftNet()]).world
    world.encoder.observation_dim += 1
    with pytest.raises(ValueError, match=r"the state and the context have 2 and 0 dimensions .* expected all 3"):
        Imagination(world, CONFIG, 0.9)
