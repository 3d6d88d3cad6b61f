"""CUDA graphs: a function of tensors is recorded once for each shape of its inputs, then replayed in one launch.

A rollout is hundreds of small kernels, and on a GPU launching them takes far longer than running them.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Replay = Callable[[], object]
Capture = Callable[[Callable[[], Tensors]], tuple[Replay, Tensors]]
"""Records a function without arguments; gives what runs it again, and the tensors that this fills."""

WARM_UP = 3
"""Runs before a capture, in which libraries choose their algorithms and allocate their workspaces."""
TOLERANCE = 1e-3
"""Of a replay, relative to the largest number: the same kernels with other workspaces may round differently."""


def capture_on_cuda(function: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
    """Record a CUDA graph as torch's notes on them ask: warmed up on a side stream, captured in a memory pool."""
    main, side = torch.cuda.current_stream(), cast(Any, torch.cuda).Stream()  # untyped in torch
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
        outputs = function()
    return graph.replay, outputs


class GraphCache:
    """Runs functions of tensors by replaying what was captured for the same key; the least recently used goes first.

    A function must be pure: what it computes follows from its inputs and from tensors that stay where they are in
    memory, whatever happens to their values. Should a capture fail, or its replay give something else than the function
    itself, everything is run as it is from then on, with one warning.

    Args:
        capture: How to record a function.
        size: Number of captures to keep; each holds the memory of its intermediate results.
        device: Type of the devices that it records; functions of tensors elsewhere are run as they are.
    """

    def __init__(self, capture: Capture = capture_on_cuda, size: int = 8, device: str = "cuda") -> None:
        self.capture = capture
        self.size = size
        self.device = device
        self.failed = False
        self._captured: OrderedDict[Hashable, tuple[Tensors, Replay, Tensors]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._captured)

    def __reduce__(self) -> tuple[type["GraphCache"], tuple[Capture, int, str]]:
        return type(self), (
            self.capture,
            self.size,
            self.device,
        )  # a copy captures anew: graphs are bound to this model's memory

    def __call__(
        self,
        function: Callable[..., Tensors],
        inputs: Sequence[Tensor | None],
        key: Hashable,
        *,
        live: Iterable[Tensor] = (),
    ) -> Tensors:
        """`function(*inputs)`, without gradients.

        Args:
            function: Pure; equal keys stand for equal functions.
            inputs: Tensors of any shape, or None. Their shapes and types become part of the key.
            key: What the function depends on besides.
            live: Tensors that the function reads besides its inputs. Their places in memory become part of the key.

        Returns:
            New tensors, as the function gives them.
        """
        if self.failed or self._is_elsewhere(inputs):
            return function(*inputs)
        form = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        full_key = (key, form, tuple(x.data_ptr() for x in live))
        with cast(Any, torch.cuda).device_of(inputs[0]):  # untyped in torch
            if full_key not in self._captured:
                return self._first(function, inputs, full_key)
            self._captured.move_to_end(full_key)
            static, replay, outputs = self._captured[full_key]
            for to, value in zip(static, (x for x in inputs if x is not None), strict=True):
                to.copy_(value)
            replay()
            return tuple(x.clone() for x in outputs)  # the next replay overwrites them

    def _is_elsewhere(self, inputs: Sequence[Tensor | None]) -> bool:
        """Whether tensors are on another device, or mixed precision or somebody's own capture is under way."""
        if any(x is not None and x.device.type != self.device for x in inputs) or torch.is_autocast_enabled(
            self.device
        ):
            return True
        return self.device == "cuda" and torch.cuda.is_current_stream_capturing()

    def _first(self, function: Callable[..., Tensors], inputs: Sequence[Tensor | None], key: Hashable) -> Tensors:
        """Run the function as it is, and capture it for the next time."""
        expected = function(*inputs)
        try:
            # What is kept must be ordinary tensors, which may be written in inference mode and outside of it.
            with torch.inference_mode(False), torch.no_grad():
                static = [None if x is None else x.clone() for x in inputs]
                replay, outputs = self.capture(lambda: function(*static))
                replay()
                if not all(_agree(a, b) for a, b in zip(outputs, expected, strict=True)):
                    raise ValueError("its replay differs from what it replays")
        except Exception as error:  # a stranger's network may do anything that cannot be captured
            self.failed = True
            self._captured.clear()
            reason = (str(error).splitlines() or [""])[0]
            warnings.warn(
                f"rollouts are not replayed as CUDA graphs, which is slower ({type(error).__name__}: {reason})",
                stacklevel=5,  # who called the model
            )
            return expected
        self._captured[key] = tuple(x for x in static if x is not None), replay, outputs
        if len(self._captured) > self.size:
            self._captured.popitem(last=False)
        return expected


def _agree(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of any shape are equal up to `TOLERANCE`; NaN equals NaN."""
    if actual.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(actual, expected)
    largest = float(torch.where(expected.isfinite(), expected, 0.0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True)
