"""Optimisers: the ensemble's, and their states from files."""

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
    """Adam, with an L2 penalty on the weights of linear layers.

    Args:
        network: Whose parameters to train.
        learning_rate: The same for all.
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
    """One step down the gradient of a scalar, unless that is not finite.

    On a GPU a fused optimiser is left to see that by itself: to look would be to wait.

    Returns:
        Whether the step was taken, a scalar of bools on the loss's device.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # A sum is finite if its terms are: one look for all of them.
    is_finite = torch.stack([loss.detach(), *(g.sum() for g in gradients)]).sum().isfinite()
    if loss.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):  # torch's mark of a fused one
        step_if(is_finite, optimizer)
    elif bool(is_finite):
        optimizer.step()
    return is_finite


def step_if(condition: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step that happens if a condition holds, a scalar of bools at whose value nobody looks.

    Args:
        condition: On the device of the parameters.
        optimizer: A fused one: these leave everything as it is where `found_inf` is one, as mixed precision wants it.
    """
    fused = cast(Any, optimizer)
    fused.found_inf = (~condition).float()
    try:
        optimizer.step()
    finally:
        del fused.found_inf


def restore_optimizer(name: str, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state that fits the parameters; torch takes any, and a fused step would then write out of bounds.

    Args:
        name: Of the optimiser, for the message.
        optimizer: Unchanged if the state does not fit.
        state: From its `state_dict`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if set(state["state"]) - set(range(len(parameters))):
        raise ValueError(f"the state of {name} is of other parameters than {len(parameters)}")
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
