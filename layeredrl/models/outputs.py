"""What networks predict, members first: M members, R rows, K modes, S state dimensions."""

from typing import NamedTuple

from torch import Tensor


class NetOutput(NamedTuple):
    """What the networks of all members predict for R rows, members first, in the networks' units."""

    mean: Tensor
    """(M, R, K, S)"""
    std: Tensor
    """(M, R, K, S)"""
    weights: Tensor
    """(M, R, K)"""
    term_prob: Tensor
    """(M, R)"""


class StepOutput(NamedTuple):
    """What a step of a rollout needs of a `NetOutput`. With a single mode there is no axis of modes."""

    mean: Tensor
    """(M, R, K, S), or (M, R, S) with a single mode."""
    std: Tensor
    """Of the mean's shape."""
    weights: Tensor | None
    """(M, R, K), or None with a single mode."""
    term_prob: Tensor
    """(M, R)"""

    @staticmethod
    def of(out: NetOutput) -> "StepOutput":
        """Leave out the axis of modes if there is only one."""
        if out.mean.shape[-2] > 1:
            return StepOutput(*out)
        return StepOutput(out.mean.squeeze(-2), out.std.squeeze(-2), None, out.term_prob)
