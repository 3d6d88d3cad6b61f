"""The default networks against their definitions in the papers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from torch import nn

from layeredrl.models.nets import BoundedStd, GaussianMixtureMLP, InputStandardizer, ScalarMLP, mlp

S, C, A = 4, 2, 3


def box(width):
    return Box(-1.0, 1.0, (width,), np.float32)


def make(n_modes=1, context_dim=C, action_space=None, **settings):
    spaces = (box(S), box(context_dim), box(A) if action_space is None else action_space)
    return GaussianMixtureMLP(*spaces, n_modes, **{"hidden": (16, 8)} | settings)


def inputs(*lead, context_dim=C, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*lead, width, generator=generator) for width in (S, context_dim, A))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_mlp_has_activations_between_linear_layers_only():
    layers = mlp([5, 7, 6, 2], nn.Tanh)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(7, 5), (6, 7), (2, 6)]
    assert [type(layer) for layer in mlp([5, 2])] == [nn.Linear]


@pytest.mark.parametrize("fan_in", [4, 50, 200])
def test_initial_weights_are_truncated_normal(fan_in):
    layer = mlp([fan_in, 20_000 // fan_in])[0]
    scale = 1 / (2 * math.sqrt(fan_in))
    weights = layer.weight.detach() / scale
    assert weights.abs().max() <= 2 + 1e-5
    assert weights.abs().max() > 1.97
    # Variance of a standard normal distribution that is cut off at two: 1 - 4 phi(2) / (1 - 2 Phi(-2)).
    assert weights.std().item() == pytest.approx(0.8796, rel=0.02)
    assert weights.mean().abs() < 0.03
    assert (layer.bias == 0).all()


def test_standardizer_subtracts_the_mean_and_divides_by_the_biased_deviation():
    x, other = (
        torch.randn(50, 3) * torch.tensor([1.0, 100.0, 1e-3]) + torch.tensor([0.0, 5.0, -7.0]),
        torch.randn(2, 4, 3),
    )
    standardizer = InputStandardizer(3)
    assert torch.equal(standardizer(x), x)  # before the first fit
    standardizer.fit(torch.randn(20, 3))  # only the last fit counts
    standardizer.fit(x)
    data = x.double().numpy()
    expected = (other.double().numpy() - data.mean(0)) / data.std(0)
    np.testing.assert_allclose(standardizer(other).numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(standardizer(x).mean(0).numpy(), 0, atol=1e-3)


@pytest.mark.parametrize(("n_rows", "constant"), [(1, 0.0), (7, 0.1), (1000, -3.3), (1000, 1e6 + 0.3)])
def test_a_constant_dimension_is_only_centred(n_rows, constant):
    x = torch.randn(n_rows, 3)
    x[:, 1] = constant
    standardizer = InputStandardizer(3)
    standardizer.fit(x)
    out = standardizer(torch.full((1, 3), constant + 2.0))[0, 1]
    assert out.item() == pytest.approx(2.0, abs=0.1)
    assert standardizer(x).isfinite().all()


def test_statistics_are_in_the_state_dict_and_get_no_gradient():
    standardizer = InputStandardizer(3)
    standardizer.fit(torch.randn(50, 3))
    copy = InputStandardizer(3)
    copy.load_state_dict(standardizer.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(copy(x), standardizer(x))
    assert list(standardizer.parameters()) == []


def pets_log_variance(raw, lower, upper):
    """As the released PETS code bounds it (shared/ALGORITHMS.md, A.1)."""
    bounded_above = upper - F.softplus(upper - raw)
    return lower + F.softplus(bounded_above - lower)


@pytest.mark.parametrize(("lower", "upper"), [(-10.0, 0.5), (-2.0, 1.0), (0.3, 0.4)])
def test_bounded_std_is_the_softplus_formula(lower, upper):
    bounds = BoundedStd(3, lower, upper).double()
    raw = torch.linspace(-30, 30, 301, dtype=torch.float64).unsqueeze(-1).expand(-1, 3).clone().requires_grad_()
    reference = [torch.full((3,), x, dtype=torch.float64, requires_grad=True) for x in (lower, upper)]
    expected = pets_log_variance(raw, *reference)
    actual = bounds(torch.sigmoid(raw - bounds.upper)).square().log()
    torch.testing.assert_close(actual, expected)
    weights = torch.randn(301, 3, dtype=torch.float64)
    wanted = torch.autograd.grad((weights * expected).sum(), [*reference, raw])
    gradients = torch.autograd.grad((weights * actual).sum(), [bounds.lower, bounds.upper, raw])
    for gradient, reference_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, reference_gradient)


def test_bounds_start_as_in_pets_and_are_learned():
    bounds = BoundedStd(3)
    assert (bounds.lower == -10).all()
    assert (bounds.upper == 0.5).all()
    assert all(isinstance(x, nn.Parameter) for x in (bounds.lower, bounds.upper))
    assert bounds.penalty().item() == pytest.approx(3 * 10.5)
    with torch.no_grad():
        bounds.lower[0] = -2.0
    assert bounds.penalty().item() == pytest.approx(2 * 10.5 + 2.5)


@pytest.mark.parametrize("lead", [(), (3, 1, 5)])
@pytest.mark.parametrize("n_modes", [1, 3])
def test_mixture_network_satisfies_the_contract(n_modes, lead):
    (mean, std), weights, term_prob = make(n_modes)(*inputs(*lead))
    assert mean.shape == std.shape == (*lead, n_modes, S)
    assert weights.shape == (*lead, n_modes)
    assert term_prob.shape == lead
    torch.testing.assert_close(weights.sum(-1), torch.ones(lead))
    assert (weights > 0).all()
    assert (std > 0).all()
    assert ((term_prob >= 0) & (term_prob <= 1)).all()


def test_every_input_and_every_output_counts():
    net = make(2)
    for tensor in (x := inputs(1)):
        tensor.requires_grad_()
    (mean, std), weights, term_prob = net(*x)
    outputs = [*mean.flatten(), *std.flatten(), *weights.flatten(), *term_prob.flatten()]
    rows = [torch.cat(torch.autograd.grad(out, x, retain_graph=True), -1)[0] for out in outputs]
    assert (torch.stack(rows) != 0).all()
    # No two outputs share a unit of the last layer: 2 K S + K - 1 + 1 free numbers (the weights sum to one).
    last = torch.stack([torch.autograd.grad(out, net.layers[-1].bias, retain_graph=True)[0] for out in outputs])
    assert torch.linalg.matrix_rank(last / last.norm(dim=1, keepdim=True), rtol=1e-3) == 2 * 2 * S + 2


def test_an_output_of_zero_means_a_raw_log_variance_at_the_upper_bound():
    net = make(3)
    last = net.layers[-1]
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        net.bounds.lower.copy_(torch.linspace(-6, 0, 3 * S))
        net.bounds.upper.copy_(torch.linspace(1, 2, 3 * S))
    (mean, std), weights, term_prob = net(*inputs(5))
    expected = pets_log_variance(net.bounds.upper, net.bounds.lower, net.bounds.upper).unflatten(-1, (3, S))
    torch.testing.assert_close(2 * std.log(), expected.expand(5, 3, S))
    assert (mean == 0).all()
    torch.testing.assert_close(weights, torch.full((5, 3), 1 / 3))
    torch.testing.assert_close(term_prob, torch.full((5,), 0.5))


def test_sines_and_cosines_of_the_state_are_extra_inputs():
    net = make(frequencies=(1.5, 4.0))
    state, context, action = inputs(5)
    waves = [f(w * state) for f in (torch.sin, torch.cos) for w in (1.5, 4.0)]
    expected = net.layers(torch.cat([state, *waves, context, action], -1))
    (mean, _), _, _ = net(state, context, action)
    torch.testing.assert_close(mean[:, 0], expected[:, :S])
    torch.testing.assert_close(net.prepared()(state, context, action).mean, expected[:, :S])


def test_angles_are_seen_as_sine_and_cosine_and_unseen_dimensions_not_at_all():
    net = make(angle_dims=(2, 1), unseen_dims=[0])
    state, context, action = inputs(5)
    expected = net.layers(torch.cat([state[:, 3:], state[:, 1:3].sin(), state[:, 1:3].cos(), context, action], -1))
    (mean, _), _, _ = net(state, context, action)
    assert mean.shape == (5, 1, S)  # all of them are predicted
    torch.testing.assert_close(mean[:, 0], expected[:, :S])
    torch.testing.assert_close(net.prepared()(state, context, action).mean, expected[:, :S])
    turned = state + 2 * math.pi * torch.tensor([0.3, 1.0, -2.0, 0.0])
    torch.testing.assert_close(net(turned, context, action)[0][0], mean, rtol=1e-4, atol=1e-5)
    assert net.layers[0].in_features == 1 + 2 * 2 + C + A


def test_frequencies_do_not_apply_to_angles_or_unseen_dimensions():
    net = make(frequencies=(1.5,), angle_dims=(1,), unseen_dims=(3,))
    state, context, action = inputs(5)
    seen, angle = state[:, [0, 2]], state[:, 1:2]
    phases = torch.cat([1.5 * seen, angle], -1)
    expected = net.layers(torch.cat([seen, phases.sin(), phases.cos(), context, action], -1))
    torch.testing.assert_close(net(state, context, action)[0][0][:, 0], expected[:, :S])


def test_alike_dimensions_share_mean_and_standard_deviation():
    net = GaussianMixtureMLP(box(5), box(0), box(1), angle_dims=(1,), alike_dims=((0, 4), (2, 3)))
    state = torch.randn(100, 5, generator=torch.Generator().manual_seed(0)) * torch.arange(5) + torch.arange(5)
    net.fit_inputs(state, state[:, :0], state[:, :1])
    # The network sees dimensions 0, 2, 3, 4, the angle's sine and cosine, and the action.
    for places, dims in (((0, 3), (0, 4)), ((1, 2), (2, 3))):
        together = state[:, list(dims)].flatten().double()
        for place in places:
            assert float(net.standardizer.mean[place]) == pytest.approx(float(together.mean()), rel=1e-5)
            assert float(net.standardizer.inverse_std[place]) == pytest.approx(
                1 / float(together.std(correction=0)), rel=1e-5
            )
    alone = 1 / state[:, 1].sin().std(correction=0)
    assert float(net.standardizer.inverse_std[4]) == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alike_dims": ((0, 1),)}, r"alike_dims holds \[1\], expected dimensions that are neither angles nor unseen"),
        ({"alike_dims": ((0, 2), (2, 3))}, r"alike_dims is \(0, 2, 2, 3\), expected different numbers from 0 to 3"),
        ({"angle_dims": (S,)}, rf"angle_dims is \({S},\), expected different numbers from 0 to 3"),
        ({"unseen_dims": (0, -1)}, r"unseen_dims is \(0, -1\), expected different numbers from 0 to 3"),
    ],
)
def test_wrong_dimensions_of_the_state_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**{"angle_dims": (1,)} | settings)


def test_all_dimensions_of_the_state_may_be_unseen():
    state, context, action = inputs(5)
    net = make(unseen_dims=range(S))
    assert net(state, context, action)[0][0].shape == (5, 1, S)
    assert net.layers[0].in_features == C + A


def test_a_fixed_deviation_makes_the_loss_the_squared_error():
    net = make(2, fixed_std=0.3)
    x = inputs(6)
    (mean, std), _, _ = net(*x)
    torch.testing.assert_close(std, torch.full((6, 2, S), 0.3))
    torch.testing.assert_close(net.prepared()(*x).std, std)
    assert mean.shape == std.shape
    assert net.regularization() == 0
    assert not [name for name, _ in net.named_parameters() if "bounds" in name]
    for bad in (0.0, -1.0, math.inf * 0):
        with pytest.raises(ValueError, match="fixed_std is"):
            make(fixed_std=bad)


def test_discrete_actions_are_one_hot():
    net, twin = make(action_space=Discrete(A)), make()
    twin.load_state_dict(net.state_dict())
    state, context, _ = inputs(7)
    action = torch.tensor([0, 1, 2, 2, 1, 0, 1])
    one_hot = torch.eye(A)[action]
    net.fit_inputs(state, context, action.unsqueeze(-1))
    twin.fit_inputs(state, context, one_hot)
    (mean, std), _, term_prob = net(state, context, action.unsqueeze(-1))
    (twin_mean, twin_std), _, twin_term_prob = twin(state, context, one_hot)
    assert torch.equal(mean, twin_mean)
    assert torch.equal(std, twin_std)
    assert torch.equal(term_prob, twin_term_prob)
    (other, _), *_ = net(state, context, 2 - action.unsqueeze(-1))
    assert not torch.allclose(mean, other)


def test_predictions_do_not_depend_on_the_units_of_fitted_inputs():
    net, twin = make(), make()
    twin.load_state_dict(net.state_dict())
    data, (state, context, action) = inputs(200, seed=1), inputs(5)
    net.fit_inputs(*data)
    twin.fit_inputs(1000 * data[0] - 7, data[1], 0.01 * data[2])
    (mean, _), *_ = net(state, context, action)
    (twin_mean, _), *_ = twin(1000 * state - 7, context, 0.01 * action)
    torch.testing.assert_close(mean, twin_mean, rtol=1e-3, atol=1e-4)


def test_regularization_is_the_penalty_on_the_bounds():
    net = make(2, bound_penalty=0.01)
    assert net.regularization().item() == pytest.approx(0.01 * 2 * S * 10.5)
    assert make(bound_penalty=0.0).regularization().item() == 0
    net.regularization().backward()
    assert torch.equal(net.bounds.upper.grad, torch.full((2 * S,), 0.01))
    assert torch.equal(net.bounds.lower.grad, torch.full((2 * S,), -0.01))


def test_scalar_network_predicts_in_the_units_of_its_targets():
    net, x = ScalarMLP(3), 10 * torch.randn(100, 3) + 4
    targets = 500 * torch.randn(100) - 2000
    net.fit_scales(x, targets)
    scaled = net.to_units(targets)
    expected = (targets.double() - targets.double().mean()) / targets.double().std(correction=0)
    torch.testing.assert_close(scaled.double(), expected, rtol=0, atol=1e-4)
    out = net(x[:, :1], x[:, 1:1], x[:, 1:2], x[:, 2:])
    torch.testing.assert_close(net.to_units(out), net.normalized(x), rtol=0, atol=1e-4)


def test_scalar_network_learns_alike_in_all_units():
    x = torch.randn(100, 3)
    predictions = []
    for unit, offset in [(1.0, 0.0), (1e4, -3e4)]:
        torch.manual_seed(0)
        net = ScalarMLP(3, hidden=(16,))
        targets = unit * (x[:, 0] - x[:, 1] * x[:, 2]) + offset
        net.fit_scales(x, targets)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
        for _ in range(60):
            optimizer.zero_grad()
            (net.normalized(x) - net.to_units(targets)).square().mean().backward()
            optimizer.step()
        out = net(x[:, :1], x[:, 1:1], x[:, 1:2], x[:, 2:])
        predictions.append((out - offset) / unit)
        assert (out - targets).std() < 0.2 * targets.std()
    torch.testing.assert_close(*predictions, rtol=0, atol=0.02)


@pytest.mark.parametrize("constant", [0.0, 0.1, -700.0])
def test_constant_targets_are_only_centred(constant):
    net, x = ScalarMLP(3), torch.randn(50, 3)
    net.fit_scales(x, torch.full((50,), constant))
    assert net.to_units(torch.tensor([constant + 1.0])).item() == pytest.approx(1.0, abs=1e-3)
    out = net(x[:, :1], x[:, 1:1], x[:, 1:2], x[:, 2:])
    torch.testing.assert_close(out, net.normalized(x) + constant, rtol=1e-4, atol=1e-3)
