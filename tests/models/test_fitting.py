"""Fitting: results, bootstraps, early stopping, skipped steps, and absence of side effects."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tianshou.data import Batch

from layeredrl.faults import NonFiniteError
from layeredrl.models import FitConfig, ProbabilisticEnsemble, fit
from layeredrl.models.fitting import draw_distinct, split_holdout
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.regression import fit_regression

S, C, A = 2, 1, 1
NOISE_STD = torch.tensor([0.2, 0.05])


def box(width):
    return Box(-1.0, 1.0, (width,), np.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(n_models=2, hidden=(32,), seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ProbabilisticEnsemble(
            box(S),
            box(C),
            box(A),
            settings.pop("partial_net", partial(GaussianMixtureMLP, hidden=hidden)),
            n_models=n_models,
            **{"create_optimizer": True, "learning_rate": 3e-3} | settings,
        ).eval()


def linear_gaussian(n, seed=0, noise_std=NOISE_STD):
    """Transitions of a linear system with Gaussian noise; each row has its own state."""
    generator = seeded(seed)
    state, context = torch.randn(n, S, generator=generator), torch.randn(n, C, generator=generator)
    act = 2 * torch.rand(n, A, generator=generator) - 1
    change = 0.5 * state.flip(-1) + act - 0.3 * context + 0.1
    state_next = state + change + noise_std * torch.randn(n, S, generator=generator)
    return Batch(state=state, context=context, act=act, state_next=state_next, terminated=torch.zeros(n))


class Spy:
    """Records the rows of every call of an ensemble's `member_losses`, and whether it was a training step."""

    def __init__(self, ensemble, monkeypatch):
        self.calls = []
        original = ensemble.member_losses

        def member_losses(rows):
            losses = original(rows)
            self.calls.append((ensemble.training, rows, losses.detach().clone(), parameters(ensemble)))
            return losses

        monkeypatch.setattr(ensemble, "member_losses", member_losses)

    def epochs(self, n_batches):
        """States (M, N, S) of each epoch."""
        states = [rows["state"] for training, rows, *_ in self.calls if training]
        assert len(states) % n_batches == 0
        return [torch.cat(states[i : i + n_batches], 1) for i in range(0, len(states), n_batches)]

    def evaluations(self):
        return [call for call in self.calls if not call[0]]


def parameters(ensemble):
    return [p.detach().clone() for p in ensemble.get_parameters()]


def counts(states, data):
    """How often each row of the data occurs in states (N, S)."""
    return (states[:, None] == data.state).all(-1).sum(0)


def assert_same_state(a, b):
    torch.testing.assert_close(dict(a), dict(b), rtol=0, atol=0)


def test_a_fit_comes_close_to_the_true_entropy_and_noise():
    # Linear networks, so that the truth is within reach.
    ensemble = make(hidden=(), learning_rate=1e-2)
    data, test = linear_gaussian(2000), linear_gaussian(2000, 1)

    @torch.no_grad()
    def nll():
        columns = (test.state, test.context, test.act, test.state_next)
        members = [ensemble.get_member_log_prob(i, *columns)[0] for i in range(2)]
        return -torch.stack(members).mean(1)

    before = nll()
    result = fit(ensemble, data, FitConfig(epochs=60, batch_size=250, bootstrap=False), generator=seeded())
    after = nll()
    std = ensemble.predict(test.state, test.context, test.act)[2][:, :, 0].detach()
    entropy = (0.5 * math.log(2 * math.pi * math.e) + NOISE_STD.log()).sum()
    assert (before > entropy + 1).all()
    torch.testing.assert_close(after, entropy.expand(2), rtol=0, atol=0.06)
    torch.testing.assert_close(std.mean(0), NOISE_STD.expand(2, S), rtol=0.1, atol=0)
    assert result.loss.shape == (2,)
    assert (result.epochs, result.steps, result.holdout_loss) == (60, 60 * 8, None)
    # The termination has been learned too, so the loss is the negative log density and a small cross-entropy.
    torch.testing.assert_close(result.loss, entropy.expand(2), rtol=0, atol=0.1)


def test_termination_is_fitted():
    ensemble, data = make(learning_rate=1e-2), linear_gaussian(500)
    data.terminated = (data.state_next[:, 0] > 0).float()
    fit(ensemble, data, FitConfig(epochs=15, batch_size=50), generator=seeded())
    term_prob = ensemble.predict(data.state, data.context, data.act)[3]
    assert ((term_prob > 0.5) == data.terminated.bool()).float().mean() > 0.85


def test_every_member_has_its_own_bootstrap_sample(monkeypatch):
    ensemble, data = make(n_models=3), linear_gaussian(100)
    spy = Spy(ensemble, monkeypatch)
    fit(ensemble, data, FitConfig(epochs=3, batch_size=30), generator=seeded())
    fit(ensemble, data, FitConfig(epochs=1, batch_size=30), generator=seeded(1))
    epochs = spy.epochs(n_batches=4)
    assert all(epoch.shape == (3, 100, S) for epoch in epochs)
    drawn = torch.stack([counts(member, data) for epoch in epochs for member in epoch]).view(4, 3, 100)
    assert (drawn.sum(-1) == 100).all()
    assert (drawn[:3] == drawn[0]).all()  # drawn once for a fit
    assert not (drawn[3] == drawn[0]).all()  # and anew in the next
    assert len({tuple(row.tolist()) for row in drawn[0]}) == 3
    # Drawn with replacement, about 1 - 1 / e of the rows occur.
    assert (drawn[0] > 0).float().mean().item() == pytest.approx(0.632, abs=0.06)
    assert not torch.equal(epochs[0], epochs[1])  # in another order


def test_without_bootstrap_every_member_gets_every_row_once_in_its_own_order(monkeypatch):
    ensemble, data = make(n_models=3), linear_gaussian(100)
    spy = Spy(ensemble, monkeypatch)
    result = fit(ensemble, data, FitConfig(epochs=2, batch_size=30, bootstrap=False), generator=seeded())
    epochs = spy.epochs(n_batches=4)
    assert (result.epochs, result.steps) == (2, 8)
    orders = [member for epoch in epochs for member in epoch]
    assert all((counts(order, data) == 1).all() for order in orders)
    assert not any(torch.equal(a, b) for i, a in enumerate(orders) for b in orders[:i])


def test_the_parts_of_a_row_stay_together(monkeypatch):
    ensemble, data = make(), linear_gaussian(50)
    data.terminated = (data.state[:, 0] > 0).float()
    spy = Spy(ensemble, monkeypatch)
    fit(ensemble, data, FitConfig(epochs=1, batch_size=20), generator=seeded())
    for _, rows, *_ in spy.calls:
        for member in range(2):
            index = (rows["state"][member][:, None] == data.state).all(-1).float().argmax(1)
            for key in ("state", "context", "act", "state_next", "terminated"):
                assert torch.equal(rows[key][member], data[key][index])


@pytest.mark.parametrize("bootstrap", [True, False])
def test_equal_members_differ_only_by_bootstrapping(bootstrap):
    ensemble = make(n_models=2, normalize_targets=False)
    with torch.no_grad():
        for p in ensemble.get_parameters():
            p[1] = p[0]
    data = linear_gaussian(64)
    # One batch holds all rows, so that their order matters no more.
    fit(ensemble, data, FitConfig(epochs=5, batch_size=64, bootstrap=bootstrap), generator=seeded())
    agree = all(torch.allclose(p[0], p[1], rtol=1e-3, atol=1e-4) for p in ensemble.get_parameters())
    assert agree is not bootstrap


def test_split_holdout_splits_rows():
    config = FitConfig(batch_size=4, holdout=0.35)
    train, held_out = split_holdout(10, config, seeded())
    assert (train.n_rows, len(held_out)) == (7, 3)
    assert torch.cat([train.kept, held_out]).sort().values.tolist() == list(range(10))
    assert not torch.equal(split_holdout(10, config, seeded(1))[1], held_out)
    assert split_holdout(10, FitConfig(), seeded())[1] is None


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 5), (9, 2), (40, 19), (1000, 3)])
def test_draw_distinct_draws_each_number_at_most_once_and_all_alike(n, k):
    generator = seeded()
    draws = torch.stack([draw_distinct(n, k, generator) for _ in range(600)])
    assert all(len(set(draw)) == k for draw in draws.tolist())
    assert 0 <= draws.min() <= draws.max() < n
    error = 5 * n / (12 * 600) ** 0.5
    assert (draws.double().mean(0) - (n - 1) / 2).abs().max() < error  # at each place, the order is random too


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_a_bounded_fit_draws_from_all_rows_but_those_held_out(monkeypatch, bootstrap, holdout):
    data, ensemble = linear_gaussian(3000), make()
    spy = Spy(ensemble, monkeypatch)
    config = FitConfig(epochs=9, batch_size=10, max_steps=20, holdout=holdout, bootstrap=bootstrap)
    result = fit(ensemble, data, config, generator=seeded())
    assert (result.steps, result.epochs) == (20, 1)
    (states,) = spy.epochs(20)
    used = torch.stack([counts(states[i], data) for i in range(2)])
    assert states.shape[1] == used[0].sum() == pytest.approx(200, abs=20)
    assert bootstrap or used.max() == 1
    assert not torch.equal(used[0], used[1])  # each member has its own
    assert used.sum(0).nonzero().double().mean().item() == pytest.approx(1500, abs=200)
    if holdout:
        held_out = counts(spy.evaluations()[0][1]["state"][0], data)
        assert held_out.sum() == 200  # no more than a member trains on
        assert not (used.sum(0) * held_out).any()


def regress(predict, optimizer, rows, config, seed=0):
    inputs, targets = rows
    return fit_regression(
        lambda index: (inputs[index], targets[index]), len(inputs), predict, optimizer, config, generator=seeded(seed)
    )


@pytest.mark.parametrize(("max_steps", "n_steps"), [(3, 3), (70, 60), (25, 25)])
def test_a_regression_is_bounded_too(max_steps, n_steps):
    rows, weights = [], torch.zeros(3, requires_grad=True)
    x = torch.randn(200, 3, generator=seeded())
    config = FitConfig(epochs=6, batch_size=20, max_steps=max_steps)

    def predict(z):
        rows.append(z)
        return z @ weights

    regress(predict, torch.optim.Adam([weights]), (x, x[:, 0]), config)
    assert len(rows) == n_steps
    first = torch.cat(rows[: min(10, n_steps)])
    assert len(first.unique(dim=0)) == len(first)  # no row twice in a pass


def test_each_member_ends_with_its_best_parameters_on_the_holdout(monkeypatch):
    ensemble = make(n_models=3, hidden=(64,), learning_rate=1e-2)
    data = linear_gaussian(60)
    spy = Spy(ensemble, monkeypatch)
    config = FitConfig(epochs=200, batch_size=16, holdout=0.4, patience=8)
    result = fit(ensemble, data, config, generator=seeded())
    evaluations = spy.evaluations()
    held_out = evaluations[0][1]
    assert held_out["state"].shape == (3, 24, S)
    assert not any(counts(states, data)[counts(held_out["state"][0], data) > 0].any() for states in spy.epochs(3)[0])
    losses = torch.stack([losses for *_, losses, _ in evaluations])
    assert len(losses) == result.epochs + 1  # once before training
    best = losses.argmin(0)
    assert len(set(best.tolist())) > 1  # else the members could as well share their best epoch
    torch.testing.assert_close(result.holdout_loss, losses.min(0).values)
    for member, epoch in enumerate(best.tolist()):
        for restored, then in zip(parameters(ensemble), evaluations[epoch][3], strict=True):
            assert torch.equal(restored[member], then[member])
    # The fit stopped once no member had improved for `patience` epochs.
    assert result.epochs == best.max() + config.patience < config.epochs
    # The reported loss is that of the final parameters.
    with torch.no_grad():
        torch.testing.assert_close(ensemble.member_losses(held_out), result.holdout_loss)


@pytest.mark.parametrize(("max_steps", "epochs"), [(3, 1), (7, 2), (100, 3)])
def test_max_steps_ends_a_fit_early(monkeypatch, max_steps, epochs):
    data, taken = linear_gaussian(40), []
    monkeypatch.setattr(ProbabilisticEnsemble, "take_step", lambda self, loss: taken.append(loss) or torch.tensor(True))
    config = FitConfig(epochs=3, batch_size=10, max_steps=max_steps)
    result = fit(make(), data, config, generator=seeded())
    assert len(taken) == result.steps == min(max_steps, 12)
    assert result.epochs == epochs


def test_input_statistics_are_those_of_all_the_data():
    ensemble, data = make(), linear_gaussian(100)
    data.state = 100 * data.state + 7
    fit(ensemble, data, FitConfig(epochs=1, holdout=0.5), generator=seeded())
    inputs = torch.cat([data.state, data.context, data.act], -1)
    mean = ensemble.state_dict()["network.net.standardizer.mean"].reshape(2, -1)
    torch.testing.assert_close(mean, inputs.mean(0).expand(2, -1))


def test_masked_rows_do_not_enter_the_input_statistics():
    states = []
    for masked in (True, False):
        ensemble, data = make(), linear_gaussian(100)
        if masked:
            noise = linear_gaussian(100, seed=9)
            noise.state = 100 + noise.state
            data = Batch({key: torch.cat([data[key], noise[key]]) for key in data.get_keys()})
            data.validity_mask = torch.arange(200) < 100
        fit(ensemble, data, FitConfig(epochs=1), generator=seeded())
        states.append(ensemble.state_dict())
    for key in ("network.net.standardizer.mean", "network.net.standardizer.inverse_std"):
        torch.testing.assert_close(states[0][key], states[1][key])


def test_weight_decay_shrinks_the_weights_of_its_layer():
    decays = (0.0, 10.0, 0.0)
    data, config = linear_gaussian(64), FitConfig(epochs=100, batch_size=64)
    norms = []
    for weight_decay in (0.0, decays):
        ensemble = make(hidden=(16, 16), weight_decay=weight_decay)
        fit(ensemble, data, config, generator=seeded())
        norms.append([p.detach().norm().item() for p in ensemble.get_parameters() if p.ndim == 3 and p.shape[1] > 1])
    ratio = [b / a for a, b in zip(*norms, strict=True)]
    assert len(ratio) == 3
    for share, decay in zip(ratio, decays, strict=True):
        assert share < 0.5 if decay else share > 0.7


def test_weight_decay_is_the_gradient_of_half_its_square():
    data, config = linear_gaussian(64), FitConfig(epochs=1, batch_size=64, bootstrap=False)
    moved = []
    for weight_decay in (0.0, 0.3):
        ensemble = make(weight_decay=weight_decay)
        rate = ensemble.optimizer.param_groups[0]["lr"]
        # Plain gradient descent in Adam's place, on Adam's groups, shows the gradient.
        ensemble.optimizer = torch.optim.SGD(ensemble.optimizer.param_groups, lr=rate, foreach=False)
        before = parameters(ensemble)
        fit(ensemble, data, config, generator=seeded())
        moved.append([b - a for a, b in zip(before, parameters(ensemble), strict=True)])
    for start, plain, decayed in zip(before, *moved, strict=True):
        is_weight = start.ndim == 3 and start.shape[1] > 1
        torch.testing.assert_close(decayed - plain, -rate * (0.3 if is_weight else 0.0) * start, rtol=1e-2, atol=1e-6)


def test_a_layer_with_one_output_has_weights_too():
    assert make(hidden=(8, 1), weight_decay=(1e-4, 2e-4, 3e-4)).optimizer is not None


def test_the_same_generator_gives_the_same_fit():
    data, config = linear_gaussian(80), FitConfig(epochs=3, batch_size=32, holdout=0.2)
    ensembles = [make() for _ in range(3)]
    state = torch.random.get_rng_state()
    losses = [fit(e, data, config, generator=seeded(s)).loss for e, s in zip(ensembles, (0, 0, 1), strict=True)]
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert_same_state(ensembles[0].state_dict(), ensembles[1].state_dict())


@pytest.mark.parametrize(("training", "holdout"), [(True, 0.0), (False, 0.3)])
def test_a_fit_changes_neither_the_mode_nor_the_data(training, holdout):
    ensemble, data = make().train(training), linear_gaussian(40)
    kept = copy.deepcopy(data)
    fit(ensemble, data, FitConfig(epochs=2, holdout=holdout), generator=seeded())
    assert ensemble.training is training
    assert all(torch.equal(data[key], kept[key]) for key in kept.get_keys())


@pytest.mark.parametrize("n_rows", [1, 2, 33])
def test_any_number_of_rows_can_be_fitted(n_rows):
    ensemble = make()
    result = fit(ensemble, linear_gaussian(n_rows), FitConfig(epochs=2, batch_size=32), generator=seeded())
    assert result.loss.isfinite().all()
    assert result.steps == 2 * math.ceil(n_rows / 32)
    assert all(p.isfinite().all() for p in ensemble.get_parameters())


def test_empty_data_raises_and_leaves_the_ensemble_alone():
    ensemble = make()
    before = copy.deepcopy(ensemble.state_dict())
    with pytest.raises(ValueError, match="expected at least one transition"):
        fit(ensemble, linear_gaussian(0), FitConfig(), generator=seeded())
    assert_same_state(before, ensemble.state_dict())


def test_a_missing_optimizer_raises():
    with pytest.raises(RuntimeError, match="create_optimizer"):
        fit(make(create_optimizer=False), linear_gaussian(10), FitConfig(), generator=seeded())


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("patience", 0), ("holdout", -0.1), ("holdout", 1.0), ("holdout", float("nan"))],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        FitConfig(**{name: value})


def test_regression_finds_the_least_squares_and_is_reproducible():
    x = torch.randn(200, 3, generator=seeded())
    targets = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(200, generator=seeded(1))
    found, losses = [], []
    for seed in (0, 0, 1):
        weights = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.Adam([weights], lr=0.05)
        config = FitConfig(epochs=20, batch_size=32)
        loss, skipped = regress(lambda z: z @ weights, optimizer, (x, targets), config, seed)  # noqa: B023
        assert skipped == 0
        losses.append(loss)
        found.append(weights.detach())
    best = torch.linalg.lstsq(x, targets.unsqueeze(-1)).solution[:, 0]
    torch.testing.assert_close(found[0], best, rtol=0, atol=0.02)
    assert losses[0] == pytest.approx((x @ best - targets).square().mean().item(), rel=0.1)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def regress_on(x, targets, config, weights):
    return regress(lambda z: z @ weights, torch.optim.Adam([weights], lr=0.05), (x, targets), config)


def test_regression_skips_and_counts_steps_that_are_not_finite():
    x = torch.randn(200, 3, generator=seeded())
    targets = x @ torch.tensor([1.0, -2.0, 0.5])
    targets[7] = torch.inf
    weights = torch.zeros(3, requires_grad=True)
    result = regress_on(x, targets, FitConfig(epochs=10, batch_size=20), weights)
    assert result.skipped == 10  # one an epoch
    assert math.isfinite(result.loss)
    torch.testing.assert_close(weights.detach(), torch.tensor([1.0, -2.0, 0.5]), rtol=0, atol=0.2)
    with pytest.raises(
        NonFiniteError,
        match=r"the reward network's loss is not finite; the largest number is inf, in targets, in batch \d of epoch 3",
    ):
        regress_on(x, targets, FitConfig(epochs=10, batch_size=20, max_skipped=2), weights)
    assert weights.isfinite().all()


def test_a_non_finite_gradient_of_a_regression_is_named():
    weights = torch.zeros(1, requires_grad=True)

    def predict(x):
        return (weights * x[:, 0]).abs().sqrt()  # at zero it has no slope

    config = FitConfig(epochs=1, batch_size=4, max_skipped=0)
    optimizer, ones = torch.optim.Adam([weights]), (torch.ones(4, 1), torch.ones(4))
    with pytest.raises(
        NonFiniteError, match=r"a gradient of the reward network is not finite; .*, in batch 0 of epoch 1"
    ):
        regress(predict, optimizer, ones, config)
    assert weights.item() == 0
    result = regress(predict, optimizer, ones, FitConfig(epochs=1))
    assert math.isnan(result.loss)
    assert result.skipped == 1


def spoil(ensemble, monkeypatch, spoiled):
    """Let the second member's loss be NaN in the batches of these numbers; gives all losses, batch by batch."""
    original, losses = ensemble.member_losses, []

    def member_losses(rows):
        result = original(rows)
        if len(losses) in spoiled:
            result = result * torch.tensor([1.0, torch.nan])
        losses.append(result.detach().clone())
        return result

    monkeypatch.setattr(ensemble, "member_losses", member_losses)
    return losses


def test_skipped_steps_do_not_enter_the_mean_loss(monkeypatch):
    ensemble = make()
    losses = spoil(ensemble, monkeypatch, {1, 4, 6})
    config = FitConfig(epochs=2, batch_size=25)  # four batches an epoch
    result = fit(ensemble, linear_gaussian(100), config, generator=seeded())
    assert (result.steps, result.skipped, result.epochs) == (5, 3, 2)
    assert all(p.isfinite().all() for p in ensemble.get_parameters())
    torch.testing.assert_close(result.loss, torch.stack([losses[i] for i in (5, 7)]).mean(0))


def test_an_epoch_without_a_step_has_no_loss(monkeypatch):
    ensemble = make()
    before = parameters(ensemble)
    spoil(ensemble, monkeypatch, {0, 1})
    result = fit(ensemble, linear_gaussian(50), FitConfig(epochs=1, batch_size=25), generator=seeded())
    assert (result.steps, result.skipped) == (0, 2)
    assert result.loss.isnan().all()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(ensemble), strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_the_error_names_the_first_step_beyond_max_skipped(training, monkeypatch):
    ensemble = make().train(training)
    losses = spoil(ensemble, monkeypatch, {1, 4, 6, 7})
    config = FitConfig(epochs=3, batch_size=25, max_skipped=2)
    with pytest.raises(NonFiniteError, match=r"the loss of member 1 is not finite; .*, in batch 2 of epoch 2"):
        fit(ensemble, linear_gaussian(100), config, generator=seeded())
    assert len(losses) == 8  # to the end of the epoch
    assert ensemble.training == training


@pytest.mark.parametrize(("key", "value"), [("inputs", torch.nan), ("targets", -torch.inf)])
def test_the_key_that_is_not_finite_is_named(key, value):
    data = {"inputs": torch.full((4, 1), 1e30), "targets": torch.full((4,), 1e32)}
    data[key][2] = value
    weights, config = torch.zeros(1, requires_grad=True), FitConfig(epochs=1, max_skipped=0)
    with pytest.raises(NonFiniteError, match=f"not finite; the largest number is {abs(value)}, in {key}, in batch 0"):
        regress_on(data["inputs"], data["targets"], config, weights)


def test_the_member_with_a_non_finite_gradient_is_named(monkeypatch):
    ensemble = make(n_models=3)
    original = ensemble.member_losses

    def member_losses(rows):
        losses = original(rows)
        zero = (losses[1] - losses[1].detach()).abs()
        return losses + torch.stack([torch.zeros(()), zero.sqrt(), torch.zeros(())])  # at zero a root has no slope

    monkeypatch.setattr(ensemble, "member_losses", member_losses)
    with pytest.raises(NonFiniteError, match=r"^a gradient of member 1 is not finite; the largest number is"):
        fit(ensemble, linear_gaussian(20), FitConfig(max_skipped=0), generator=seeded())
