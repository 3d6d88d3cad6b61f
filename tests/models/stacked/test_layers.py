import copy

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from layeredrl.models import ProbabilisticEnsemble
from layeredrl.models.nets import GaussianMixtureMLP, mlp
from layeredrl.models.stacked.layers import (
    CACHED_ELEMENTS,
    MANY_GPU_ROWS,
    MANY_ROWS,
    StackedSequential,
    gains_from_bfloat16,
    stack_modules,
)

M = 3
WIDTHS = (5, 12, 7, 4)
WIDE = 4000
CHUNK = CACHED_ELEMENTS // WIDE  # rows, where one layer is so wide
CPU = torch.device("cpu")


def chains(widths=WIDTHS, *, layer_norm=False, dtype=torch.float32) -> tuple[list[nn.Sequential], StackedSequential]:
    """Single networks with all parameters drawn at random, and the same as one."""
    members = [mlp(widths, layer_norm=layer_norm).to(dtype) for _ in range(M)]
    for member in members:
        for parameter in member.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    stacked = stack_modules(members)
    assert isinstance(stacked, StackedSequential)
    return members, stacked


def one_by_one(members: list[nn.Sequential], x: Tensor) -> Tensor:
    return torch.stack([member(rows) for member, rows in zip(members, x, strict=True)])


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("layer_norm", "dtype"), [(True, torch.float32), (False, torch.float64)])
@pytest.mark.parametrize("n_rows", [1, MANY_ROWS - 1, MANY_ROWS, 3 * MANY_ROWS + 1])
def test_few_and_many_rows_give_what_the_members_give(n_rows: int, dtype: torch.dtype, layer_norm: bool) -> None:
    members, stacked = chains(layer_norm=layer_norm, dtype=dtype)
    x = torch.randn(M, n_rows, WIDTHS[0], dtype=dtype)
    with torch.no_grad():
        expected = one_by_one(members, x)
        for chain in (stacked, stacked.prepared()):
            close(chain(x), expected, 1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("n_rows", [3 * CHUNK - 1, 3 * CHUNK, 3 * CHUNK + 1])
def test_no_row_is_lost_where_chunks_meet(n_rows: int) -> None:
    assert n_rows >= MANY_ROWS
    members, stacked = chains((2, WIDE, 3))
    x = torch.randn(M, n_rows, 2)
    with torch.no_grad():
        close(stacked(x), one_by_one(members, x), 1e-5)


@pytest.mark.parametrize("n_rows", [4, MANY_ROWS])
@pytest.mark.parametrize("reduced", [None, torch.bfloat16])
def test_layers_without_bias_and_inputs_shared_by_the_members(n_rows: int, reduced: torch.dtype | None) -> None:
    members = [nn.Sequential(nn.Linear(3, 6, bias=False), nn.LayerNorm(6, bias=False), nn.SiLU()) for _ in range(M)]
    stacked = stack_modules(members)
    assert isinstance(stacked, StackedSequential)
    stacked.reduced = reduced
    x = torch.randn(n_rows, 3).expand(M, -1, -1)
    with torch.no_grad():
        for chain in (stacked, stacked.prepared()):
            close(chain(x), one_by_one(members, x), 1e-5 if reduced is None else 0.06)


def test_more_leading_dimensions() -> None:
    members, stacked = chains()
    x = torch.randn(M, 4, 6, WIDTHS[0])
    close(stacked(x), one_by_one(members, x), 1e-5)


def test_a_layer_that_mixes_rows_gets_all_rows_at_once() -> None:
    class MinusMeanOfRows(nn.Identity):  # a subclass of a layer that works row by row
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(-2, keepdim=True)

    members = [nn.Sequential(nn.Linear(2, WIDE), MinusMeanOfRows(), nn.Linear(WIDE, 2)) for _ in range(M)]
    stacked = stack_modules(members)
    assert isinstance(stacked, StackedSequential)
    x = torch.randn(M, MANY_ROWS, 2)
    with torch.no_grad():
        expected = one_by_one(members, x)
        close(stacked(x), expected, 1e-5)
        stacked.reduced = torch.bfloat16  # which it cannot follow
        close(stacked.prepared()(x), expected, 1e-5)


@pytest.mark.parametrize("n_rows", [4, MANY_ROWS])
@pytest.mark.parametrize("reduced", [None, torch.bfloat16])
def test_gradients_are_those_of_the_members(n_rows: int, reduced: torch.dtype | None) -> None:
    members, stacked = chains(dtype=torch.float64, layer_norm=True)
    stacked.reduced = reduced  # with gradients everything stays exact
    x = torch.randn(M, n_rows, WIDTHS[0], dtype=torch.float64, requires_grad=True)
    weights = [[p for p in member.parameters() if p.ndim == 2] for member in members]
    stacked_weights = [p for p in stacked.parameters() if p.shape[1] > 1]
    for run in (stacked, stacked.prepared()):
        of_x, *of_weights = torch.autograd.grad(run(x).square().sum(), [x, *stacked_weights])
        close(of_x, *torch.autograd.grad(one_by_one(members, x).square().sum(), x), 1e-10)
        for i, member in enumerate(members):
            expected = torch.autograd.grad(member(x[i]).square().sum(), weights[i])
            for gradient, own in zip(of_weights, expected, strict=True):
                close(gradient[i].mT, own, 1e-10)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("n_rows", [5, MANY_ROWS])
def test_bfloat16_is_close_and_keeps_the_type_of_the_output(n_rows: int, layer_norm: bool) -> None:
    _, stacked = chains(layer_norm=layer_norm)
    x = torch.randn(M, n_rows, WIDTHS[0])
    with torch.no_grad():
        exact = stacked(x)
        stacked.reduced = torch.bfloat16
        reduced = stacked(x)
        assert torch.equal(stacked.prepared()(x), reduced)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    assert float((reduced - exact).norm() / exact.norm()) < 0.02  # bfloat16 rounds to 1/256, layer after layer


def model(hidden=(64, 64), **settings) -> ProbabilisticEnsemble:
    spaces = [Box(-np.inf, np.inf, (4,)), Box(-1, 1, (0,)), Box(-1, 1, (1,))]
    settings = {"n_models": 5, "n_particles_per_model": 4} | settings

    def net(*args) -> nn.Module:
        return GaussianMixtureMLP(*args, hidden=hidden)

    torch.manual_seed(3)
    return ProbabilisticEnsemble(*spaces, net, **settings).eval()


def rollout(ensemble: ProbabilisticEnsemble, n_rows: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(n_rows, 4, generator=generator)
    actions = torch.randn(n_rows, 6, 1, generator=generator).clamp(-1, 1)
    with torch.no_grad():
        return ensemble.rollout(state, state.new_zeros(n_rows, 0), actions, generator=generator).state


def test_a_bfloat16_rollout_is_close_and_has_no_lasting_effect() -> None:
    ensemble = model()
    exact = rollout(ensemble)
    ensemble.rollout_dtype = torch.bfloat16
    reduced = rollout(ensemble)
    assert reduced.dtype == torch.float32
    assert not torch.equal(reduced, exact)
    assert float((reduced - exact).norm() / exact.norm()) < 0.01
    ensemble.rollout_dtype = None
    assert torch.equal(rollout(ensemble), exact)


def test_an_exception_leaves_no_reduced_type_behind() -> None:
    network = model().network
    (chain,) = (module for module in network.modules() if isinstance(module, StackedSequential))
    with network.computing_in(torch.bfloat16):
        assert chain.reduced == torch.bfloat16
    with pytest.raises(ZeroDivisionError), network.computing_in(torch.bfloat16):
        1 / 0  # noqa: B018
    assert chain.reduced is None


def test_small_products_are_not_faster_in_bfloat16() -> None:
    assert not gains_from_bfloat16(CPU, 48, 64)
    assert not gains_from_bfloat16(CPU, MANY_ROWS - 1, 4096)
    assert not gains_from_bfloat16(CPU, 4096, 64)


@pytest.mark.parametrize("has_products", [False, True])
def test_auto_uses_bfloat16_for_many_rows_of_wide_layers_if_supported(
    monkeypatch: pytest.MonkeyPatch, has_products: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_products)
    assert gains_from_bfloat16(CPU, MANY_ROWS, 128) is has_products
    auto, expected = (rollout(model((128,), rollout_dtype=dtype), 64) for dtype in ("auto", torch.bfloat16))
    assert torch.equal(auto, expected) is has_products


def test_a_new_rollout_sees_parameters_that_have_changed() -> None:
    ensemble, untouched = model(rollout_dtype=torch.bfloat16), model(rollout_dtype=torch.bfloat16)
    before = rollout(ensemble)
    with torch.no_grad():
        for parameter in ensemble.get_parameters():
            parameter.mul_(1.1)
    changed = rollout(ensemble)
    assert not torch.equal(changed, before)
    untouched.load_state_dict(copy.deepcopy(ensemble.state_dict()))
    assert torch.equal(rollout(untouched), changed)


def test_hooks_are_called_in_prepared_chains() -> None:
    x = torch.randn(2, 4, 3)
    hooked = stack_modules([nn.Sequential(nn.Linear(3, 5), nn.SiLU()) for _ in range(2)])
    hooked[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    with torch.no_grad():
        close(hooked.prepared()(x), hooked(x), 1e-5)


@pytest.mark.parametrize(("capability", "gains"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_on_a_gpu_needs_its_products_and_size(monkeypatch, capability, gains):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert gains_from_bfloat16(gpu, MANY_GPU_ROWS, 200) is gains
    assert not gains_from_bfloat16(gpu, MANY_GPU_ROWS, 64)
    assert not gains_from_bfloat16(gpu, MANY_GPU_ROWS - 1, 200)
