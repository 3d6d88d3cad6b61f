"""Transfers between host and device: many arrays in one copy, because each copy costs the same, whatever its size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 8
"""Bytes of the largest number: each array begins at a multiple of it."""


def to_host(*tensors: Tensor) -> list[NDArray[Any]]:
    """Return tensors of one device as arrays, in one copy. Arrays of tensors on the CPU share their memory."""
    if all(x.device.type == "cpu" for x in tensors):
        return [x.detach().numpy() for x in tensors]
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


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return arrays as tensors on a device, in one copy. Tensors on the CPU share the arrays' memory."""
    if device.type == "cpu" or len(arrays) == 1:
        return [torch.as_tensor(x, device=device) for x in arrays]
    starts = np.cumsum([0, *(-(-x.nbytes // _ALIGNMENT) * _ALIGNMENT for x in arrays)])
    packed = np.empty(starts[-1], np.uint8)
    for x, start in zip(arrays, starts, strict=False):
        packed[start : start + x.nbytes] = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
    there = torch.as_tensor(packed, device=device)
    return [
        there[start : start + x.nbytes].view(_TYPES[x.dtype.name]).view(x.shape)
        for x, start in zip(arrays, starts, strict=False)
    ]


_TYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
}
_DTYPES = {dtype: np.dtype(name) for name, dtype in _TYPES.items()}
