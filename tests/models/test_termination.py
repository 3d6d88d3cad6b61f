"""The loss of the termination probability: its gradient is useful everywhere."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layeredrl.models.density import probability, termination_loss
from layeredrl.models.nets import GaussianMixtureMLP
from tests.models.networks import ConstantNet, LinearNet
from tests.models.reference import A, C, M, S, box, inputs, make_batch, make_model

LOGITS = [0.0, 0.3, -2.0, 10.0, -17.0, 40.0, -40.0, 80.0, -80.0, 100.0, -100.0, 1e4, -1e4, math.inf, -math.inf]


def gradient(logit: Tensor, y: Tensor, sigmoid=probability) -> Tensor:
    logit = logit.clone().requires_grad_()
    (result,) = torch.autograd.grad(termination_loss(sigmoid(logit), y).sum(), logit)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_the_gradient_on_the_logit_is_p_minus_y(y, dtype):
    logit = torch.tensor(LOGITS, dtype=dtype)
    expected = (torch.sigmoid(logit.double()) - y).to(dtype)
    torch.testing.assert_close(gradient(logit, torch.full_like(logit, y)), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("logit", [-60.0, -3.0, 10.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_a_users_sigmoid_has_the_right_gradient_unless_it_rounds_to_0_or_1(y, logit):
    assert 0 < torch.sigmoid(torch.tensor(logit)) < 1
    expected = 1 / (1 + math.exp(-logit)) - y
    actual = gradient(torch.tensor(logit), torch.tensor(y), torch.sigmoid)
    assert actual.item() == pytest.approx(expected, rel=1e-2, abs=1e-30)  # 1 - p has few digits left


@pytest.mark.parametrize("p", [0.0, 1e-45, 1e-20, 1.0 - 2**-24, 1.0])
@pytest.mark.parametrize("y", [0.0, 1.0])
def test_the_gradient_on_the_probability_is_finite(y, p):
    prob = torch.tensor(p, requires_grad=True)
    loss = 1e6 * termination_loss(prob, torch.tensor(y))  # of some weight
    (result,) = torch.autograd.grad(loss, prob)
    assert loss.isfinite()
    assert result.isfinite()
    assert result * (p - y) >= 0
    if p in (0.0, 1.0):
        assert result.square().isfinite()  # which is what Adam does to it


def test_the_loss_is_the_binary_cross_entropy():
    p = torch.cat([torch.rand(50), torch.tensor([0.0, 1.0, 1e-20])])
    y = (torch.rand(53) > 0.5).float()
    torch.testing.assert_close(termination_loss(p, y), F.binary_cross_entropy(p, y, reduction="none"))
    torch.testing.assert_close(termination_loss(p, y.bool()), F.binary_cross_entropy(p, y, reduction="none"))
    assert torch.equal(probability(p), torch.sigmoid(p))


def test_gradients_of_the_loss_are_those_of_finite_differences():
    logit = 3 * torch.randn(7, dtype=torch.float64).requires_grad_()
    y = torch.rand(7, dtype=torch.float64)
    assert torch.autograd.gradcheck(probability, logit)
    assert torch.autograd.gradcheck(lambda p: termination_loss(p, y), torch.sigmoid(logit).detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: termination_loss(probability(x), y), logit)


@pytest.mark.parametrize(
    ("logit", "evaluation"),
    [(0.5, "broadcast"), (-40.0, "loop"), (100.0, "broadcast"), (100.0, "vmap"), (-100.0, "vmap")],
)
def test_the_built_in_network_learns_from_any_logit(logit, evaluation):
    model = make_model([GaussianMixtureMLP(box(S), box(C), box(A), hidden=(8,)) for _ in range(M)], n_modes=1)
    model.network.evaluation = evaluation
    last = model.network.net.layers[-1]
    with torch.no_grad():
        last.weight[..., 2 * S] = 0.0
        last.bias[..., 2 * S] = logit
    batch = make_batch(8)
    model.loss(batch).backward()
    expected = 1 / (1 + math.exp(-logit)) - batch.terminated.mean()
    torch.testing.assert_close(last.bias.grad[:, 0, 2 * S], expected.expand(M))
    assert all(p.grad.isfinite().all() for p in model.get_parameters())


def test_gradients_of_the_built_in_network_are_those_of_finite_differences():
    net = GaussianMixtureMLP(box(S), box(C), box(A), hidden=(8,)).double().eval()
    state, context, action = (x.double() for x in inputs(3))

    def outputs(state: Tensor) -> tuple[Tensor, ...]:
        (mean, std), _, term_prob = net(state, context, action)
        return mean, std, term_prob

    assert torch.autograd.gradcheck(outputs, state.requires_grad_())


def test_certain_users_networks_learn_without_nan():
    net = LinearNet(S, C, A, 1)
    with torch.no_grad():
        net.end.mul_(1e3)  # torch's sigmoid is 0 or 1 for most rows
    model = make_model([net], n_modes=1, create_optimizer=True, weighted_loss=True)
    losses = [model.learn([make_batch(32, weight=torch.full((32,), 1e6))]) for _ in range(5)]
    assert torch.stack(losses).isfinite().all()
    assert all(p.isfinite().all() for p in model.get_parameters())


def test_a_probability_that_is_a_parameter_survives_adam():
    model = make_model(
        [ConstantNet(torch.zeros(1, S), torch.ones(1, S), term_prob=0.0)],
        n_modes=1,
        create_optimizer=True,
        learning_rate=0.01,
    )
    model.learn([make_batch(8)])
    assert 0.005 < model.network.net.term_prob.item() < 0.02
