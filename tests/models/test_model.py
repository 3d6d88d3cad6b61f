"""Optimiser steps whose loss or gradient is not finite are skipped, with and without reading the loss."""

import warnings

import pytest
import torch
from torch import nn

from layeredrl.models.optimizer import step_if
from tests.models.reference import make_batch, make_model

NAN, INF = float("nan"), float("inf")


def trained(device: str = "cpu"):
    return make_model(create_optimizer=True, device=torch.device(device)).train()


def factors(model, monkeypatch, *values: float) -> None:
    """Multiply the model's losses by these, one after the other."""
    original, rest = model.loss, iter(values)
    monkeypatch.setattr(model, "loss", lambda batch: next(rest) * original(batch))


def parameters(model):
    return [p.detach().clone() for p in model.get_parameters()]


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_learn_skips_steps_that_are_not_finite_with_a_warning_each(monkeypatch):
    model, plain = trained(), trained()
    factors(model, monkeypatch, 1, NAN, 1, INF)
    batches = [make_batch(8, seed=i) for i in range(4)]
    with pytest.warns(UserWarning, match="or its gradient is not finite") as caught:
        last = model.learn(batches)
    assert [str(w.message).split(",")[0] for w in caught] == [
        "skipped the step of batch 1: its loss is nan",
        "skipped the step of batch 3: its loss is inf",
    ]
    assert {w.filename for w in caught} == {__file__}
    assert last == INF
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.learn([batches[0], batches[2]])
    assert equal(parameters(model), parameters(plain))


def test_take_step_returns_true_if_the_step_was_taken():
    model = trained()
    loss = model.loss(make_batch(8))
    before = parameters(model)
    for factor, taken in ((NAN, False), (1.0, True)):
        result = model.take_step(factor * (loss if taken else loss.clone()))
        assert (result.shape, result.dtype, bool(result)) == ((), torch.bool, taken)
        assert equal(before, parameters(model)) != taken
        loss = model.loss(make_batch(8))


def test_a_step_with_an_infinite_gradient_of_a_finite_loss_is_skipped():
    model = trained()
    before = parameters(model)
    first = next(iter(model.get_parameters()))
    assert not model.take_step((first - first.detach()).sum().sqrt())
    assert equal(before, parameters(model))


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_a_fused_optimizer_skips_a_step_by_itself(optimizer):
    """As it does on a GPU: parameters, moments and the number of steps do not change."""
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    expected = [nn.Parameter(w.detach().clone()) for w in weights]
    plain, fused = (
        optimizer(expected, lr=0.1, weight_decay=0.1),
        optimizer(weights, lr=0.1, weight_decay=0.1, fused=True),
    )
    assert fused._step_supports_amp_scaling
    for i, is_finite in enumerate((False, True, False, True, True)):
        for w, e in zip(weights, expected, strict=True):
            w.grad = torch.full_like(w, i + 1.0 if is_finite else NAN)
            e.grad = torch.full_like(e, i + 1.0)
        step_if(torch.tensor(is_finite), fused)
        assert not hasattr(fused, "found_inf")  # the next step is not affected
        if is_finite:
            plain.step()
        for w, e in zip(weights, expected, strict=True):
            torch.testing.assert_close(w, e)
    for w, e in zip(weights, expected, strict=True):
        for key, value in plain.state[e].items():
            torch.testing.assert_close(fused.state[w][key], value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_does_not_synchronise():
    model = trained("cuda")
    before = parameters(model)
    batch = make_batch(8)
    batch = type(batch)({key: x.to("cuda") for key, x in batch.items()})
    assert model.take_step(model.loss(batch))
    assert not equal(before, parameters(model))
    before = parameters(model)
    for factor in (NAN, 1.0):
        loss = factor * model.loss(batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = model.take_step(loss)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert bool(taken) == (factor == 1)
        assert equal(before, parameters(model)) == (factor != 1)


def test_moving_a_model_moves_all_that_belongs_to_it():
    model = make_model(create_optimizer=True).train()
    model.learn([make_batch(8)])
    model.double()
    slots = [x for state in model.optimizer.state.values() for key, x in state.items() if key != "step"]
    assert {x.dtype for x in slots} == {torch.float64}
    assert model.device == torch.device("cpu")
    model = make_model(create_optimizer=True).to("meta")
    assert model.device.type == model.network._template[0].state_dict().popitem()[1].device.type == "meta"


def test_graphs_follow_the_device(monkeypatch):
    model = make_model()
    assert model.graphs is None
    monkeypatch.setattr(type(model), "_make_graphs", lambda self: self.device.type)
    model.to("cpu")
    assert model.graphs is None  # kept, with what was captured
    model.to("meta")
    assert model.graphs == "meta"
