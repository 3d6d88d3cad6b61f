"""A network's `prepared` replaces its `forward` in rollouts if both give the same results."""

import pytest
import torch
from torch import Tensor, nn

from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.outputs import StepOutput
from tests.models.networks import SequentialNet
from tests.models.reference import A, C, S, box, inputs, make_model


class OtherForward(GaussianMixtureMLP):
    """Sees the sine of the state."""

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        return super().forward(state.sin(), context, action)


class ClippedForward(GaussianMixtureMLP):
    """Differs only for states that no trial has."""

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        return super().forward(state.clamp(-30, 30), context, action)


class OtherInputs(GaussianMixtureMLP):
    """Sees the sine of the state, by a method that `forward` and `prepared` have in common."""

    def _inputs(self, state: Tensor, context: Tensor, action: Tensor) -> Tensor:
        return super()._inputs(state.sin(), context, action)


class OtherBounds(nn.Module):
    """In place of `BoundedStd`, with what `prepared` asks of one."""

    def __init__(self, bounds: nn.Module) -> None:
        super().__init__()
        self.bounds = bounds

    def variances(self) -> tuple[Tensor, Tensor]:
        return self.bounds.variances()

    def penalty(self) -> Tensor:
        return self.bounds.penalty()

    def forward(self, share: Tensor) -> Tensor:
        return 2 * self.bounds(share)


class OtherPart(GaussianMixtureMLP):
    """Another module in it."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        self.bounds = OtherBounds(self.bounds)


class OtherBoth(OtherForward):
    """With a `prepared` for its forward."""

    def prepared(self):
        step = super().prepared()
        return lambda state, context, action: step(state.sin(), context, action)


class BrokenPrepared(SequentialNet):
    def prepared(self):
        raise NotImplementedError


class NoStepOutput(SequentialNet):
    def prepared(self):
        return lambda state, context, action: self(state, context, action)


def model_of(cls: type[nn.Module], n_modes: int):
    torch.manual_seed(0)
    if issubclass(cls, SequentialNet):
        return make_model([cls(S, C, A, n_modes, kind="layer_norm") for _ in range(2)], n_modes=n_modes)
    nets = [cls(box(S), box(C), box(A), n_modes, hidden=(16, 16)) for _ in range(2)]
    return make_model(nets, n_modes=n_modes)


def steps(model, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Next states (B, M, S): by a rollout of one step, and as predicted."""
    state, context, action = inputs(6)
    state = scale * state
    with torch.no_grad():
        rolled = model.rollout(state, context, action[:, None], deterministic=True).state[:, :, 0, 1]
        mean, weights, *_ = model.predict(state, context, action)
    return rolled, (weights.unsqueeze(-1) * mean).sum(2)


@pytest.mark.parametrize("n_modes", [1, 2])
@pytest.mark.parametrize(
    ("cls", "is_prepared"),
    [
        (GaussianMixtureMLP, True),
        (OtherForward, False),
        (ClippedForward, False),
        (OtherInputs, True),
        (OtherPart, False),
        (OtherBoth, True),
        (BrokenPrepared, False),
        (NoStepOutput, False),
        (SequentialNet, False),
    ],
)
def test_rollouts_follow_the_forward(cls, is_prepared, n_modes, monkeypatch):
    calls = []
    if hasattr(cls, "prepared"):
        owner = next(c for c in cls.__mro__ if "prepared" in vars(c))
        original = owner.prepared
        monkeypatch.setattr(owner, "prepared", lambda self: calls.append(1) or original(self))
    model = model_of(cls, n_modes)
    assert model.network.evaluation == "broadcast"
    calls.clear()
    for scale in (2.0, 100.0):
        rolled, predicted = steps(model, scale)
        torch.testing.assert_close(rolled, predicted, rtol=1e-4, atol=1e-4)
    assert bool(calls) == is_prepared


@pytest.mark.parametrize(("part", "pre"), [("", True), ("standardizer", False), ("layers.0", True), ("bounds", False)])
def test_rollouts_call_hooks(part, pre):
    model, calls = model_of(GaussianMixtureMLP, 1), []
    module = model.network.net.get_submodule(part)
    register = module.register_forward_pre_hook if pre else module.register_forward_hook
    handle = register(lambda *_: calls.append(1))
    state, context, action = inputs(3)
    with torch.no_grad():
        model.rollout(state, context, action[:, None].expand(-1, 4, -1))
        assert len(calls) == 4
        handle.remove()
        model.rollout(state, context, action[:, None])
    assert len(calls) == 4


def test_a_hook_that_changes_the_output_is_followed():
    model = model_of(GaussianMixtureMLP, 1)
    before, _ = steps(model)
    model.network.net.register_forward_hook(lambda _, __, out: ((out[0][0] + 1, out[0][1]), *out[1:]))
    rolled, predicted = steps(model)
    torch.testing.assert_close(rolled, predicted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rolled, before + 1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_modes", [1, 2])
def test_a_user_network_may_have_a_prepared(n_modes):
    """Without an axis of modes, and without weights, if there is a single mode."""
    calls = []

    class Own(SequentialNet):
        def prepared(self):
            def step(state, context, action):
                calls.append(1)
                (mean, std), weights, term_prob = self(state, context, action)
                if n_modes > 1:
                    return StepOutput(mean, std, weights, term_prob)
                return StepOutput(mean.squeeze(-2), std.squeeze(-2), None, term_prob)

            return step

    model = model_of(Own, n_modes)
    calls.clear()
    rolled, predicted = steps(model)
    torch.testing.assert_close(rolled, predicted, rtol=1e-4, atol=1e-4)
    assert calls
