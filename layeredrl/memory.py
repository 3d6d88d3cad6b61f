"""Memories of levels: Batches of tensors, possibly nested, with the environment first."""

from collections.abc import Mapping
from typing import Any

import torch
from tianshou.data import Batch
from torch import Tensor


def require_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a saved tensor of the carry has the expected shape."""
    if value.shape != shape:
        raise ValueError(f"the carry's {name} has shape {tuple(value.shape)}, expected {tuple(shape)}")


def state_of(memory: Batch) -> dict[str, Any]:
    """A copy of a memory as nested dicts of tensors."""
    return {key: state_of(x) if isinstance(x, Batch) else x.clone() for key, x in memory.items()}


def restore(memory: Batch, state: Mapping[str, Any], name: str = "memory") -> None:
    """Replace the tensors of a memory by those of `state_of`, on the same devices."""
    if set(state) != set(memory.get_keys()):
        raise ValueError(f"the carry's {name} holds {sorted(state)}, expected {sorted(memory.get_keys())}")
    for key, value in state.items():
        if isinstance(memory[key], Batch):
            restore(memory[key], value, f"{name}.{key}")
        else:
            require_shape(f"{name}.{key}", value, memory[key].shape)
            memory[key] = value.to(memory[key].device, copy=True)


def write(memory: Batch, rows: Tensor, values: Batch) -> None:
    """Overwrite rows of a memory, which may be nested."""
    for key in memory.get_keys():
        if isinstance(memory[key], Batch):
            write(memory[key], rows, values[key])
        else:
            memory[key][rows] = values[key]


def replaced(memory: Batch, rows: Tensor, values: Batch) -> Batch:
    """Return a copy of a memory, which may be nested, with other values in some of its rows (m,)."""
    result = Batch()
    for key in memory.get_keys():
        if isinstance(memory[key], Batch):
            result[key] = replaced(memory[key], rows, values[key])
        else:
            result[key] = memory[key].clone()
            result[key][rows] = values[key]
    return result


def where(condition: Tensor, values: Batch, others: Batch) -> Batch:
    """Choose between two memories, which may be nested, by environment (n,)."""
    result = Batch()
    for key in values.get_keys():
        if isinstance(values[key], Batch):
            result[key] = where(condition, values[key], others[key])
        else:
            shape = -1, *[1] * (values[key].ndim - 1)
            result[key] = torch.where(condition.view(shape), values[key], others[key])
    return result
