"""Optimisers: construction, steps that skip non-finite gradients, and loading of states."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from layeredrl import checks
from layeredrl.models.stacked.network import StackedNetwork


def make_optimizer(
    network: StackedNetwork, learning_rate: float, weight_decay: float | Sequence[float]
) -> torch.optim.Adam:
    """Make Adam with an L2 penalty on the weights of linear layers.

    Args:
        network: Network whose parameters to train.
        learning_rate: Learning rate of all parameters.
        weight_decay: Factor of the penalty 0.5 * |W|^2: one for all linear layers, or one for each in order.
    """
    weights = network.linear_weights()
    decays = [weight_decay] * len(weights) if isinstance(weight_decay, int | float) else list(weight_decay)
    if len(decays) != len(weights):
        raise ValueError(f"weight_decay has {len(decays)} values, expected one for each of {len(weights)} layers")
    for decay in decays:
        checks.require_number("weight_decay", decay, 0, math.inf)
    decay_of = {id(weight): float(decay) for weight, decay in zip(weights, decays, strict=True)}
    groups: dict[float, list[Tensor]] = {}
    for parameter in network.parameters():
        groups.setdefault(decay_of.get(id(parameter), 0.0), []).append(parameter)
    settings = [{"params": group, "weight_decay": decay} for decay, group in sorted(groups.items())]
    return torch.optim.Adam(settings, lr=learning_rate, fused=True)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Take one step down the gradient of `loss`, a scalar, unless loss or gradient is not finite.

    On a GPU a fused optimiser checks this itself, because reading the result would make the GPU wait.

    Returns:
        True if the step was taken, a bool scalar on the loss's device.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # A sum of finite numbers is finite, so one check covers all gradients.
    is_finite = torch.stack([loss.detach(), *(g.sum() for g in gradients)]).sum().isfinite()
    if loss.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):  # set by torch on fused optimisers
        step_if(is_finite, optimizer)
    elif bool(is_finite):
        optimizer.step()
    return is_finite


def step_if(condition: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take a step if a condition holds, without reading its value from the device.

    Args:
        condition: Bool scalar on the device of the parameters.
        optimizer: Fused optimiser; its step changes nothing if `found_inf` is 1, a feature for mixed precision.
    """
    fused = cast(Any, optimizer)
    fused.found_inf = (~condition).float()
    try:
        optimizer.step()
    finally:
        del fused.found_inf


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state after checking that it fits the parameters.

    torch does not check the shapes, and a fused step with wrong ones would write out of bounds. Nor does it restore the
    order in memory, which such a step takes to be that of the parameter.

    Args:
        name: Name of the optimiser, for error messages.
        optimizer: Optimiser; unchanged if the state does not fit.
        state: A `state_dict` of such an optimiser.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if set(state["state"]) - set(range(len(parameters))):
        raise ValueError(
            f"the state of {name} has entries for parameters {sorted(state['state'])}, "
            f"expected indices below {len(parameters)}"
        )
    for i, slots in state["state"].items():
        for key, value in slots.items():
            shape = parameters[i].shape
            if not isinstance(value, Tensor):
                continue
            if value.shape != (torch.Size(()) if key == "step" else shape):
                raise ValueError(
                    f"the state of {name} has {key} of shape {tuple(value.shape)}, expected {tuple(shape)}"
                )
            if key != "step" and not value.is_floating_point():
                raise ValueError(f"{key} of {name} has dtype {value.dtype}, expected a floating type")
    optimizer.load_state_dict(dict(state))
    for parameter, slots in optimizer.state.items():
        for key, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[key] = stored_as(parameter, value)


def stored_as(parameter: Tensor, x: Tensor) -> Tensor:
    """Return a tensor of a parameter's shape in the parameter's order in memory: itself, or a copy."""
    return x if x.stride() == parameter.stride() else torch.empty_like(parameter).copy_(x)
