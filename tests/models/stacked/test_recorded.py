"""Rollouts recorded as aten operations, as a CUDA graph holds them: whatever Python computes once is frozen.

Recorded on a GPU that is not there, so that the operations are those of a GPU.
"""

from collections.abc import Iterator

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.deterministic import DeterministicEnsemble
from layeredrl.models.nets import GaussianMixtureMLP
from layeredrl.models.normalization import Moments
from layeredrl.models.stacked.graphs import GraphCache
from tests.fake_gpu import CUDA, FakeGPU
from tests.models.networks import LinearNet, random_values
from tests.models.reference import A, C, M, S, box, make_model

N, H, CHOICES = 3, 2, 3


@pytest.fixture
def gpu() -> Iterator[FakeGPU]:
    with FakeGPU() as gpu:
        yield gpu


def make(
    n_modes: int = 1, space: Box | Discrete | None = None, *, layer_norm: bool = False, **settings
) -> ProbabilisticEnsemble:
    """An ensemble of the library's own networks on the GPU."""
    space = box(A) if space is None else space
    nets = [GaussianMixtureMLP(box(S), box(C), space, n_modes, hidden=(8, 8), layer_norm=layer_norm) for _ in range(M)]
    settings = {"n_particles_per_model": 2, "normalize_targets": True, "create_optimizer": True} | settings
    return make_model(nets, n_modes=n_modes, action_space=space, **settings).to(CUDA)


def drawn(seed: int, scale: float, *shape: int) -> Tensor:
    return (scale * random_values(seed, *shape)).to(CUDA)


def actions_of(model: ProbabilisticEnsemble, seed: int, *lead: int) -> Tensor:
    if model.spaces.n_choices is None:
        return drawn(seed, 1.0, *lead, A).clamp(-1, 1)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.spaces.n_choices, (*lead, 1), generator=generator).to(CUDA)


def roll(model: ProbabilisticEnsemble, seed: int, *, scale: float = 1.0, deterministic: bool = False) -> Batch:
    generator = torch.Generator(CUDA).manual_seed(seed)
    with torch.no_grad():
        return model.rollout(
            drawn(seed, scale, N, S),
            drawn(seed + 1, scale, N, C),
            actions_of(model, seed + 2, N, H),
            deterministic,
            generator=generator,
        )


def eager(model: ProbabilisticEnsemble, *args, **settings) -> Batch:
    graphs, model.graphs = model.graphs, GraphCache(device="meta")  # rounds up rows alike
    try:
        return roll(model, *args, **settings)
    finally:
        model.graphs = graphs


def learn(model: ProbabilisticEnsemble) -> None:
    """Change parameters, units and the statistics of inputs in place."""
    rows = {"state": drawn(50, 5.0, 16, S), "context": drawn(51, 5.0, 16, C), "act": actions_of(model, 52, 16)}
    rows["state_next"] = rows["state"] + drawn(53, 3.0, 16, S)
    model.fit_statistics(rows)
    model.train().learn([Batch(rows | {"terminated": torch.zeros(16, device=CUDA)})] * 3)
    model.eval()


def agree(actual: Batch, expected: Batch) -> None:
    for key in expected.get_keys():
        torch.testing.assert_close(actual[key].cpu(), expected[key].cpu(), rtol=1e-5, atol=1e-5, msg=key)


def require_replays(model: ProbabilisticEnsemble, *, deterministic: bool = False) -> None:
    """Require that one record serves new inputs, and parameters and statistics that have changed."""
    before = roll(model, 0, deterministic=deterministic)
    assert len(model.graphs) == 1
    assert not model.graphs.refused
    agree(before, eager(model, 0, deterministic=deterministic))
    agree(roll(model, 7, deterministic=deterministic), eager(model, 7, deterministic=deterministic))
    learn(model)
    after = roll(model, 0, deterministic=deterministic)
    assert not torch.allclose(after.state.cpu(), before.state.cpu(), atol=0.01)
    agree(after, eager(model, 0, deterministic=deterministic))
    state = model.state_dict()
    model.load_state_dict({name: 1.1 * x if x.is_floating_point() else x.clone() for name, x in state.items()})
    agree(roll(model, 7, deterministic=deterministic), eager(model, 7, deterministic=deterministic))
    assert len(model.graphs) == 1


@pytest.mark.parametrize("n_modes", [1, 2])
@pytest.mark.parametrize("propagation", ["tsinf", "ts1", "expectation", "mode"])
def test_of_every_propagation_and_mixture(gpu, propagation, n_modes):
    require_replays(make(n_modes, propagation=propagation))


@pytest.mark.parametrize("rollout_dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_of_every_precision(gpu, rollout_dtype):
    model = make(rollout_dtype=rollout_dtype, layer_norm=True)
    require_replays(model)


@pytest.mark.parametrize("n_modes", [1, 2])
def test_of_discrete_actions(gpu, n_modes):
    require_replays(make(n_modes, Discrete(CHOICES)))


def test_of_means(gpu):
    require_replays(make(2), deterministic=True)


def test_of_next_states_instead_of_changes(gpu):
    require_replays(make(absolute_dims=(1,)))


def test_particles_that_diverge_are_held_as_without_a_record(gpu):
    model = make()
    model.set_moments({"state": Moments.of(torch.ones(4, S).to(CUDA)), "targets": Moments.of(drawn(1, 1.0, 4, S))})
    roll(model, 0)
    with torch.no_grad():
        model.scale.std.fill_(1e9)
    result = roll(model, 0)
    assert result.diverged.any()
    agree(result, eager(model, 0))


class GainNet(LinearNet):
    """Multiplies its mean by a number of Python, which no record can follow."""

    gain = 1.0

    def forward(self, *rows: Tensor):
        (mean, std), *rest = super().forward(*rows)
        return (self.gain * mean, std), *rest


def test_a_value_of_python_is_frozen(gpu, monkeypatch):
    """The record sees what the comparison of a capture with the function cannot."""
    nets: list[nn.Module] = [GainNet(S, C, A, 1, seed=i) for i in range(M)]
    model = make_model(nets, n_modes=1).to(CUDA)
    before = roll(model, 0)
    monkeypatch.setattr(GainNet, "gain", 2.0)
    frozen = roll(model, 0)
    agree(frozen, before)
    assert not torch.allclose(eager(model, 0).state.cpu(), frozen.state.cpu())


class LookingNet(LinearNet):
    """Looks at its inputs, for which a GPU would wait."""

    def forward(self, *rows: Tensor):
        if not torch.jit.is_tracing() and rows[0].sum() > 1e9:
            return super().forward(*(2 * x for x in rows))
        return super().forward(*rows)


def test_a_look_at_a_value_cannot_be_recorded(gpu):
    model = make_model([LookingNet(S, C, A, 1, seed=0)], n_modes=1).to(CUDA)
    with pytest.warns(UserWarning, match=r"not replayed as CUDA graphs.*not permitted"):
        roll(model, 0)
    assert model.graphs.refused


def test_of_members_without_variance(gpu):
    nets = [GaussianMixtureMLP(box(S), box(C), box(A), 1, hidden=(8,)) for _ in range(M)]
    made = iter(nets)
    model = DeterministicEnsemble(
        box(S), box(C), box(A), lambda *_: next(made), n_models=M, create_optimizer=True, normalize_targets=True
    ).to(CUDA)
    model.eval()
    before = roll(model, 0)
    learn(model)
    agree(roll(model, 0), eager(model, 0))
    assert not torch.allclose(roll(model, 0).state.cpu(), before.state.cpu())
