"""Calls of a capture to a fake `torch.cuda`, and the comparison of a replay with the function."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from layeredrl.models.stacked import graphs
from layeredrl.models.stacked.graphs import _agree, capture_on_cuda, in_turn
from tests.models.networks import random_values
from tests.models.reference import S


def simulated(scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Something like a rollout: states (3, 2, 4, S), termination probabilities and divergence (2, 2, 4)."""
    return scale * random_values(0, 3, 2, 4, S), random_values(1, 2, 2, 4), torch.zeros(2, 2, 4, dtype=torch.bool)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float64, 1e-8)])
def test_the_tolerance_depends_on_the_type(dtype, near):
    tolerance = 3 * torch.finfo(dtype).eps ** 0.5
    for scale in (1e-3, 1.0, 1e5):
        expected = tuple(x.double() if x.is_floating_point() else x for x in simulated(scale))
        for factor, agrees in ((1 + near, True), (1 + 30 * near, False)):
            assert _agree((factor * expected[0], *expected[1:]), expected, tolerance) == agrees


def test_a_particle_that_grows_does_not_excuse_the_others():
    expected = simulated(1.0)
    expected[0][:, 0, 0] *= 1e6
    other = expected[0].clone()
    other[1, 1, 2] += 0.1
    assert not _agree((other, *expected[1:]), expected, 1e-3)


def test_particles_that_diverged_are_not_compared():
    expected = simulated(1.0)
    expected[2][1, 0, 3] = True
    other = [x.clone() for x in expected]
    other[0][:, 0, 3] = 7.0
    other[2][0, 0, 3] = True  # a step earlier
    assert _agree(tuple(other), expected, 1e-3)
    other[2][1, 1, 3] = True  # which did not
    assert not _agree(tuple(other), expected, 1e-3)
    expected[2][1] = True
    assert _agree(tuple(other), expected, 1e-3)


class FakeStream:
    def wait_stream(self, stream):
        assert isinstance(stream, FakeStream)


class FakeGraph:
    def __init__(self):
        self.is_reset = False

    def replay(self):
        pass

    def reset(self):
        self.is_reset = True


class FakeCuda:
    """The calls of `torch.cuda` that a capture makes; one that fails leaves the side stream current, as torch does."""

    def __init__(self, monkeypatch):
        self.device, self.main, self.ended = 0, FakeStream(), []
        self.stream_now = self.main
        self.recorded = []
        fakes = {
            "current_device": lambda: self.device,
            "current_stream": lambda: self.stream_now,
            "set_stream": lambda stream: setattr(self, "stream_now", stream),
            "Stream": FakeStream,
            "CUDAGraph": FakeGraph,
            "graph_pool_handle": object,
            "stream": self.stream,
            "graph": self.graph,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: self.ended.append(pool), raising=False)
        for name, kept in (("_SIDES", {}), ("_FAILED", [])):
            monkeypatch.setattr(graphs, name, kept)

    @contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        yield
        self.stream_now = before

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        self.recorded.append((graph, pool, stream))
        with self.stream(stream):
            yield


def test_captures_on_a_device_share_stream_and_memory(monkeypatch):
    cuda, streams, kept = FakeCuda(monkeypatch), [], []
    for device in (0, 1, 0, 1):
        cuda.device = device
        kept.append(capture_on_cuda(lambda: streams.append(cuda.stream_now) or ()))
    (_, *first), (_, *second), (_, *third), (_, *fourth) = cuda.recorded
    assert (first, second) == (third, fourth)
    assert first[0] is not second[0]
    assert first[1] is not second[1]
    for i, (_, _, stream) in enumerate(cuda.recorded):
        assert streams[4 * i : 4 * i + 4] == [stream] * 4  # three runs to warm up, one to record
    assert cuda.stream_now is cuda.main
    assert not cuda.ended


def test_a_pool_without_graphs_is_not_used_again(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    for _ in range(2):
        capture_on_cuda(lambda: ())
        cuda.recorded[-1] = cuda.recorded[-1][1:]  # the last reference to the graph
    (pool, stream), (other_pool, other_stream) = cuda.recorded
    assert pool is not other_pool
    assert stream is other_stream


def test_a_failed_capture_restores_the_stream_and_drops_the_pool(monkeypatch):
    cuda, runs = FakeCuda(monkeypatch), []

    def function():
        runs.append(1)
        if len(runs) == 4:
            raise RuntimeError("operation not permitted when stream is capturing")
        return ()

    with pytest.raises(RuntimeError, match="not permitted"):
        capture_on_cuda(function)
    assert cuda.stream_now is cuda.main
    ((graph, pool, stream),) = cuda.recorded
    assert graph.is_reset
    assert cuda.ended == [(0, pool)]
    capture_on_cuda(function)
    _, other_pool, other_stream = cuda.recorded[1]
    assert other_pool is not pool
    assert other_stream is not stream


def test_replays_wait_for_the_last_one_on_another_stream(monkeypatch):
    cuda, waits = FakeCuda(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
    monkeypatch.setattr(graphs, "_LAST_STREAM", {})
    monkeypatch.setattr(FakeStream, "wait_stream", lambda self, other: waits.append((self, other)))
    other = FakeStream()
    for device, stream in ((0, cuda.main), (0, cuda.main), (0, other), (1, cuda.main), (0, other), (0, cuda.main)):
        cuda.stream_now = stream
        with in_turn(SimpleNamespace(is_cuda=True, get_device=lambda: device)):  # noqa: B023
            pass
    assert waits == [(other, cuda.main), (cuda.main, other)]
