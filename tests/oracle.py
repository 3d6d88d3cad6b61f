"""A dynamics model that knows the truth, so that what is built on a model can be tested without learning one."""

from collections.abc import Callable, Iterable

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models import Model


class Oracle(Model):
    """Deterministic known dynamics: one member, one particle; never predicts a termination.

    Args:
        dynamics: State (..., S) and action (..., A) to the next state (..., S).
    """

    def __init__(self, dynamics: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.dynamics = dynamics

    def sample(
        self, state: Tensor, context: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        return self.dynamics(state, action)

    def predict(
        self, state: Tensor, context: Tensor, action: Tensor, std: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = self.dynamics(state, action)[:, None, None]
        deviation = torch.zeros_like(mean) if std is None else std.expand_as(mean)
        return mean, torch.ones_like(mean[..., 0]), deviation, torch.zeros_like(mean[:, 0, 0, 0])

    def rollout(
        self,
        initial_state: Tensor,
        context: Tensor,
        actions: Tensor,
        deterministic: bool = False,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
    ) -> Batch:
        states, diverged = [initial_state], []
        for action in actions.unbind(1):
            after = self.dynamics(states[-1], action)
            finite = after.isfinite().all(-1)
            if diverged:
                finite = finite & ~diverged[-1]
            states.append(torch.where(finite.unsqueeze(-1), after, states[-1]))
            diverged.append(~finite)
        state, lost = torch.stack(states, 1), torch.stack(diverged, 1)
        result = Batch(
            state=state[:, None, None],
            term_prob=torch.zeros_like(lost, dtype=state.dtype)[:, None, None],
            diverged=lost[:, None, None],
        )
        if statistics:
            result.state_mean, result.state_var = state[:, None], torch.zeros_like(state)[:, None]
            result.state_epistemic_var = result.state_aleatoric_var = torch.zeros_like(state)
        return result

    def get_parameters(self) -> Iterable[Tensor]:
        return []

    def get_log_prob(self, *_: object) -> tuple[Tensor, Tensor, dict[str, object]]:
        raise NotImplementedError("a deterministic model has no density")

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError("there is nothing to learn")
