"""Several perceptrons of one architecture as one, with a backward pass of few calls.

On one core, half the time of an update goes to everything but its matrix products: calls, autograd's graph, copies.
Here a layer of all members is one batched product, and a gradient is written where the optimiser reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from layeredrl.models.stacked.layers import StackedLayerNorm, StackedLinear, stack_modules


def mlp(widths: Sequence[int], *, layer_norm: bool = False) -> nn.Sequential:
    """Linear layers, as torch initialises them, with ReLU between every two, and a layer norm before it on request."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [nn.Linear(n_in, n_out), *([nn.LayerNorm(n_out)] if layer_norm else []), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


@dataclass(frozen=True)
class Tape:
    """Record of a forward pass, for the backward pass."""

    inputs: list[Tensor]
    """Inputs (M, n, in) of each linear layer."""
    norms: "list[_Normalised]"
    """Record of each layer norm; empty without them."""

    def rows(self, n: int) -> "Tape":
        """The record of the first n rows."""
        norms = [_Normalised(*(x[:, :n].contiguous() for x in norm)) for norm in self.norms]
        return Tape([x[:, :n] for x in self.inputs], norms)


class _Normalised(NamedTuple):
    """Layer norm: inputs and outputs before scale and shift, (M, n, width); mean and inverse deviation, (M, n, 1)."""

    inputs: Tensor
    outputs: Tensor
    mean: Tensor
    rstd: Tensor


class StackedMLP(nn.Module):
    """M perceptrons that differ only in the values of their parameters, evaluated together.

    Args:
        members: Perceptrons, as `mlp` makes them.
    """

    def __init__(self, members: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.net = stack_modules(members)
        layers = [*self.net.children()]
        # Attributes of modules are slow to read. The parameters stay the same objects, also on another device.
        self._linears = [(m.weight, _bias(m)) for m in layers if isinstance(m, StackedLinear)]
        self._norms = [(m.weight, _bias(m), m.eps) for m in layers if isinstance(m, StackedLayerNorm)]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (M, n, out), differentiable by autograd, for inputs (n, in) that all members get."""
        return self.run(x)[0]

    def run(self, x: Tensor, n_members: int | None = None) -> tuple[Tensor, Tape]:
        """Return the outputs (M, n, out) for inputs (n, in), and the record for `backward`.

        Args:
            x: Inputs of all members.
            n_members: Number M of members to evaluate, the first ones; None for all.
        """
        h = x.expand(n_members or len(self._linears[0][0]), *x.shape)
        tape = Tape([], [])
        for i, parameters in enumerate(self._linears):
            weight, bias = parameters if n_members is None else (p[:n_members] for p in parameters)
            tape.inputs.append(h)
            # A product with a single row is several times as fast as one with a single column.
            is_column = weight.shape[-1] == 1
            h = torch.baddbmm(bias, weight.mT, h.mT).mT if is_column else torch.baddbmm(bias, h, weight)
            if i == len(self._linears) - 1:
                break
            if self._norms:
                scale, shift, eps = self._norms[i]
                norm = _Normalised(h, *torch.native_layer_norm(h, h.shape[-1:], None, None, eps))
                tape.norms.append(norm)
                h = torch.addcmul(shift[:n_members], norm.outputs, scale[:n_members])
            h = h.relu_()
        return h, tape

    def backward(self, gradient: Tensor, tape: Tape) -> None:
        """Write the gradients of all parameters into their `grad`, in place of what was there.

        Args:
            gradient: Gradient of the loss by the outputs, (M, n, out).
            tape: Record of the forward pass of all members.
        """
        self._backward(gradient, tape)

    def input_gradient(self, gradient: Tensor, tape: Tape, first: int = 0) -> Tensor:
        """Return the gradient of the loss by the inputs of each member, (M, n, in - first).

        Args:
            gradient: As in `backward`.
            tape: As in `backward`.
            first: Number of inputs to leave out, from the first on.
        """
        return self._backward(gradient, tape, first=first)

    def _backward(self, g: Tensor, tape: Tape, *, first: int | None = None) -> Tensor:
        """Write the parameters' gradients, or return that by the inputs from the given one on."""
        of_parameters = first is None
        n_members = len(g)
        for i in reversed(range(len(self._linears))):
            weight, bias = self._linears[i]
            inputs = tape.inputs[i]
            is_column = weight.shape[-1] == 1
            if of_parameters:
                into = _gradient(weight)
                if is_column:
                    torch.bmm(g.mT, inputs, out=into.mT)
                else:
                    torch.bmm(inputs.mT, g, out=into)
                torch.sum(g, 1, keepdim=True, out=_gradient(bias))
                if i == 0:
                    break
            used = (weight[:n_members] if i else weight[:n_members, first:]).mT
            g = g * used if is_column else torch.bmm(g, used)
            if i == 0:
                break
            _mask(g, inputs, 0, grad_input=g)  # the inputs of this layer are the outputs of the ReLU before
            if self._norms:
                g = self._through_norm(i - 1, g, tape.norms[i - 1], of_parameters=of_parameters)
        return g

    def _through_norm(self, i: int, g: Tensor, norm: _Normalised, *, of_parameters: bool) -> Tensor:
        scale, shift, _ = self._norms[i]
        if of_parameters:
            torch.sum(g * norm.outputs, 1, keepdim=True, out=_gradient(scale))
            torch.sum(g, 1, keepdim=True, out=_gradient(shift))
        shape, wanted = norm.inputs.shape[-1:], [True, False, False]
        by_inputs: Tensor = torch.ops.aten.native_layer_norm_backward(
            g * scale[: len(g)], norm.inputs, shape, norm.mean, norm.rstd, None, None, wanted
        )[0]
        return by_inputs


def _bias(layer: StackedLinear | StackedLayerNorm) -> nn.Parameter:
    if layer.bias is None:
        raise ValueError(f"a {type(layer).__name__} has no bias, expected one")
    return layer.bias


_mask = torch.ops.aten.threshold_backward.grad_input


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the tensor that holds the gradient of a parameter."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad
