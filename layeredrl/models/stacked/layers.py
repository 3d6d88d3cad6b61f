"""Layers with a member axis, and the rebuilding of a network from them.

The members' parameters are stacked, the member axis first: (M, in, out) for the weight of a linear layer, (M, 1, *s)
for any other parameter of shape s, which broadcasts over the rows of (M, R, width).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_ROWS = 256
"""Number of rows from which products member by member are faster on a CPU than one batched product."""
MANY_GPU_ROWS = 1024
"""Number of rows of each member from which products on a GPU may be limited by arithmetic, not by launches."""
CACHED_ELEMENTS = 400_000
"""Number of elements of a chunk of rows in its widest layer; more would not stay in the cache between layers."""
ELEMENTWISE = (nn.SiLU, nn.ReLU, nn.Tanh, nn.GELU, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Mish, nn.LeakyReLU, nn.Identity)
"""Activations that act on each element alone, so that rows may be split into chunks."""


class Step(Protocol):
    """A layer of a chain: all members' rows (M, R, in), or one member's (R, in)."""

    def __call__(self, x: Tensor, member: int | None = None, /) -> Tensor: ...


class StackedLinear(nn.Module):
    """The linear layers of M members: (M, ..., in) -> (M, ..., out)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        """Shape (M, in, out)."""
        self.bias = bias
        """Shape (M, 1, out)."""

    def bound(self, dtype: torch.dtype | None) -> Step:
        """Return the layer as a function that holds its parameters, converted to `dtype` if given."""
        weight, bias = _as_type(self.weight, dtype), None if self.bias is None else _as_type(self.bias, dtype)

        def run(x: Tensor, member: int | None = None) -> Tensor:
            if member is None:
                return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)
            return x @ weight[member] if bias is None else torch.addmm(bias[member, 0], x, weight[member])

        return run

    def forward(self, x: Tensor) -> Tensor:
        rows = x if x.ndim == 3 else x.flatten(1, -2)
        out = torch.bmm(rows, self.weight) if self.bias is None else torch.baddbmm(self.bias, rows, self.weight)
        return out if x.ndim == 3 else out.view(*x.shape[:-1], out.shape[-1])


class StackedLayerNorm(nn.Module):
    """The layer norms of M members, over the last dimension of (M, R, width)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = weight, bias, eps

    def bound(self, dtype: torch.dtype | None) -> Step:
        """Return the layer as a function that holds its parameters, converted to `dtype` if given."""
        weight, bias = _as_type(self.weight, dtype), None if self.bias is None else _as_type(self.bias, dtype)

        def run(x: Tensor, member: int | None = None) -> Tensor:
            own_weight = weight if member is None else weight[member]
            out = F.layer_norm(x, weight.shape[-1:], eps=self.eps) * own_weight
            return out if bias is None else out + (bias if member is None else bias[member])

        return run

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x, self.weight.shape[-1:], eps=self.eps) * self.weight
        return out if self.bias is None else out + self.bias


class StackedSequential(nn.Sequential):
    """A chain of layers for M members: (M, R, in) -> (M, R, out).

    Few rows go through all members at once. Many rows on a CPU go through the whole chain member by member and chunk by
    chunk, so that activations stay in the cache.

    Attributes:
        reduced: Type of the computation, while inputs and outputs stay float32; None for that of the parameters.
    """

    reduced: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and (self.reduced is not None or _are_many(x)):
            return self.prepared()(x)
        for layer in self:
            x = layer(x)
        return x

    def prepared(self) -> Callable[[Tensor], Tensor]:
        """Return the chain as a function with its parameters converted in advance, for many calls as in a rollout.

        With gradients, or with layers that are not known to work row by row, the chain itself is returned.
        """
        if torch.is_grad_enabled() or not all(_is_known(layer) for layer in self):
            return super().forward
        dtype, layers = self.reduced, list(self)
        steps: list[Step] = []
        for i, layer in enumerate(layers):
            if isinstance(layer, StackedLinear | StackedLayerNorm):
                steps.append(layer.bound(dtype))
            else:
                fresh = i > 0 and isinstance(layers[i - 1], StackedLinear | StackedLayerNorm)
                steps.append(_activation(layer, in_place=fresh))

        def run(x: Tensor) -> Tensor:
            if _are_many(x):
                widest = max(
                    (layer.weight.shape[-1] for layer in layers if isinstance(layer, StackedLinear)), default=1
                )
                return _by_member(steps, x, dtype, max(1, CACHED_ELEMENTS // widest))
            h = _as_type(x, dtype)
            for step in steps:
                h = step(h)
            return h if dtype is None else h.to(x.dtype)

        return run


KNOWN = (StackedLinear, StackedLayerNorm, *ELEMENTWISE)


def _is_known(layer: nn.Module) -> bool:
    """Return True if a layer works row by row: subclasses may mix rows, and hooks may do anything."""
    return type(layer) in KNOWN and not (layer._forward_hooks or layer._forward_pre_hooks)


def _as_type(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x if dtype is None else x.to(dtype)


def _are_many(x: Tensor) -> bool:
    return x.ndim == 3 and x.shape[1] >= MANY_ROWS and x.device.type == "cpu"


def _activation(layer: nn.Module, *, in_place: bool) -> Step:
    if isinstance(layer, nn.SiLU):
        return lambda x, member=None: F.silu(x, inplace=in_place)
    return lambda x, member=None: layer(x)


def _by_member(steps: Sequence[Step], x: Tensor, dtype: torch.dtype | None, chunk: int) -> Tensor:
    """Apply the steps to rows (M, R, in), member by member and chunk by chunk; returns (M, R, out)."""
    out: Tensor | None = None
    start = 0
    for part in x.tensor_split(-(-x.shape[1] // chunk), 1):
        for i in range(len(x)):
            h = _as_type(part[i], dtype)
            for step in steps:
                h = step(h, i)
            if out is None:
                out = x.new_empty(*x.shape[:2], h.shape[1])
            out[i, start : start + part.shape[1]] = h
        start += part.shape[1]
    assert out is not None
    return out


class _Stacker:
    """Builds a module of the same structure with the tensors of all members stacked; shared modules stay shared."""

    def __init__(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._parameters: dict[int, nn.Parameter] = {}

    def module(self, modules: Sequence[nn.Module]) -> nn.Module:
        first = modules[0]
        if id(first) not in self._modules:
            self._modules[id(first)] = self._stack(modules)
        return self._modules[id(first)]

    def _stack(self, modules: Sequence[nn.Module]) -> nn.Module:
        first = modules[0]
        if type(first) is nn.Linear:
            weight = self._parameter([m._parameters["weight"] for m in modules], is_linear_weight=True)
            assert weight is not None
            return StackedLinear(weight, self._parameter([m._parameters["bias"] for m in modules]))
        if type(first) is nn.LayerNorm and first.elementwise_affine and len(first.normalized_shape) == 1:
            weight = self._parameter([m._parameters["weight"] for m in modules])
            assert weight is not None
            return StackedLayerNorm(weight, self._parameter([m._parameters["bias"] for m in modules]), first.eps)
        cls = StackedSequential if type(first) is nn.Sequential else type(first)
        stacked = cls.__new__(cls)  # copy.copy refuses parametrised modules
        stacked.__dict__.update(first.__dict__)
        stacked._parameters, stacked._buffers, stacked._modules = {}, {}, {}
        for name in first._parameters:
            stacked._parameters[name] = self._parameter([m._parameters[name] for m in modules])
        for name, buffer in first._buffers.items():
            stacked._buffers[name] = (
                None if buffer is None else torch.stack([m.get_buffer(name).unsqueeze(0) for m in modules])
            )
        for name, child in first._modules.items():
            children = [m._modules[name] for m in modules]
            stacked._modules[name] = None if child is None else self.module([c for c in children if c is not None])
        return stacked

    def _parameter(
        self, parameters: Sequence[nn.Parameter | None], *, is_linear_weight: bool = False
    ) -> nn.Parameter | None:
        tensors = [p.detach() for p in parameters if p is not None]
        first = parameters[0]
        if first is None:
            return None
        if id(first) not in self._parameters:
            stack = torch.stack(tensors).mT.contiguous() if is_linear_weight else torch.stack(tensors).unsqueeze(1)
            self._parameters[id(first)] = nn.Parameter(stack, requires_grad=first.requires_grad)
        return self._parameters[id(first)]


def gains_from_bfloat16(device: torch.device, n_rows: int, width: int) -> bool:
    """Return True if products of this size are faster in bfloat16 on this machine, including conversions."""
    if device.type == "cuda":
        # Older GPUs emulate it. Small products take the time of their launches, in any type.
        has_products = torch.cuda.get_device_capability(device) >= (8, 0)
        return has_products and n_rows >= MANY_GPU_ROWS and width >= 128
    has_products = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return has_products and n_rows >= MANY_ROWS and width >= 128


def stack_modules(modules: Sequence[nn.Module]) -> nn.Module:
    """Merge M equal modules into one of the same structure, with linear and norm layers replaced, tensors stacked."""
    return _Stacker().module(modules)
