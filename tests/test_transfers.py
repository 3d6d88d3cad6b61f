"""Packed copies between host and device."""

import numpy as np
import pytest
import torch

from layeredrl.metrics import RunningMeans
from layeredrl.transfers import to_device, to_host
from tests.fake_gpu import CUDA, FakeGPU

ARRAYS = [
    np.array([True, False, True]),
    np.arange(5, dtype=np.int16),
    np.array(2.5),
    np.zeros((0, 3), np.float32),
    np.arange(6, dtype=np.float32).reshape(2, 3).T,
    np.arange(7, dtype=np.uint8),
]


def test_arrays_of_any_type_go_there_and_back_in_one_copy_each() -> None:
    with FakeGPU() as gpu, gpu.counting() as events:
        back = to_host(*to_device(ARRAYS, CUDA))
    assert len(events.copies) == len(events.syncs) == 1
    for a, b in zip(ARRAYS, back, strict=True):
        assert b.dtype == a.dtype
        np.testing.assert_array_equal(a, b)


def test_tensors_of_both_devices_are_read() -> None:
    with FakeGPU():
        here, there = torch.arange(3), torch.arange(4.0, device=CUDA)
        a, b = to_host(here, there)
        means = RunningMeans()
        means.add({"here": torch.tensor(2.0), "there": torch.tensor(3.0, device=CUDA), "number": 4.0})
        assert means.take() == {"here": 2.0, "there": 3.0, "number": 4.0}
    np.testing.assert_array_equal(a, np.arange(3))
    np.testing.assert_array_equal(b, np.arange(4.0))


def test_other_types_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="array has dtype uint16, expected one of bool"):
        to_device([np.zeros(2, np.uint16)], CUDA)
    with pytest.raises(TypeError, match=r"tensor has dtype torch\.bfloat16, expected one of bool"):
        to_host(torch.zeros(2, dtype=torch.bfloat16))
