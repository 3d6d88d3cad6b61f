"""Updates of a policy as CUDA graphs: an update is a hundred small kernels, whose launches take longer than they do."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from layeredrl.models.stacked.graphs import Capture, Replay, Tensors, capture_on_cuda, in_turn

SIZE = 8
"""Number of captures that are kept: TD3 needs two, with and without a step of the actor."""
TOLERANCE = 1e-3
"""Largest difference of a replay from the update itself, relative to the largest change of a tensor."""
ROUNDING = 1e-6
"""The same relative to the largest number of a tensor, from which a change is rounded."""


class UpdateGraphs:
    """Runs updates by replaying their captures, each of which has been compared with the update itself.

    An update is a function of its inputs, with all randomness among them, that changes tensors in place. Where it
    cannot be captured, it is called directly from then on, with one warning.

    Args:
        capture: Function that captures a function.
        device: Type of the devices to capture on.

    Attributes:
        refused: If True, no update is captured any more.
    """

    def __init__(self, capture: Capture = capture_on_cuda, device: str = "cuda") -> None:
        self.capture, self.device = capture, device
        self.refused = False
        self._captured: OrderedDict[Hashable, tuple[Tensors, Replay, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._captured)

    def __reduce__(self) -> tuple[type["UpdateGraphs"], tuple[Capture, str]]:
        return type(self), (self.capture, self.device)  # a copy has other tensors, and captures anew

    def __call__(
        self, update: Callable[..., Tensor], inputs: Sequence[Tensor], key: Hashable, state: Sequence[Tensor]
    ) -> Tensor:
        """Take an update; return its outputs, a new tensor.

        Args:
            update: Takes the inputs, changes `state` in place, and returns one tensor.
            inputs: Tensors whose shapes become part of the key.
            key: Everything else that the update depends on. Equal keys mean equal functions.
            state: All tensors that the update changes. Their addresses become part of the key.
        """
        if self.refused or any(x.device.type != self.device for x in inputs):
            return update(*inputs)
        full_key = (key, *(x.shape for x in inputs), *(x.data_ptr() for x in state))
        with in_turn(inputs[0]):
            if full_key not in self._captured:
                try:
                    self._captured[full_key] = self._checked_capture(update, inputs, state)
                except Exception as error:  # a machine or a version of torch may not be able to
                    self._refuse(error)
                    return update(*inputs)
                if len(self._captured) > SIZE:
                    self._captured.popitem(last=False)
            self._captured.move_to_end(full_key)
            static, replay, output = self._captured[full_key]
            for to, value in zip(static, inputs, strict=True):
                to.copy_(value)
            replay()
            return output.clone()  # the next replay overwrites it

    @torch.no_grad()
    def _checked_capture(
        self, update: Callable[..., Tensor], inputs: Sequence[Tensor], state: Sequence[Tensor]
    ) -> tuple[Tensors, Replay, Tensor]:
        """Capture an update without taking it. Raise unless a replay changes the state as the update itself does."""
        before = [x.clone() for x in state]
        static = tuple(x.clone() for x in inputs)
        try:
            replay, (output,) = self.capture(lambda: (update(*static),))
            _restore(state, before)
            # Other rows than those captured: a replay must not have kept any of them.
            others = [x.roll(1, 0) for x in inputs]
            expected = [update(*others), *(x.clone() for x in state)]
            _restore(state, before)
            for to, value in zip(static, others, strict=True):
                to.copy_(value)
            replay()
            zero = torch.zeros_like(output)
            for old, got, right in zip([zero, *before], [output, *state], expected, strict=True):
                if not _agree(old, got, right):
                    raise ValueError("its replay differs from the update itself")
        finally:
            _restore(state, before)
        return static, replay, output

    def _refuse(self, error: Exception) -> None:
        self.refused = True
        self._captured.clear()
        reason = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"policy updates are not replayed as CUDA graphs, which is slower ({type(error).__name__}: {reason})",
            RuntimeWarning,
            stacklevel=5,
        )


def _restore(state: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(state, values, strict=True):
        tensor.copy_(value)


def _agree(old: Tensor, got: Tensor, right: Tensor) -> bool:
    """Return True if two results of an update change what was there by the same, but for rounding."""
    if not right.numel():
        return True
    change = (right - old).abs().amax()
    rounding = ROUNDING * torch.maximum(old.abs().amax(), right.abs().amax())
    same = (got == right) | (got.isnan() & right.isnan()) | ((got - right).abs() <= TOLERANCE * change + rounding)
    return bool(same.all())
