"""Outputs of networks, members first: M members, R rows, K modes, S state dimensions."""

from typing import NamedTuple

from torch import Tensor


class NetOutput(NamedTuple):
    """Predictions of all members' networks for R rows, members first, in the networks' units."""

    mean: Tensor
    """Means of the modes, (M, R, K, S)."""
    std: Tensor
    """Standard deviations of the modes, (M, R, K, S)."""
    weights: Tensor
    """Weights of the modes, (M, R, K)."""
    term_prob: Tensor
    """Termination probabilities, (M, R)."""


class StepOutput(NamedTuple):
    """The same for one step of a rollout. With a single mode there is no axis of modes."""

    mean: Tensor
    """Means, (M, R, K, S), or (M, R, S) with a single mode."""
    std: Tensor
    """Standard deviations, same shape as the means."""
    weights: Tensor | None
    """Weights of the modes, (M, R, K), or None with a single mode."""
    term_prob: Tensor
    """Termination probabilities, (M, R)."""

    @staticmethod
    def of(out: NetOutput) -> "StepOutput":
        """Convert a `NetOutput`, without the axis of modes if there is only one."""
        if out.mean.shape[-2] > 1:
            return StepOutput(*out)
        return StepOutput(out.mean.squeeze(-2), out.std.squeeze(-2), None, out.term_prob)
