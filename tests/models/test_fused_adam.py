"""Adam in one call against torch's own."""

import copy

import pytest
import torch
from torch import nn

from layeredrl.models.fused_adam import FusedAdam
from layeredrl.models.optimizer import restore_optimizer
from tests.recording import leaves


def make(cls=FusedAdam, **settings):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (5,))]
    return parameters, cls(parameters, lr=0.1, fused=True, **settings)


def set_gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("settings", [{}, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}])
def test_steps_are_those_of_torch(settings):
    parameters, optimizer = make(**settings)
    expected, standard = make(torch.optim.Adam, **settings)
    for i in range(5):
        for group in (parameters, expected):
            set_gradients(group, i)
        optimizer.step() if i % 2 else optimizer.step_unless(torch.zeros(()))
        standard.step()
        for p, e in zip(parameters, expected, strict=True):
            assert torch.equal(p, e)
    assert leaves(optimizer.state_dict()["state"]) == leaves(standard.state_dict()["state"])


def test_a_skipped_step_changes_nothing():
    parameters, optimizer = make()
    for i in range(2):
        set_gradients(parameters, i)
        optimizer.step()
    before, state = copy.deepcopy(parameters), leaves(copy.deepcopy(optimizer.state_dict()))
    parameters[0].grad[0, 0] = torch.nan
    optimizer.step_unless(torch.ones(()))
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))
    assert leaves(optimizer.state_dict()) == state


def test_a_loaded_state_goes_on():
    parameters, optimizer = make()
    set_gradients(parameters, 0)
    optimizer.step()
    others, other = make()
    for p, o in zip(parameters, others, strict=True):
        o.data.copy_(p)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(2):
        for group, one in ((parameters, optimizer), (others, other)):
            set_gradients(group, 1)
            one.step()
    assert all(torch.equal(p, o) for p, o in zip(parameters, others, strict=True))
    assert {float(state["step"]) for state in other.state.values()} == {3}


def test_parameters_without_gradients_stay():
    parameters, optimizer = make()
    before = copy.deepcopy(parameters)
    optimizer.step()
    parameters[0].grad = torch.ones(3, 2)
    optimizer.step()
    assert not torch.equal(parameters[0], before[0])
    assert torch.equal(parameters[1], before[1])


def test_order_in_memory_does_not_matter():
    """A parameter that is stored by columns, its gradients by rows, and the state of one that is stored by rows."""
    (expected, e_other), standard = make()
    (p, other), optimizer = make()
    p.data = p.data.mT.contiguous().mT
    for i in range(3):
        for parameters in ((expected, e_other), (p, other)):
            set_gradients(parameters, i)
        standard.step()
        optimizer.step()
        restore_optimizer("optimizer", optimizer, copy.deepcopy(standard.state_dict()))
        assert torch.equal(p, expected)
        assert optimizer.state[p]["exp_avg"].stride() == p.stride() != expected.stride()
