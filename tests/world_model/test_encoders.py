"""LearnedEncoder: its maps, the changing dimensions that it finds, and who may train it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.task import TaskSpec
from layeredrl.world_model import (
    LearnedEncoder,
    ModelLearningConfig,
    OnlineLearningConfig,
    Oracle,
    WorldModel,
    WorldModelLearner,
)

BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)
SKILLS = spaces.Box(-1.0, 1.0, (2,), np.float32)
TASK = TaskSpec(spaces.Dict(desired_goal=BOX, observation=spaces.Box(-np.inf, np.inf, (3,), np.float32)), SKILLS)


def make(latent_dim=2, context_dim=2, **settings):
    torch.manual_seed(0)
    return LearnedEncoder(TASK, latent_dim, context_dim, **settings)


def make_transitions(n=50, moving=(2, 4)):
    """Observations (n, 5) before and after a step that changes some dimensions."""
    generator = torch.Generator().manual_seed(1)
    obs = torch.randn((n, 5), generator=generator) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) + 7
    obs_next = obs.clone()
    obs_next[: n // 5, list(moving)] += 0.1
    return obs, obs_next


@pytest.mark.parametrize("standardize", [True, False])
def test_state_is_linear_in_changing_dimensions_and_context_in_constant_ones(standardize):
    encoder = make(standardize=standardize)
    obs, obs_next = make_transitions()
    encoder.fit(obs, obs_next)
    assert encoder.changes.tolist() == [False, False, True, False, True]
    seen = obs
    if standardize:
        seen = (obs - obs_next.mean(0)) / obs_next.std(0, correction=0)
    state, context = encoder(obs)
    torch.testing.assert_close(state, seen[:, [2, 4]] @ encoder.to_state[:, [2, 4]].mT)
    torch.testing.assert_close(context, seen[:, [0, 1, 3]] @ encoder.to_context[:, [0, 1, 3]].mT)
    assert (encoder.state_space.shape, encoder.context_space.shape) == ((2,), (2,))
    many, known = encoder(obs[:6].view(2, 3, 5))
    torch.testing.assert_close(many, state[:6].view(2, 3, 2))
    torch.testing.assert_close(known, context[:6].view(2, 3, 2))


def test_before_a_fit_everything_is_state():
    encoder = make()
    obs, _ = make_transitions()
    state, context = encoder(obs)
    torch.testing.assert_close(state, obs @ encoder.to_state.mT)
    assert not context.any()


def test_normalized_rows_have_length_one_and_zeros_for_unseen_dimensions():
    encoder = make()
    torch.testing.assert_close(encoder.to_state @ encoder.to_state.mT, torch.eye(2))
    encoder.fit(*make_transitions())
    with torch.no_grad():
        encoder.to_state.mul_(7.0).add_(1.0)
        encoder.to_context.mul_(0.1).add_(1.0)
    encoder.normalize()
    for weight, unseen in ((encoder.to_state, [0, 1, 3]), (encoder.to_context, [2, 4])):
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(2))
        assert not weight[:, unseen].any()


def test_dimensions_that_change_later_become_state_but_statistics_stay():
    encoder = make()
    encoder.fit(*make_transitions())
    mean = encoder.standardizer.mean.clone()
    obs, obs_next = make_transitions(moving=(0,))
    encoder.fit(obs + 100, obs_next + 100)
    assert encoder.changes.tolist() == [True, False, True, False, True]
    assert torch.equal(encoder.standardizer.mean, mean)
    assert not encoder.to_context[:, 0].any()
    encoder.with_gradients(obs)[0].square().sum().backward()
    assert encoder.to_state.grad[:, 0].all()  # so that it can learn this dimension


def test_without_changing_or_constant_dimensions_a_part_is_zero():
    obs, _ = make_transitions()
    still, moved = make(), make()
    still.fit(obs, obs)
    moved.fit(obs, obs + 1)
    assert not still(obs)[0].any()
    assert not moved(obs)[1].any()
    assert still(obs)[1].isfinite().all()
    assert make(context_dim=0)(obs)[1].shape == (50, 0)


def test_gradients_flow_only_on_request():
    encoder = make()
    obs, obs_next = make_transitions()
    encoder.fit(obs, obs_next)
    assert not any(x.requires_grad for x in encoder(obs))
    state, context = encoder.with_gradients(obs)
    (state.sum() + context.sum()).backward()
    assert encoder.to_state.grad[:, [2, 4]].all()
    assert not encoder.to_state.grad[:, [0, 1, 3]].any()
    assert encoder.to_context.grad[:, [0, 1, 3]].all()
    assert not encoder.to_context.grad[:, [2, 4]].any()


def test_a_loaded_encoder_fits_like_the_saved_one():
    encoder, other = make(), make()
    encoder.fit(*make_transitions())
    with torch.no_grad():
        encoder.to_state.add_(0.1)
    other.load_state_dict(encoder.state_dict())
    obs, obs_next = make_transitions(moving=(1,))
    for one in (encoder, other):
        one.fit(obs + 3, obs_next + 3)
    for found, expected in zip(other(obs), encoder(obs), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((0, 1), "latent_dim is 0, expected at least 1"),
        ((1, -1), "context_dim is -1, expected at least 0"),
        ((6, 1), "latent_dim is 6, expected at most the observation's 5"),
        ((1, 6), "context_dim is 6, expected at most"),
    ],
)
def test_widths_out_of_range_are_named(dims, message):
    with pytest.raises(ValueError, match=message):
        make(*dims)


@pytest.mark.parametrize("known", ["reward", "termination"])
def test_known_functions_of_other_states_are_refused(known):
    def function(state, context, action, next_state):
        return state[..., 0]

    encoder = make()
    dynamics = Oracle.from_step(encoder.state_space, encoder.context_space, SKILLS, lambda state, context, act: state)
    with pytest.raises(ValueError, match=f"the task's {known} is known, of states that a LearnedEncoder changes"):
        WorldModel(encoder, dynamics, TaskSpec(TASK.observation_space, SKILLS, **{known: function}))


def test_fits_refuse_to_train_it():
    encoder, task = make(2, 0), replace(TASK, reward=None)
    dynamics = ProbabilisticEnsemble(
        encoder.state_space, encoder.context_space, SKILLS, GaussianMixtureMLP, create_optimizer=True
    )
    world = WorldModel(encoder, dynamics, task)
    with pytest.raises(TypeError, match="the encoder is a LearnedEncoder, which fits do not train"):
        WorldModelLearner(world, ModelLearningConfig())
    WorldModelLearner(world, OnlineLearningConfig())
