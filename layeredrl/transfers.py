"""Transfers between host and device: many arrays in one copy, because each copy costs the same, whatever its size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 8
"""Bytes of the largest number: each array begins at a multiple of it."""


def same_device(one: torch.device, other: torch.device) -> bool:
    """Return True for the same device; one without an index is the first of its kind."""
    return one.type == other.type and (one.index or 0) == (other.index or 0)


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """Return tensors as arrays: those of a GPU in one copy, those on the CPU as views of their memory.

    Args:
        tensors: Of any shapes, and of the types bool, uint8, int8 to int64 and float16 to float64.

    Raises:
        TypeError: A tensor is of another type.
    """
    for x in tensors:
        if x.dtype not in _DTYPES:
            raise TypeError(f"a tensor has dtype {x.dtype}, expected one of {', '.join(_TYPES)}")
    far = [i for i, x in enumerate(tensors) if x.device.type != "cpu"]
    if len(far) < len(tensors):
        there = iter(to_host(*(tensors[i] for i in far)) if far else ())
        return [next(there) if x.device.type != "cpu" else x.detach().numpy() for x in tensors]
    if len(tensors) == 1:
        return [tensors[0].detach().cpu().numpy()]
    packed = torch.cat([x.detach().reshape(-1).contiguous().view(torch.uint8) for x in tensors]).cpu().numpy()
    sizes = [x.numel() * x.element_size() for x in tensors]
    arrays: list[NDArray[Any]] = []
    for x, part in zip(tensors, np.split(packed, np.cumsum(sizes)[:-1]), strict=True):
        array = np.empty(tuple(x.shape), _DTYPES[x.dtype])
        array.reshape(-1).view(np.uint8)[:] = part  # parts may begin anywhere
        arrays.append(array)
    return arrays


def to_device(arrays: Sequence[NDArray[Any] | Tensor], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on a device, in one copy. Tensors on the CPU share the arrays' memory.

    Args:
        arrays: Of any shapes, and of the types of `to_host`; or all of them tensors on the device, which are returned.
        device: The device.

    Raises:
        TypeError: An array is of another type.
    """
    there = [x for x in arrays if isinstance(x, Tensor)]
    if there and len(there) == len(arrays):
        return there
    here = [np.asarray(x) for x in arrays]
    for x in here:
        if x.dtype not in _ARRAY_TYPES:
            raise TypeError(f"an array has dtype {x.dtype}, expected one of {', '.join(_TYPES)}")
    if device.type == "cpu" or len(here) == 1:
        return [torch.as_tensor(x, device=device) for x in here]
    starts = np.cumsum([0, *(-(-x.nbytes // _ALIGNMENT) * _ALIGNMENT for x in here)])
    packed = np.empty(starts[-1], np.uint8)
    for x, start in zip(here, starts, strict=False):
        packed[start : start + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    whole = torch.as_tensor(packed, device=device)
    return [
        whole[start : start + x.nbytes].view(_TYPES[x.dtype.name]).view(x.shape)
        for x, start in zip(here, starts, strict=False)
    ]


_TYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}
_DTYPES = {dtype: np.dtype(name) for name, dtype in _TYPES.items()}
_ARRAY_TYPES = frozenset(_DTYPES.values())  # the name of an array's type takes long to make
