"""The loss against a hand-written reference, the target normaliser, and partitioned batches."""

import copy
import math

import pytest
import torch

from tests.models import reference
from tests.models.networks import ConstantNet, random_values
from tests.models.reference import M, S, inputs, linear_nets, make_batch, make_model, running_std

CLOSE = {"rtol": 1e-5, "atol": 1e-4}
MASK = torch.tensor([True, False, True, True, False, True, True, True])
WEIGHT = torch.tensor([1.0, 0.5, 0.0, 2.0, 3.0, 0.0, 1.5, 0.25])


def constant_nets(n_models: int = 3):
    """Mean zero and std one, so that predictions show the running standard deviation."""
    return [ConstantNet(torch.zeros(1, S), torch.ones(1, S), term_prob=0.5) for _ in range(n_models)]


def sorted_gradients(parameters) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in parameters]).sort().values


@pytest.mark.parametrize("predict_delta", [True, False])
def test_loss_and_gradient_are_those_of_the_reference(predict_delta):
    nets, batch = linear_nets(), make_batch(8)
    model = make_model(nets, predict_delta=predict_delta)
    loss = model.loss(batch)
    expected = reference.loss(nets, batch, delta=predict_delta)
    assert loss.shape == ()
    torch.testing.assert_close(loss.double(), expected, **CLOSE)
    loss.backward()
    expected.backward()
    wanted = sorted_gradients([p for net in nets for p in net.parameters()])
    torch.testing.assert_close(sorted_gradients(list(model.get_parameters())), wanted, rtol=1e-3, atol=1e-5)


def test_masked_rows_enter_neither_the_sum_nor_the_number_of_rows():
    nets, batch = linear_nets(), make_batch(8, validity_mask=MASK)
    batch.state_next[~MASK] = 1e6
    expected = reference.loss(nets, batch, valid=MASK)
    torch.testing.assert_close(make_model(nets).loss(batch).double(), expected, **CLOSE)
    torch.testing.assert_close(make_model(nets).loss(batch), make_model(nets).loss(batch[MASK]), **CLOSE)
    batch.validity_mask = MASK.float()
    torch.testing.assert_close(make_model(nets).loss(batch).double(), expected, **CLOSE)


@pytest.mark.parametrize(("shape", "masked"), [((8,), True), ((8, 1), False)])
def test_rows_of_weight_zero_enter_the_number_of_rows(masked, shape):
    nets, batch = linear_nets(), make_batch(8, weight=WEIGHT.reshape(shape))
    if masked:
        batch.validity_mask = MASK
    expected = reference.loss(nets, batch, valid=MASK if masked else None, weight=WEIGHT)
    torch.testing.assert_close(make_model(nets, weighted_loss=True).loss(batch).double(), expected, **CLOSE)


def test_weights_are_ignored_without_weighted_loss():
    nets, batch = linear_nets(), make_batch(8, weight=WEIGHT)
    torch.testing.assert_close(make_model(nets).loss(batch).double(), reference.loss(nets, batch), **CLOSE)


def beta_model(std: float, beta_nll: float, **settings):
    net = ConstantNet(torch.zeros(1, S), torch.full((1, S), std))
    return make_model([net], n_modes=1, predict_delta=False, beta_nll=beta_nll, **settings), make_batch(8)


@pytest.mark.parametrize("beta_nll", [0.25, 1.0])
def test_beta_nll_weights_each_dimension_by_its_variance_in_training_alone(beta_nll):
    nets, batch = linear_nets(n_modes=1), make_batch(8)
    batch.terminated = torch.zeros(8)
    expected = torch.zeros((), dtype=torch.float64)
    for net in nets:
        (mean, std), _, term_prob = net(batch.state, batch.context, batch.act)
        distribution = torch.distributions.Normal(mean[:, 0].double(), std[:, 0].double())
        terms = distribution.variance**beta_nll * distribution.log_prob((batch.state_next - batch.state).double())
        expected = expected - (terms.sum(-1) + torch.log1p(-term_prob.double())).mean()
    model = make_model(nets, n_modes=1, beta_nll=beta_nll)
    torch.testing.assert_close(model.train().loss(batch).double(), expected, **CLOSE)
    torch.testing.assert_close(model.eval().loss(batch), make_model(nets, n_modes=1).loss(batch))


@pytest.mark.parametrize("normalize_targets", [True, False])
def test_with_beta_nll_of_one_the_mean_has_the_gradient_of_least_squares(normalize_targets):
    gradients = []
    for std in (0.1, 3.0):
        model, batch = beta_model(std, 1.0, normalize_targets=normalize_targets)
        model.train().loss(batch).backward()
        gradients.append(next(model.get_parameters()).grad.flatten())
    torch.testing.assert_close(*gradients)
    unit = model.unit.detach()
    torch.testing.assert_close(gradients[0], -(batch.state_next / unit).mean(0), **CLOSE)


@pytest.mark.parametrize("beta_nll", [0.0, 0.5, 1.0])
def test_the_optimal_standard_deviation_does_not_depend_on_beta_nll(beta_nll):
    model, batch = beta_model(2.0, beta_nll)
    batch.state_next = 2.0 * torch.tensor([1.0, -1]).repeat(4)[:, None].expand(8, S)  # errors of one deviation
    model.train().loss(batch).backward()
    torch.testing.assert_close(list(model.get_parameters())[1].grad.flatten(), torch.zeros(S))


def test_beta_nll_with_weights_and_a_mask():
    nets, batch = linear_nets(n_modes=1), make_batch(8, weight=WEIGHT, validity_mask=MASK)
    model = make_model(nets, n_modes=1, beta_nll=0.5, weighted_loss=True).train()
    kept = make_batch(8, weight=torch.ones(8))[MASK]
    rows = [model.loss(kept[i : i + 1]) if weight else 0 for i, weight in enumerate(WEIGHT[MASK])]
    expected = sum(weight * row for weight, row in zip(WEIGHT[MASK], rows, strict=True)) / int(MASK.sum())
    torch.testing.assert_close(model.loss(batch), expected)


def test_beta_nll_needs_one_mode():
    with pytest.raises(ValueError, match=r"beta_nll is 0\.5 with n_modes 2"):
        make_model(linear_nets(n_modes=2), n_modes=2, beta_nll=0.5)


def test_more_leading_dimensions():
    nets, flat = linear_nets(), make_batch(8, weight=WEIGHT, validity_mask=MASK)
    batch = copy.deepcopy(flat)
    for key in batch.get_keys():
        batch[key] = flat[key].reshape(2, 4, *flat[key].shape[1:])
    model = make_model(nets, weighted_loss=True)
    torch.testing.assert_close(model.loss(batch), model.loss(flat))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_terminated_of_any_sensible_type(dtype):
    nets, batch = linear_nets(), make_batch(8)
    expected = reference.loss(nets, batch)
    batch.terminated = batch.terminated.to(dtype)
    torch.testing.assert_close(make_model(nets).loss(batch).double(), expected, **CLOSE)


@pytest.mark.parametrize(("partition_batch", "normalize_targets"), [(True, True), (False, True), (False, False)])
def test_one_row_gives_a_finite_loss_and_step(partition_batch, normalize_targets):
    settings = {"partition_batch": partition_batch, "normalize_targets": normalize_targets}
    model = make_model(create_optimizer=True, **settings).train()
    for _ in range(3):
        assert torch.isfinite(model.learn([make_batch(1)]))
    assert torch.isfinite(model.predict(*inputs(3))[0]).all()


@pytest.mark.parametrize("scale", [1e-12, 1e4, 1e20])
def test_extreme_targets_give_a_finite_loss_and_predictions(scale):
    model = make_model(create_optimizer=True, normalize_targets=True).train()
    for i in range(3):
        assert torch.isfinite(model.learn([make_batch(8, scale=scale, seed=i)]))
    assert torch.isfinite(model.eval().predict(*inputs(3))[0]).all()


def test_targets_that_never_change_give_a_finite_loss_and_predictions():
    model = make_model(create_optimizer=True, normalize_targets=True).train()
    batch = make_batch(8)
    batch.state_next = batch.state.clone()
    assert torch.isfinite(model.learn([batch, batch]))
    mean, _, std, _ = model.eval().predict(*inputs(3))
    assert torch.isfinite(mean).all()
    assert torch.isfinite(std.log()).all()


def test_a_batch_without_a_valid_row_is_harmless():
    batch = make_batch(8, validity_mask=torch.zeros(8, dtype=torch.bool))
    model = make_model(create_optimizer=True, normalize_targets=True).train()
    before = model.predict(*inputs(3))[0].detach().clone()
    assert model.loss(batch).item() == 0
    assert model.learn([batch]).item() == 0
    torch.testing.assert_close(model.predict(*inputs(3))[0], before)


def shares(model, n_rows: int, row_losses: torch.Tensor) -> torch.Tensor:
    """For each member (M, n_rows) how much of a row's loss enters, found by changing one weight at a time."""
    batch = make_batch(n_rows)
    batch.state_next, batch.terminated = batch.state.clone(), torch.zeros(n_rows)

    def value(weight):
        batch.weight = weight
        torch.manual_seed(0)  # should the shares be drawn at random
        return model.loss(batch).item()

    base = value(torch.ones(n_rows))
    changes = [value(torch.ones(n_rows) + torch.eye(n_rows)[i]) - base for i in range(n_rows)]
    return torch.tensor(changes) / row_losses[:, None]


@pytest.mark.parametrize("n_rows", [3, 10])
def test_partitioned_members_train_on_disjoint_shares(n_rows):
    # All rows have the same loss, which is very different for each member, so it identifies the member.
    stds = torch.tensor([1.0, 1e3, 1e10])
    nets = [ConstantNet(torch.zeros(1, S), std.reshape(1, 1).expand(1, S), term_prob=0.5) for std in stds]
    model = make_model(nets, n_modes=1, partition_batch=True, weighted_loss=True)
    row_losses = S * (0.5 * math.log(2 * math.pi) + stds.log()) + math.log(2)
    parts = shares(model, n_rows, row_losses)
    sizes = torch.tensor([n_rows // 3, math.ceil(n_rows / 3)])
    fits = (parts[None] * sizes[:, None, None] - 1).abs().amin(0) < 0.01
    assert (fits.sum(0) == 1).all()  # every row belongs to exactly one member
    counts = fits.sum(1)
    assert counts.max() - counts.min() <= 1
    torch.testing.assert_close(parts[fits], (1 / counts)[:, None].expand(3, n_rows)[fits], rtol=0.01, atol=0)


def test_partition_means_are_over_valid_rows():
    model = make_model(constant_nets(), n_modes=1, partition_batch=True)
    batch = make_batch(9)
    batch.state_next = batch.state.clone()
    per_row = S * 0.5 * math.log(2 * math.pi) + math.log(2)
    assert model.loss(batch).item() == pytest.approx(3 * per_row, rel=1e-5)
    batch.validity_mask = torch.zeros(9, dtype=torch.bool)
    batch.validity_mask[4] = True  # the other two members have no valid row: they contribute zero
    assert model.loss(batch).item() == pytest.approx(per_row, rel=1e-5)


def spread(batch, rows=slice(None), delta=True) -> torch.Tensor:
    """Variance (S,) of the targets."""
    target = batch.state_next - batch.state if delta else batch.state_next
    return target[rows].var(0, correction=0)


@pytest.mark.parametrize(("scale", "predict_delta"), [(1e-3, True), (1e3, False)])
def test_first_batch_initialises_and_later_ones_have_momentum(scale, predict_delta):
    settings = {"target_bn_momentum": 0.3, "predict_delta": predict_delta, "n_modes": 1}
    model = make_model(constant_nets(), normalize_targets=True, **settings).train()
    torch.testing.assert_close(running_std(model), torch.ones(S))
    variance = torch.zeros(S)
    for i, momentum in enumerate([1.0, 0.3, 0.3]):
        batch = make_batch(400, seed=10 * i, scale=scale * (1 + i))
        batch.state = batch.state * scale
        batch.state_next = batch.state + scale * (1 + i) * random_values(i, 400, S) + 5 * scale
        model.loss(batch)
        variance = (1 - momentum) * variance + momentum * spread(batch, delta=predict_delta)
        torch.testing.assert_close(running_std(model), variance.sqrt(), rtol=5e-3, atol=0)


def test_absolute_dims_are_normalised_by_the_next_value():
    model = make_model(constant_nets(), n_modes=1, normalize_targets=True, absolute_dims=(1, 3)).train()
    batch = make_batch(400)
    model.loss(batch)
    expected = torch.where(torch.tensor([False, True, False, True]), spread(batch, delta=False), spread(batch))
    torch.testing.assert_close(running_std(model), expected.sqrt(), rtol=5e-3, atol=0)


def test_dimensions_that_are_alike_have_one_scale():
    model = make_model(constant_nets(), n_modes=1, normalize_targets=True, alike_dims=((0, 3),)).train()
    batch = make_batch(400)
    model.loss(batch)
    expected = spread(batch)
    expected[[0, 3]] = expected[[0, 3]].mean()
    torch.testing.assert_close(running_std(model), expected.sqrt(), rtol=5e-3, atol=0)


def test_one_row_does_not_initialise():
    model = make_model(constant_nets(), n_modes=1, normalize_targets=True).train()
    model.loss(make_batch(1))
    torch.testing.assert_close(running_std(model), torch.ones(S))
    model.loss(make_batch(5, validity_mask=torch.tensor([False, False, True, False, False])))
    torch.testing.assert_close(running_std(model), torch.ones(S))
    batch = make_batch(400, scale=4.0)
    model.loss(batch)
    torch.testing.assert_close(running_std(model), spread(batch).sqrt(), rtol=5e-3, atol=0)
    model.loss(make_batch(1))
    assert (running_std(model) > 1).all()


def test_masked_and_weightless_rows_stay_out_of_the_normaliser():
    settings = {"normalize_targets": True, "weighted_loss": True, "n_modes": 1}
    model = make_model(constant_nets(), **settings).train()
    mask, weight = torch.ones(500, dtype=torch.bool), torch.ones(500)
    mask[:50], weight[40:100] = False, 0.0
    batch = make_batch(500, validity_mask=mask, weight=weight[:, None])
    batch.state_next[:100] *= 1e4
    model.loss(batch)
    torch.testing.assert_close(running_std(model), spread(batch, slice(100, None)).sqrt(), rtol=5e-3, atol=0)


def test_normaliser_moves_only_in_training_mode_and_only_in_the_loss():
    settings = {
        "normalize_targets": True,
        "target_bn_momentum": 0.5,
        "n_particles_per_model": 2,
        "n_modes": 1,
    }
    model = make_model(constant_nets(), **settings)
    model.loss(make_batch(20, scale=5.0))
    torch.testing.assert_close(running_std(model), torch.ones(S))
    model.train().loss(make_batch(20, scale=5.0))
    kept = running_std(model).clone()
    assert (kept > 2).all()
    state, context, action = inputs(6)
    model.predict(state, context, action)
    model.sample(state, context, action)
    model.get_log_prob(state, context, action, state + 9, None, True)
    model.get_member_log_prob(0, state, context, action, state + 9, None, True)
    model.rollout(state, context, action[:, None])
    model.eval().loss(make_batch(20, scale=50.0))
    torch.testing.assert_close(running_std(model), kept)


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_that_of_normalised_targets(training):
    """The target that the networks see is divided by the running standard deviation.

    In which unit the density is meant is open: the normalised target's and the target's differ by a constant.
    """
    nets, batch = linear_nets(), make_batch(40, scale=3.0)
    model = make_model(nets, normalize_targets=True).train()
    first = model.loss(batch)
    value = first if training else model.eval().loss(batch)
    scale = spread(batch).sqrt()
    expected = reference.loss(nets, batch, scale=scale)
    constant = 0.0 if value < expected + M * scale.log().sum() / 2 else M * scale.log().sum().double()
    torch.testing.assert_close(value.double(), expected + constant, rtol=1e-2, atol=0)
    value.backward()
    expected.backward()
    wanted = sorted_gradients([p for net in nets for p in net.parameters()])
    torch.testing.assert_close(sorted_gradients(list(model.get_parameters())), wanted, rtol=5e-2, atol=5e-2)
