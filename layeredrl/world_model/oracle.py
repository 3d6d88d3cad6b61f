"""A model of known dynamics, to separate failures of the planner from errors of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import Batch
from torch import Tensor

from layeredrl import checks
from layeredrl.models.density import mixture_log_prob
from layeredrl.models.model import Model
from layeredrl.models.rollout import add_moments, hold, to_public
from layeredrl.models.spaces import ModelSpaces
from layeredrl.task import DynamicsFunction, TaskSpec, TransitionFunction
from layeredrl.world_model.encoders import Encoder

Simulation = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(state (B, S), context (B, C), actions (B, H, A)) -> states (B, H+1, S), the given one first."""


class Oracle(Model):
    """Deterministic known dynamics: the environment's simulator, or its equations.

    Members and particles, if there are more than one, are copies: nothing is uncertain, all variances are zero.
    Numbers are of any floating type, that of the states; gradients flow if they flow through the simulation.

    Attributes:
        simulate: The simulation, in the units of the model's actions.
        std: Standard deviation of the density, (S,); see `__init__`.
    """

    std: Tensor

    def __init__(
        self,
        state_space: Box,
        context_space: Box,
        action_space: Box | Discrete,
        simulate: Simulation,
        n_models: int = 1,
        n_particles_per_model: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008  as in Model
        *,
        termination: TransitionFunction | None = None,
        std: float = 1e-3,
    ) -> None:
        """Set the simulation.

        Args:
            state_space: Box of shape (S,).
            context_space: Box of shape (C,); C may be zero.
            action_space: Box of shape (A,), or Discrete, whose actions are tensors (..., 1) of integers.
            simulate: State (B, S), context (B, C) and actions (B, H, A) to states (B, H+1, S), the given one first,
                of the same type and on the same device.
            n_models: Number of equal members M.
            n_particles_per_model: Number of equal particles P.
            device: Where inputs are expected.
            termination: Known termination of a transition, a bool or a probability; never, if None.
            std: A deterministic model has no density; `predict`, `sample` and `get_log_prob` take a Gaussian of this
                deviation around the next state instead. Rollouts follow the simulation exactly.
        """
        super().__init__(n_models, n_particles_per_model, device)
        self.spaces = ModelSpaces(state_space, context_space, action_space)
        if not callable(simulate):
            raise TypeError(f"simulate is {type(simulate).__name__}, expected a function")
        checks.require_number("std", std, 0, math.inf, open_low=True)
        self.simulate = simulate
        self.termination = termination
        self.register_buffer("std", torch.full((self.spaces.state_dim,), float(std)), persistent=False)
        self.to(self.device)

    @classmethod
    def from_step(
        cls,
        state_space: Box,
        context_space: Box,
        action_space: Box | Discrete,
        next_state: DynamicsFunction,
        **kwargs: Any,
    ) -> Oracle:
        """Make an oracle of a function of one step.

        Args:
            state_space: Box of shape (S,).
            context_space: Box of shape (C,).
            action_space: Box of shape (A,), or Discrete.
            next_state: State (B, S), context (B, C) and action (B, A) to the next state (B, S).
            **kwargs: As for `Oracle`.
        """
        return cls(state_space, context_space, action_space, partial(_step_by_step, next_state), **kwargs)

    @classmethod
    def from_task(cls, task: TaskSpec, encoder: Encoder, simulate: Simulation | None = None, **kwargs: Any) -> Oracle:
        """Make an oracle of a task whose dynamics is known; its actions are agents' actions, in [-1, 1].

        Args:
            task: Gives the dynamics and, where it is known, the termination.
            encoder: Gives the spaces of state and context.
            simulate: Takes the place of the task's dynamics, for a simulator that is faster or more exact on whole
                sequences; actions are in the environment's own units.
            **kwargs: As for `Oracle`.
        """
        if simulate is None:
            if task.dynamics is None:
                raise ValueError("the task's dynamics is None: its environment has no dynamics_function; pass simulate")
            simulate = partial(_step_by_step, task.dynamics)
        if task.termination is not None:
            kwargs.setdefault("termination", partial(_terminate_in_env_units, task, task.termination))
        in_env_units = partial(_simulate_in_env_units, task, simulate)
        action_space = cast(Box | Discrete, task.action_space)  # ModelSpaces refuses others
        return cls(encoder.state_space, encoder.context_space, action_space, in_env_units, **kwargs)

    # ------------------------------------------------------------------ one step

    def predict(self, state: Tensor, context: Tensor, action: Tensor, std: Tensor | None = None) -> tuple[Tensor, ...]:
        rows, lead = self.spaces.rows(_dtype(state), state=state, context=context, action=action)
        after, term_prob = self._step(rows)
        shape = (*lead, self.n_models, 1, after.shape[-1])
        mean = after[:, None, None].expand(-1, self.n_models, -1, -1).reshape(shape).clone()
        return mean, mean.new_ones(shape[:-1]), self._as_std(std, mean), term_prob.reshape(lead)

    def sample(
        self, state: Tensor, context: Tensor, action: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        rows, lead = self.spaces.rows(_dtype(state), state=state, context=context, action=action)
        after, _ = self._step(rows)
        normal = torch.randn(after.shape, generator=generator, device=after.device, dtype=after.dtype)
        return (after + self.std.to(after.dtype) * normal).reshape(*lead, -1)

    def get_log_prob(
        self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Log density of an observed next state, under a Gaussian of deviation `std` around the true one.

        Args:
            state: Shape (..., S).
            context: Shape (..., C).
            action: Shape (..., A).
            next_state: Shape (..., S).

        Returns:
            Log density (...), termination probability (...), and a dict with `means` (..., M, S), the next states.
        """
        dtype = _dtype(state)
        rows, lead = self.spaces.rows(dtype, state=state, context=context, action=action, next_state=next_state)
        after, term_prob = self._step(rows[:3])
        log_prob = mixture_log_prob(rows[3], after.unsqueeze(-2), self.std.to(dtype), after.new_ones(len(after), 1))
        means = after[:, None].repeat(1, self.n_models, 1).reshape(*lead, self.n_models, after.shape[-1])
        return log_prob.reshape(lead), term_prob.reshape(lead), {"means": means}

    # ------------------------------------------------------------------ many steps

    def rollout(
        self,
        initial_state: Tensor,
        context: Tensor,
        actions: Tensor,
        deterministic: bool = False,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
        n_alike: int = 1,
    ) -> Batch:
        """Follow a sequence of actions, open loop; what comes after a termination goes on as the simulation does.

        Args:
            initial_state: Shape (B, S).
            context: Shape (B, C), held for the whole rollout.
            actions: Shape (B, H, A), or (B, H, 1) of integers.
            deterministic: Makes no difference.
            generator: Not used.
            statistics: If True, means and variances are returned too.
            n_alike: Makes no difference.

        Returns:
            The keys and shapes of `ProbabilisticEnsemble.rollout`, all variances zero. `diverged` is true from the
            step at which the simulation left the finite range; the state is held from there on.
        """
        dtype = _dtype(initial_state, "initial_state")
        self.spaces.check_plan(initial_state, context, actions, dtype)
        b, h = len(initial_state), actions.shape[1]
        states = self._simulated(initial_state, context, actions).transpose(0, 1).unsqueeze(1)  # (H+1, 1, B, S)
        states, term_prob, diverged = hold(states, states.new_zeros(h, 1, b))
        if self.termination is not None:
            contexts = context.expand(h, 1, *context.shape)
            term_prob = self._terminated(states[:-1], contexts, actions.transpose(0, 1).unsqueeze(1), states[1:])
        m, p = self.n_models, self.n_particles_per_model
        if m * p > 1:
            states, term_prob, diverged = (
                x.repeat_interleave(p, 2).repeat(1, m, *[1] * (x.ndim - 2)) for x in (states, term_prob, diverged)
            )
        result = to_public(states, term_prob, diverged, (b, p))
        if statistics:
            add_moments(result, members_apart=True)
        return result

    # ------------------------------------------------------------------ nothing to learn

    def get_parameters(self) -> Iterable[Tensor]:
        return ()

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError("an Oracle is known: there is nothing to learn")

    # ------------------------------------------------------------------ inside: rows (R, ...)

    def _simulated(self, state: Tensor, context: Tensor, actions: Tensor) -> Tensor:
        """States (B, H+1, S), checked."""
        states = self.simulate(state, context, actions)
        _require_like("simulate", states, (len(state), actions.shape[1] + 1, state.shape[-1]), state)
        return states

    def _step(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Next states (R, S) and termination probabilities (R)."""
        state, context, action = rows
        after = self._simulated(state, context, action.unsqueeze(1))[:, 1]
        if self.termination is None:
            return after, after.new_zeros(len(after))
        return after, self._terminated(state, context, action, after)

    def _terminated(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Termination probability (...), of the states' type."""
        assert self.termination is not None
        result = self.termination(state, context, action, next_state)
        _require_like("termination", result, state.shape[:-1])
        return result.to(state.dtype)

    def _as_std(self, std: Tensor | None, mean: Tensor) -> Tensor:
        std = self.std.to(mean.dtype) if std is None else std
        try:
            return std.expand_as(mean).clone()
        except RuntimeError:
            shapes = tuple(std.shape), tuple(mean.shape)
            raise ValueError(f"std has shape {shapes[0]}, expected it to broadcast to {shapes[1]}") from None


def _step_by_step(next_state: DynamicsFunction, state: Tensor, context: Tensor, actions: Tensor) -> Tensor:
    """A `Simulation` by a function of one step."""
    states = [state]
    for action in actions.unbind(1):
        after = next_state(states[-1], context, action)
        _require_like("the function of one step", after, state.shape, state)
        states.append(after)
    return torch.stack(states, 1)


def _simulate_in_env_units(
    task: TaskSpec, simulate: Simulation, state: Tensor, context: Tensor, actions: Tensor
) -> Tensor:
    """A `Simulation` for agents' actions, by one for the environment's."""
    return simulate(state, context, task.to_env_units(actions))


def _terminate_in_env_units(
    task: TaskSpec, termination: TransitionFunction, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor
) -> Tensor:
    """A `TransitionFunction` for agents' actions, by one for the environment's."""
    return termination(state, context, task.to_env_units(action), next_state)


def _require_like(name: str, result: object, shape: tuple[int, ...], like: Tensor | None = None) -> None:
    """Raise unless what a function of the user returned is a tensor of this shape, of the type of `like`."""
    if not isinstance(result, Tensor):
        raise TypeError(f"{name} returned {type(result).__name__}, expected a torch.Tensor")
    if result.shape != shape:
        raise ValueError(f"{name} returned shape {tuple(result.shape)}, expected {tuple(shape)}")
    if like is not None and (result.dtype, result.device) != (like.dtype, like.device):
        raise TypeError(
            f"{name} returned {result.dtype} on {result.device}, expected the state's {like.dtype} on {like.device}"
        )


def _dtype(state: object, name: str = "state") -> torch.dtype:
    """The type of the states, which all other numbers should have."""
    if not isinstance(state, Tensor):
        raise TypeError(f"{name} is {type(state).__name__}, expected a torch.Tensor")
    if not state.is_floating_point():
        raise TypeError(f"{name} has dtype {state.dtype}, expected a floating type")
    return state.dtype
