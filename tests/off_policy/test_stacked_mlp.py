"""Stacked perceptrons against a loop over networks of torch, forward and backward."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from layeredrl.off_policy.stacked_mlp import StackedMLP, mlp

N = 9
CASES = [
    (widths, layer_norm, n_members)
    for widths in ((5, 8, 7, 1), (5, 8, 3), (5, 1))
    for layer_norm in (False, True)
    for n_members in (1, 2, 3)
]


def make(widths, layer_norm, n_members):
    """Perceptrons, the stacked ones, and inputs."""
    torch.manual_seed(0)
    members = [mlp(widths, layer_norm=layer_norm) for _ in range(n_members)]
    with torch.no_grad():
        for member in members:
            for parameter in member.parameters():
                parameter += 0.1 * torch.randn_like(parameter)  # scales and shifts of layer norms, too
    return members, StackedMLP(members), torch.randn(N, widths[0])


def plain_gradients(members, x, gradient):
    """By autograd: gradients of the inputs (M, n, in), and of the parameters by name, stacked."""
    own = [x.clone().requires_grad_() for _ in members]
    outputs = torch.stack([member(inputs) for member, inputs in zip(members, own, strict=True)])
    outputs.backward(gradient)
    by_name = {}
    for name, parameter in members[0].named_parameters():
        grads = torch.stack([dict(member.named_parameters())[name].grad for member in members])
        by_name[f"net.{name}"] = grads.mT if parameter.ndim == 2 else grads.unsqueeze(1)
    return torch.stack([inputs.grad for inputs in own]), by_name


@pytest.mark.parametrize(("widths", "layer_norm", "n_members"), CASES)
def test_all_passes_are_those_of_the_members(widths, layer_norm, n_members):
    members, stacked, x = make(widths, layer_norm, n_members)
    gradient = torch.randn(n_members, N, widths[-1])
    by_inputs, by_name = plain_gradients(members, x, gradient)
    with torch.no_grad():
        outputs, tape = stacked.run(x)
        expected = torch.stack([member(x) for member in members])
        torch.testing.assert_close(outputs, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(stacked(x), expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(stacked.input_gradient(gradient, tape), by_inputs, atol=1e-5, rtol=1e-4)
        last = stacked.input_gradient(gradient, tape, widths[0] - 1)
        torch.testing.assert_close(last, by_inputs[..., -1:], atol=1e-5, rtol=1e-4)
        assert all(p.grad is None for p in stacked.parameters())
        for _ in range(2):  # replaces, does not add
            stacked.backward(gradient, tape)
    assert by_name.keys() == dict(stacked.named_parameters()).keys()
    for name, parameter in stacked.named_parameters():
        torch.testing.assert_close(parameter.grad, by_name[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_forward_pass_is_differentiable(layer_norm):
    members, stacked, x = make((5, 8, 7, 1), layer_norm, 2)
    gradient = torch.randn(2, N, 1)
    by_inputs, by_name = plain_gradients(members, x, gradient)
    x.requires_grad_()
    stacked(x).backward(gradient)
    torch.testing.assert_close(x.grad, by_inputs.sum(0), atol=1e-5, rtol=1e-4)
    for name, parameter in stacked.named_parameters():
        torch.testing.assert_close(parameter.grad, by_name[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layer_norm", [False, True])
@torch.no_grad()
def test_some_members_and_some_rows(layer_norm):
    _, stacked, x = make((5, 8, 7, 1), layer_norm, 3)
    outputs, tape = stacked.run(x)
    first, first_tape = stacked.run(x, n_members=1)
    torch.testing.assert_close(first, outputs[:1])
    gradient = torch.randn(3, N, 1)
    torch.testing.assert_close(
        stacked.input_gradient(gradient[:1], first_tape), stacked.input_gradient(gradient, tape)[:1]
    )
    stacked.backward(gradient[:, :4], tape.rows(4))
    found = [p.grad.clone() for p in stacked.parameters()]
    stacked.backward(gradient[:, :4], stacked.run(x[:4])[1])
    for a, parameter in zip(found, stacked.parameters(), strict=True):
        torch.testing.assert_close(a, parameter.grad)


def test_the_layer_norm_is_that_of_torch_for_each_member():
    members, stacked, x = make((5, 8, 1), True, 2)
    assert [type(layer) for layer in members[0]] == [nn.Linear, nn.LayerNorm, nn.ReLU, nn.Linear]
    for member, outputs in zip(members, stacked(x), strict=True):
        linear, norm, _, last = member
        hidden = F.layer_norm(linear(x), (8,), norm.weight, norm.bias, norm.eps).relu()
        torch.testing.assert_close(outputs, last(hidden), atol=1e-6, rtol=1e-5)


def test_a_copy_has_parameters_of_its_own():
    _, stacked, x = make((5, 8, 1), True, 2)
    other, before = copy.deepcopy(stacked), stacked(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(stacked(x), before)
    assert not other(x).any()
