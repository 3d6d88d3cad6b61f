"""Objective against a plain loop over members, particles and steps, piece by piece and all together."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Batch
from torch import nn

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.task import TaskSpec
from layeredrl.world_model import Encoder, GridSupport, Objective, Oracle, Support, WorldModel

B, M, P, H, S, C, A = 4, 3, 2, 5, 3, 1, 2
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class HalfSpace(Support):
    """Supports states whose first number is at most zero, and keeps the data it was fitted to."""

    def fit(self, state):
        self.fitted = state

    def forward(self, state):
        return (state[..., 0] > 0).to(state.dtype)


def linear_value(state, context):
    """Value that depends on every number of the state and the context."""
    return state @ torch.tensor([1.0, -2.0, 0.5]) + 3 * context[..., 0]


def make_rollout(seed=0):
    generator = torch.Generator().manual_seed(seed)
    term_prob = torch.rand(B, M, P, H, generator=generator)
    alive = torch.cat([torch.ones(B, M, P, 1), (1 - term_prob).cumprod(-1)[..., :-1]], -1)
    return Batch(
        state=torch.randn(B, M, P, H + 1, S, generator=generator),
        reward=torch.randn(B, M, P, H, generator=generator),
        alive=alive,
        term_prob=term_prob,
    ), torch.randn(B, C, generator=generator)


def plain(rollout, context, scale, *, discount=1.0, value=None, uncertainty=0.0, support_weight=0.0):
    """The objective, one number after the other."""
    x, result = rollout.state.double(), torch.empty(B, M, P)
    for b, m, p in np.ndindex(B, M, P):
        total, alive = 0.0, 1.0
        for t in range(H):
            gain = float(rollout.reward[b, m, p, t])
            squares = [np.var([float(x[b, k, p, t + 1, i]) / scale[i] for k in range(M)]) for i in range(S)]
            gain -= uncertainty * math.sqrt(np.mean(squares))
            gain -= support_weight * (float(x[b, m, p, t + 1, 0]) > 0)
            total += discount**t * alive * gain
            alive *= 1 - float(rollout.term_prob[b, m, p, t])
        if value is not None:
            total += discount**H * alive * float(value(x[b, m, p, H].float(), context[b]))
        result[b, m, p] = total
    return result


@pytest.mark.parametrize(
    ("discount", "uncertainty", "value", "support_weight"),
    [
        (1, 0.0, None, 0.0),
        (0.8, 0.0, None, 0.0),
        (0.0, 0.0, linear_value, 0.0),
        (1.0, 0.7, None, 0.0),
        (1.0, 0.0, None, 1.5),
        (1.0, 0.0, linear_value, 0.0),
        (0.8, -0.7, linear_value, 1.5),
    ],
)
def test_scores_are_those_of_a_plain_loop(discount, uncertainty, value, support_weight):
    objective = Objective(
        S,
        discount=discount,
        value=value,
        uncertainty_weight=uncertainty,
        support=HalfSpace(),
        support_weight=support_weight,
    )
    scale = [0.5, 2.0, 3.0]
    objective.state_scale.copy_(torch.tensor(scale))
    rollout, context = make_rollout()
    for exploring in (False, True):  # the support counts when not exploring, a bonus when exploring
        expected = plain(
            rollout,
            context,
            scale,
            discount=discount,
            value=value,
            uncertainty=uncertainty if exploring or uncertainty > 0 else 0.0,
            support_weight=0.0 if exploring else support_weight,
        )
        torch.testing.assert_close(objective(rollout, context, exploring=exploring), expected, **CLOSE)


def test_steps_after_certain_termination_do_not_count():
    rollout, context = make_rollout()
    rollout.term_prob[..., 2] = 1.0
    rollout.alive[..., 3:] = 0.0
    objective = Objective(S, value=linear_value, uncertainty_weight=1.0, support=HalfSpace(), support_weight=1.0)
    before = objective(rollout, context)
    rollout.reward[..., 3:] += 100
    rollout.state[..., 4:, :] *= -7
    assert torch.equal(objective(rollout, context), before)


def test_members_that_agree_have_no_penalty():
    rollout, context = make_rollout()
    rollout.state = rollout.state[:, :1].repeat(1, M, 1, 1, 1)
    objective = Objective(S, uncertainty_weight=1e6)
    objective.state_scale.copy_(torch.tensor([0.3, 1e-4, 7.0]))
    assert torch.equal(objective.disagreement(rollout.state), torch.zeros(B, P, H + 1))
    assert torch.equal(objective(rollout, context), Objective(S)(rollout, context))


def test_disagreement_is_measured_in_the_scale_of_the_data():
    states = torch.zeros(1, 2, 1, 1, S)
    states[0, 1, 0, 0] = torch.tensor([2.0, 0.0, 20.0])  # standard deviations over members: 1, 0 and 10
    objective = Objective(S)
    assert float(objective.disagreement(states)) == pytest.approx(math.sqrt((1 + 0 + 100) / 3))
    objective.state_scale.copy_(torch.tensor([1.0, 1.0, 10.0]))
    assert float(objective.disagreement(states)) == pytest.approx(math.sqrt((1 + 0 + 1) / 3))


def test_statistics_are_those_of_the_data():
    data = torch.randn(1001, S) * torch.tensor([0.2, 1.0, 30.0])
    data[:, 1] = 0.1  # which binary fractions do not hold exactly
    objective = Objective(S, support=HalfSpace(), support_weight=1.0)
    objective.fit_statistics(data)
    expected = [np.std(data[:, 0].double().numpy()), 1.0, np.std(data[:, 2].double().numpy())]
    np.testing.assert_allclose(objective.state_scale, expected, rtol=1e-5)
    assert objective.support.fitted is data
    objective.fit_statistics(data[:1])  # a single state has no scale
    assert objective.state_scale.tolist() == [1.0] * S


def test_a_weight_without_a_support_is_refused():
    with pytest.raises(ValueError, match=r"support_weight is 0\.5, but support is None"):
        Objective(S, support_weight=0.5)
    Objective(S, support=HalfSpace())


@pytest.mark.parametrize("weight", [math.nan, -math.inf])
@pytest.mark.parametrize("name", ["uncertainty_weight", "support_weight"])
def test_weights_that_are_not_finite_are_refused(name, weight):
    with pytest.raises(ValueError, match=f"{name} is {weight}, expected a finite number"):
        Objective(S, support=HalfSpace(), **{name: weight})


@pytest.mark.parametrize("discount", [-0.1, 1.1, math.nan])
def test_discounts_out_of_range_are_refused(discount):
    with pytest.raises(ValueError, match=f"discount is {discount}"):
        Objective(S, discount=discount)


OBSERVATIONS = spaces.Dict(
    desired_goal=spaces.Box(-np.inf, np.inf, (C,), np.float32),
    observation=spaces.Box(-np.inf, np.inf, (S,), np.float32),
)
ACTIONS = spaces.Box(-1.0, 1.0, (A,), np.float32)


def make_world(n_models=3, reward=lambda state, context, action, after: after[..., 0], propagation="tsinf", **settings):
    torch.manual_seed(0)
    task = TaskSpec(OBSERVATIONS, ACTIONS, reward=reward)
    encoder = Encoder(task)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space,
        encoder.context_space,
        ACTIONS,
        partial(GaussianMixtureMLP, hidden=(8,)),
        n_models=n_models,
        n_particles_per_model=P,
        propagation=propagation,
    )
    return WorldModel(encoder, dynamics, task, objective=Objective(S, **settings)).eval()


def test_disagreement_needs_several_members_with_particles_of_their_own():
    with pytest.raises(ValueError, match=r"uncertainty_weight is 0\.1, but the dynamics has one member"):
        make_world(n_models=1, uncertainty_weight=0.1)
    for propagation in ("ts1", "expectation"):
        with pytest.raises(ValueError, match=rf"uncertainty_weight is -0\.1, .*{propagation}.*expected 'tsinf'"):
            make_world(propagation=propagation, uncertainty_weight=-0.1)
        make_world(propagation=propagation)
    make_world(propagation="mode", uncertainty_weight=0.1)
    make_world(n_models=1)


def test_the_world_model_uses_the_objective():
    world = make_world(
        discount=0.9,
        value=linear_value,
        uncertainty_weight=0.4,
        support=GridSupport([0, 2], 0.5, min_visits=2),
        support_weight=0.3,
    )
    world.objective.fit_statistics(torch.randn(500, S))
    obs, actions = torch.randn(B, C + S), torch.rand(B, H, A) * 2 - 1
    with torch.no_grad():
        result = world.rollout(obs, actions, generator=torch.Generator().manual_seed(1))
        scores = world.score(obs, actions.unsqueeze(1), generator=torch.Generator().manual_seed(1))
    scale, support = world.objective.state_scale.tolist(), world.objective.support
    unsupported = support(result.state[..., 1:, :])
    assert 0 < unsupported.mean() < 1
    result.reward = result.reward - 0.3 * unsupported
    expected = plain(result, obs[:, :C], scale, discount=0.9, value=linear_value, uncertainty=0.4)
    torch.testing.assert_close(result.returns, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores[:, 0], expected.mean((1, 2)), rtol=1e-4, atol=1e-4)


def test_copies_of_an_oracle_never_disagree():
    task = TaskSpec(OBSERVATIONS, ACTIONS, reward=lambda state, context, action, after: after[..., 0])
    encoder = Encoder(task)

    def step(state, context, action):
        return 0.9 * state.roll(1, -1) + action[..., :1]

    model = Oracle.from_step(encoder.state_space, encoder.context_space, ACTIONS, step, n_models=3)
    obs, actions = torch.randn(B, C + S), torch.rand(B, 6, H, A) * 2 - 1
    scores = [
        WorldModel(encoder, model, task, objective=Objective(S, uncertainty_weight=w)).score(obs, actions)
        for w in (0.0, 1e6)
    ]
    assert torch.equal(*scores)


class LearnedValue(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(S + C, 1)

    def forward(self, state, context):
        return self.layer(torch.cat([state, context], -1)).squeeze(-1)


@pytest.mark.parametrize("kind", [LearnedValue, lambda: linear_value], ids=["module", "function"])
def test_the_objective_is_saved_with_the_world_model(kind, tmp_path):
    def make():
        support = GridSupport([0, 2], 0.5, min_visits=2)
        return make_world(value=kind(), uncertainty_weight=0.4, support=support, support_weight=0.3)

    first, other = make(), make()
    first.objective.fit_statistics(torch.randn(300, S) * torch.tensor([0.2, 1.0, 3.0]))
    with torch.no_grad():
        for parameter in first.objective.parameters():
            parameter.add_(0.5)
    is_module = kind is LearnedValue
    assert bool(list(first.objective.parameters())) is is_module
    rollout, context = make_rollout()
    with torch.no_grad():
        assert not torch.equal(first.objective(rollout, context), other.objective(rollout, context))
        torch.save(first.state_dict(), tmp_path / "state")
        other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert torch.equal(other.objective.state_scale, first.objective.state_scale)
        assert torch.equal(first.objective(rollout, context), other.objective(rollout, context))
