"""CUDA graphs: a rollout is captured once for each shape of its inputs, then replayed in one launch.

A rollout consists of hundreds of small kernels, and launching them takes far longer than running them.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast
from weakref import WeakSet

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Replay = Callable[[], object]
Capture = Callable[[Callable[[], Tensors]], tuple[Replay, Tensors]]
"""Captures a function without arguments; returns its replay, and the output tensors that the replay writes."""

WARM_UP = 3
"""Number of runs before a capture, in which libraries choose algorithms and allocate workspaces."""
MAX_REFUSED = 8
"""Number of failed captures after which no more are tried: the network is the likely cause, and a capture is slow."""


class _Side(NamedTuple):
    """Resources that the captures on a device share."""

    stream: Any
    """Stream of warm-up and capture. torch's own is on the device of the first capture."""
    pool: Any
    """Handle of the shared memory pool of their intermediate results; one graph is replayed at a time."""
    graphs: WeakSet[Any]
    """Living graphs. A pool is freed with its last graph, and its handle must not be used again."""


_LOCK = threading.RLock()
_SIDES: dict[int, _Side] = {}
_LAST_STREAM: dict[int, Any] = {}
"""Stream of the last replay, by device."""
_FAILED: list[Any] = []
"""Graphs whose capture failed. They must stay alive, because torch's allocators may still ask for their streams."""


def capture_on_cuda(function: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
    """Capture a CUDA graph as torch's notes require: warmed up on a side stream, captured in a memory pool."""
    cuda = cast(Any, torch.cuda)  # untyped in torch
    device, main = cuda.current_device(), cuda.current_stream()
    side = _SIDES.get(device)
    if side is None or not side.graphs:
        side = _SIDES[device] = _Side(
            cuda.Stream() if side is None else side.stream, cuda.graph_pool_handle(), WeakSet()
        )
    side.stream.wait_stream(main)
    with cuda.stream(side.stream):
        for _ in range(WARM_UP):
            function()
    main.wait_stream(side.stream)
    graph = cuda.CUDAGraph()
    try:
        # thread_local: other threads may use the GPU during the capture.
        with cuda.graph(graph, pool=side.pool, stream=side.stream, capture_error_mode="thread_local"):
            outputs = function()
    except BaseException:
        # torch does not fully end a failed capture: the side stream stays current, and the memory pool stays marked as
        # recording. Both may be broken, so the next capture gets new ones.
        cuda.set_stream(main)
        _SIDES.pop(device, None)
        _FAILED.append(graph)
        with suppress(Exception):  # private; raises if there is nothing to end
            cast(Any, torch._C)._cuda_endAllocateToPool(device, side.pool)
        graph.reset()
        raise
    finally:
        cuda.set_stream(main)
    side.graphs.add(graph)
    return graph.replay, outputs


@contextmanager
def in_turn(x: Tensor) -> Iterator[None]:
    """Work on the device of `x` after all earlier replays there, from any thread and stream."""
    cuda = cast(Any, torch.cuda)  # untyped in torch
    with _LOCK, cuda.device_of(x):
        if x.is_cuda:
            device, stream = x.get_device(), cuda.current_stream()
            last = _LAST_STREAM.setdefault(device, stream)
            if last != stream:
                stream.wait_stream(last)
                _LAST_STREAM[device] = stream
        yield


class GraphCache:
    """Runs rollouts by replaying captures with the same key; the least recently used capture is dropped first.

    A rollout must be a pure function of its inputs and of tensors that keep their place in memory, whose values may
    change. If a capture fails, or its replay gives other results than the function, the function is called directly for
    that key from then on; the first time there is a warning.

    Args:
        capture: Function that captures a function.
        size: Number of captures to keep. A planner needs one for each of its numbers of candidates, in training and in
            evaluation: eight for iCEM with default settings. They share the memory of their intermediate results.
        device: Type of the devices to capture on; functions of tensors elsewhere are called directly.

    Attributes:
        refused: Keys for which the function is called directly.
    """

    def __init__(self, capture: Capture = capture_on_cuda, size: int = 32, device: str = "cuda") -> None:
        self.capture = capture
        self.size = size
        self.device = device
        self.refused: set[Hashable] = set()
        self._captured: OrderedDict[Hashable, tuple[Tensors, Replay, Tensors]] = OrderedDict()
        self._has_dropped = False

    def __len__(self) -> int:
        return len(self._captured)

    def __reduce__(self) -> tuple[type["GraphCache"], tuple[Capture, int, str]]:
        # A copy captures anew: graphs are bound to this model's memory.
        return type(self), (self.capture, self.size, self.device)

    def __call__(
        self,
        function: Callable[..., Tensors],
        inputs: Sequence[Tensor | None],
        key: Hashable,
        *,
        dtype: torch.dtype,
        live: Iterable[Tensor] = (),
    ) -> Tensors:
        """Return `function(*inputs)`, without gradients.

        Args:
            function: Pure function with the outputs of `simulate`: states (H+1, M, R, S), termination probabilities
                (H, M, R) and divergence flags (H, M, R). Equal keys mean equal functions.
            inputs: Tensors of any shape, or None. Their shapes and types become part of the key. Permuted along their
                first dimension they must be valid inputs, too.
            key: Everything else that the function depends on.
            dtype: Type of the computation, which sets the tolerance of the comparison with a replay.
            live: Tensors that the function reads besides its inputs. Their addresses become part of the key.

        Returns:
            New tensors, the outputs of the function.
        """
        if self._is_elsewhere(inputs):
            return function(*inputs)
        form = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        full_key = (key, form, tuple(x.data_ptr() for x in live))
        if full_key in self.refused or (len(self.refused) >= MAX_REFUSED and full_key not in self._captured):
            return function(*inputs)
        given = tuple(x for x in inputs if x is not None)
        with in_turn(given[0]):
            if full_key not in self._captured:
                try:
                    self._captured[full_key] = self._checked_capture(function, inputs, dtype)
                except Exception as error:  # a user's network may do anything that cannot be captured
                    result = function(*inputs)  # raises the original error if the function itself fails
                    self._refuse(full_key, error)
                    return result
                if len(self._captured) > self.size:
                    self._drop_oldest()
            self._captured.move_to_end(full_key)
            static, replay, outputs = self._captured[full_key]
            for to, value in zip(static, given, strict=True):
                to.copy_(value)
            replay()  # the first time, too: a replay may round differently
            return tuple(x.clone() for x in outputs)  # the next replay overwrites them

    def _drop_oldest(self) -> None:
        """Drop the capture that was used least recently; the first time, warn that captures are made again."""
        self._captured.popitem(last=False)
        if not self._has_dropped:
            self._has_dropped = True
            warnings.warn(
                f"rollouts have more different shapes than the {self.size} of which CUDA graphs are kept; "
                "those that are dropped are captured again when they are needed, which is slow",
                RuntimeWarning,
                stacklevel=5,  # the caller of the model
            )

    def _is_elsewhere(self, inputs: Sequence[Tensor | None]) -> bool:
        """Return True if tensors are on another device, or in mixed precision, or during another capture."""
        if any(x is not None and x.device.type != self.device for x in inputs) or torch.is_autocast_enabled(
            self.device
        ):
            return True
        return self.device == "cuda" and torch.cuda.is_current_stream_capturing()

    @torch.inference_mode(False)  # kept tensors must be ordinary ones, which can be written in either mode
    @torch.no_grad()
    def _checked_capture(
        self, function: Callable[..., Tensors], inputs: Sequence[Tensor | None], dtype: torch.dtype
    ) -> tuple[Tensors, Replay, Tensors]:
        """Capture; return static inputs, replay and outputs. Raise unless the replay is right for other inputs."""
        static = [None if x is None else x.clone() for x in inputs]
        replay, outputs = self.capture(lambda: function(*static))
        others = [None if x is None else _rolled(x) for x in inputs]
        expected = function(*others)
        for to, value in zip(static, others, strict=True):
            if to is not None and value is not None:
                to.copy_(value)
        for output, value in zip(outputs, expected, strict=True):  # a replay that writes nothing must not pass
            output.copy_(torch.full_like(value, torch.nan) if value.is_floating_point() else ~value)
        replay()
        if not _agree(outputs, expected, 3 * torch.finfo(dtype).eps ** 0.5):  # 1e-3 for float32, 0.3 for bfloat16
            raise ValueError("its replay differs from the function itself")
        return tuple(x for x in static if x is not None), replay, outputs

    def _refuse(self, key: Hashable, error: Exception) -> None:
        """Call the function directly for this key from now on."""
        if not self.refused:
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"rollouts are not replayed as CUDA graphs, which is slower ({type(error).__name__}: {reason})",
                stacklevel=5,  # the caller of the model
            )
        self.refused.add(key)


def _rolled(x: Tensor) -> Tensor:
    """Roll a tensor by one along its first dimension that is longer than one."""
    dim = next((i for i, size in enumerate(x.shape) if size > 1), None)
    return x if dim is None else x.roll(1, dim)


def _agree(actual: Tensors, expected: Tensors, tolerance: float) -> bool:
    """Return True if two rollouts are equal up to a tolerance; NaN equals NaN.

    Particles that diverge are ignored, because they amplify any difference. The tolerance is relative to the largest
    number of a particle, or of the median particle if that is larger.
    """
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in zip(actual, expected, strict=True)):
        return False
    counted = ~expected[-1].any(0)  # (M, R)
    if not bool(counted.any()):
        return True
    for a, b in zip(actual, expected, strict=True):
        a, b = (x[:, counted].transpose(0, 1).flatten(1) for x in (a, b))  # (particles, everything else)
        agrees = (a == b) | (a.isnan() & b.isnan())
        if b.is_floating_point():
            size = torch.where(b.isfinite(), b, 0.0).abs().amax(1, keepdim=True)
            agrees |= (a - b).abs() <= tolerance * torch.maximum(size, size.median())
        if not bool(agrees.all()):
            return False
    return True
