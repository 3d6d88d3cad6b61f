"""Adam whose step is one call, and may be skipped by a number on the device."""

from typing import Any, cast

import torch
from torch import Tensor

from layeredrl.models.optimizer import stored_as


def skipped(norm: Tensor) -> Tensor:
    """Return 1 if the norm of a gradient is not finite, else 0, as a number on the device."""
    return (norm * 0).ne(0).float()  # fewer calls than `isfinite`: zero times infinity or NaN is NaN


class FusedAdam(torch.optim.Adam):
    """Adam of torch, `fused`, with the same state and settings, and a step of its own.

    Torch's `step` takes longer than its own kernel does for networks of this size. All parameters of a group are
    stepped together and share the count of steps.
    """

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step; a closure is ignored."""
        self.step_unless(torch.zeros((), device=self.param_groups[0]["params"][0].device))

    @torch.no_grad()
    def step_unless(self, skipped: Tensor) -> None:
        """Take a step, without any synchronisation, unless `skipped` is 1.

        Args:
            skipped: Scalar on the device of the parameters, float32: 1 to change neither parameters nor state, else 0.
        """
        self._opt_called = True  # else torch's schedulers of learning rates warn that no step was taken
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(p) for p in parameters]
            n_steps = states[0]["step"]
            n_steps += 1 - skipped
            for state in states:  # a loaded state has a tensor for each
                state["step"] = n_steps
            torch._fused_adam_(
                parameters,
                [stored_as(p, cast(Tensor, p.grad)) for p in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [n_steps] * len(parameters),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=skipped,
            )

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """State of a parameter, in the form of torch's."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return cast(dict[str, Any], state)
