"""Deterministic ensembles: least squares, and rollouts without noise."""

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch

from layeredrl.models import FitConfig, fit
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.models.nets import GaussianMixtureMLP

S, A, M, P = 2, 1, 3, 4


def box(width: int) -> Box:
    return Box(-1.0, 1.0, (width,), np.float32)


def make(**settings: object) -> DeterministicEnsemble:
    net = partial(GaussianMixtureMLP, hidden=(16, 16), fixed_std=1.0)
    settings = {"n_models": M, "n_particles_per_model": P, "create_optimizer": True, "learning_rate": 3e-3} | settings
    return DeterministicEnsemble(box(S), box(0), box(A), net, **settings).eval()


def transitions(n: int = 200) -> Batch:
    generator = torch.Generator().manual_seed(0)
    state, action = torch.randn(n, S, generator=generator), torch.rand(n, A, generator=generator) * 2 - 1
    after = state + torch.stack((0.1 * state[:, 1], 0.1 * action[:, 0]), -1)
    none = torch.zeros(n, 0)
    return Batch(state=state, context=none, act=action, state_next=after, terminated=torch.zeros(n, dtype=torch.bool))


def test_the_loss_is_half_the_squared_error() -> None:
    model, batch = make(normalize_targets=False), transitions()
    mean, *_, term_prob = model.predict(batch.state, batch.context, batch.act)
    errors = (mean[:, :, 0] - batch.state_next[:, None]).square().sum(-1).mean(0) / 2
    constant = S * np.log(2 * np.pi) / 2
    surprise = model.loss(batch).detach() - M * constant - errors.sum()
    assert 0 < surprise.item() < 3 * M  # what is left is the cross-entropy of the termination
    assert ((term_prob > 0) & (term_prob < 1)).all()


@pytest.mark.parametrize("propagation", ["tsinf", "ts1", "expectation"])
def test_rollouts_have_no_noise(propagation: str) -> None:
    model = make(propagation=propagation)
    fit(model, transitions(), FitConfig(epochs=3, batch_size=32), generator=torch.Generator().manual_seed(0))
    state, actions = torch.randn(5, S), torch.rand(5, 6, A)
    result = model.rollout(state, torch.zeros(5, 0), actions, generator=torch.Generator().manual_seed(1))
    first = result.state[:, :, :, 1]
    members = model.predict(state, torch.zeros(5, 0), actions[:, 0])[0][:, :, 0]
    if propagation == "tsinf":  # a particle is its member's mean, from the first step on
        torch.testing.assert_close(first, members.unsqueeze(2).expand_as(first))
        assert (result.state_var == 0).all()
        assert (result.state_epistemic_var[:, -1] > 0).all()
    if propagation == "expectation":
        torch.testing.assert_close(first, members.mean(1)[:, None, None].expand_as(first))
    if propagation == "ts1":  # as many particles for each member, in any order
        found, expected = (x.flatten(1, 2).sort(1).values for x in (first, members.unsqueeze(2).expand_as(first)))
        torch.testing.assert_close(found, expected)
        assert (result.state[:, :, :, 3:].var((1, 2)) > 0).all()
