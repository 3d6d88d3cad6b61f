"""Open-loop rollouts: a pure function of state, context, actions and noise.

Inside, the layout is (M, R, ...): members first, then R = B * P rows, the P particles of a row side by side.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from tianshou.data import Batch
from torch import Tensor

from layeredrl.models.density import mixture_mean
from layeredrl.models.outputs import StepOutput

Propagation = Literal["tsinf", "ts1", "expectation", "mode"]
Follow = Literal["sample", "mean", "expectation", "mode"]
"""Next state of a particle: a sample, the mean of its member's mixture, the mean of all members, or the mean of its
member's likeliest mode."""


class StepModel(NamedTuple):
    """One step of the dynamics: `next = is_delta * state + std * output of the networks`."""

    predict: Callable[[Tensor, Tensor, Tensor], StepOutput]
    """Maps state (M, R, S), context (M, R, C) and action (M, R, A) to outputs in the networks' units."""
    std: Tensor
    """Units of the networks' outputs, (S,)."""
    is_delta: Tensor | None
    """1.0 for dimensions predicted as a change, 0.0 for others, (S,); None if all are."""
    size: Tensor | None = None
    """Size of the states in the data, (S,), beyond which particles are at some point too far out; None if unknown."""

    def next_state(self, state: Tensor, output: Tensor) -> Tensor:
        """Next states (..., S) of states (..., S), by outputs of the networks (..., S)."""
        return torch.addcmul(state if self.is_delta is None else state * self.is_delta, output, self.std)


class Noise(NamedTuple):
    """All randomness of a rollout of R rows over H steps, drawn in advance.

    All members share the noise of a row (the member axis has length one): equal members stay exactly equal, and the
    spread between members measures disagreement alone. In TS1 all particles have their own noise.
    """

    normal: Tensor | None
    """Standard normal noise, (H, 1 or M, R, S); None in a deterministic rollout, like the other two."""
    uniform: Tensor | None
    """Uniform noise in [0, 1) that chooses the mode, (H, 1 or M, R); None with a single mode."""
    order: Tensor | None
    """Permutation of the M * P particles of a row of the batch in TS1, (H, B, M * P); None otherwise."""


TOO_FAR = 1e6
"""Distance, in sizes of the states in the data, from which a particle has diverged: no task's states grow like that."""

NO_NOISE = Noise(None, None, None)
"""Noise of a deterministic rollout."""


def rows_to_compute(n_rows: int, n_particles: int, row_multiple: int, *, few_sizes: bool) -> int:
    """Number of rows B' >= B to compute; results of the added rows are dropped.

    Args:
        n_rows: Number of rows B.
        n_particles: Number of particles P.
        row_multiple: Power of two of which B' * P is a multiple.
        few_sizes: If True, round up to one of eight sizes between any two powers of two.
    """
    step = row_multiple // math.gcd(row_multiple, n_particles)
    if few_sizes:
        step = max(step, 1 << max(0, (n_rows - 1).bit_length() - 4))  # an eighth of the power of two below
    return n_rows + -n_rows % step


def per_particle(x: Tensor, n_rows: int, n_particles: int) -> Tensor:
    """Repeat rows (..., B, D) for each particle, (..., B' * P, D); added rows are copies of the first."""
    added = n_rows - x.shape[-2]
    if added:
        x = torch.cat([x, x[..., :1, :].expand(*x.shape[:-2], added, -1)], -2)
    return x if n_particles == 1 else x.repeat_interleave(n_particles, -2)


def draw_noise(
    sizes: tuple[int, int, int, int, int],
    n_modes: int,
    shuffle: bool,
    like: Tensor,
    generator: torch.Generator | None,
    *,
    n_alike: int = 1,
    n_added: int = 0,
) -> Noise:
    """Draw the noise of a sampled rollout.

    Args:
        sizes: Sizes (B, M, P, H, S).
        n_modes: Number of modes K.
        shuffle: If True, particles change members at every step (TS1).
        like: Tensor whose device and type the noise gets.
        generator: Source of randomness; None for torch's global one.
        n_alike: Number of consecutive rows of the batch that get the same noise; the last group may be smaller.
        n_added: Number of rows beyond B that get noise too; with `n_alike` > 1 they get that of the first row.
    """
    n_rows, m, p, h, s = sizes
    b = n_rows + n_added if n_alike == 1 else math.ceil(n_rows / n_alike)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)

    own = m if shuffle else 1
    normal = torch.randn((h, own, b * p, s), generator=generator, device=like.device, dtype=like.dtype)
    uniform = rand(h, own, b * p) if n_modes > 1 else None
    order = rand(h, b, m * p).argsort(-1) if shuffle else None
    if n_alike == 1:
        return Noise(normal, uniform, order)

    rows = torch.arange(n_rows + n_added, device=like.device)
    places = torch.where(rows < n_rows, rows // n_alike, 0)

    def dealt(x: Tensor, axis: int) -> Tensor:
        return x.index_select(axis, places)

    return Noise(
        dealt(normal.view(h, own, b, p, s), 2).flatten(2, 3),
        None if uniform is None else dealt(uniform.view(h, own, b, p), 2).flatten(2, 3),
        None if order is None else dealt(order, 1),
    )


def choose_mode(values: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
    """Sample one mode per row by inverse transform: values (..., K, S), weights (..., K), uniform (...) -> (..., S)."""
    return _take(values, (weights.cumsum(-1) < uniform.unsqueeze(-1)).sum(-1).clamp(max=weights.shape[-1] - 1))


def _take(values: Tensor, mode: Tensor) -> Tensor:
    """Select one mode per row: values (..., K, S), mode (...) -> (..., S)."""
    index = mode[..., None, None].expand(*mode.shape, 1, values.shape[-1])
    return values.gather(-2, index).squeeze(-2)


def _gaussian(out: StepOutput, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (M, R, S) of the mode that `uniform` (1 or M, R) chooses."""
    if out.weights is None or uniform is None:
        return out.mean, out.std
    uniform = uniform.expand(out.weights.shape[:-1])
    return choose_mode(out.mean, out.weights, uniform), choose_mode(out.std, out.weights, uniform)


def _center(out: StepOutput, follow: Follow) -> Tensor:
    """Next state of a deterministic rollout in the networks' units, (M or 1, R, S)."""
    if out.weights is None:
        mean = out.mean
    elif follow == "mode":
        mean = _take(out.mean, out.weights.argmax(-1))
    else:
        mean = mixture_mean(out.mean, out.weights)
    return mean.mean(0, keepdim=True) if follow == "expectation" else mean


def _permute(x: Tensor, order: Tensor) -> Tensor:
    """Permute particles over members: x (M, R, S), order (B, M * P)."""
    m, r, s = x.shape
    b, p = order.shape[0], order.shape[1] // m
    rows = x.view(m, b, p, s).transpose(0, 1).reshape(b, m * p, s)
    rows = rows.gather(1, order.unsqueeze(-1).expand(-1, -1, s))
    return rows.view(b, m, p, s).transpose(0, 1).reshape(m, r, s)


def simulate(
    model: StepModel,
    state: Tensor,
    context: Tensor,
    actions: Tensor,
    noise: Noise,
    *,
    follow: Follow = "sample",
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow a sequence of actions.

    Args:
        model: Model of one step.
        state: Initial state, shape (M, R, S).
        context: Shape (M, R, C).
        actions: Shape (H, R, A).
        noise: Noise from `draw_noise`; `NO_NOISE` for a deterministic rollout.
        follow: Next state of particles; "sample" if there is noise.

    Returns:
        States (H+1, M, R, S), termination probabilities (H, M, R), and flags (H, M, R) that are true from the step at
        which a particle left the finite range, or was too far out; its state and termination probability are held
        from there on.
    """
    n_steps, n_members = len(actions), len(state)
    states, term_probs = [state], []
    with torch.inference_mode(not torch.is_grad_enabled()):  # a tenth faster; results are ordinary tensors
        steps = actions.unsqueeze(1).expand(-1, n_members, -1, -1).unbind(0)
        none: list[Tensor | None] = [None] * n_steps
        draws = none if noise.normal is None else (noise.normal * model.std).unbind(0)
        uniforms = none if noise.uniform is None else noise.uniform
        orders = none if noise.order is None else noise.order
        for action, draw, uniform, order in zip(steps, draws, uniforms, orders, strict=True):
            current = state if order is None else _permute(state, order)
            out = model.predict(current, context, action)
            if draw is None:
                state = model.next_state(current, _center(out, follow))
            else:
                mean, std = _gaussian(out, uniform)
                state = torch.addcmul(model.next_state(current, mean), std, draw)
            term_prob = out.term_prob
            if order is not None:
                back = order.argsort(-1)
                state = _permute(state, back)
                term_prob = _permute(term_prob.unsqueeze(-1), back).squeeze(-1)
            states.append(state)
            term_probs.append(term_prob)
    return hold(torch.stack(states), torch.stack(term_probs), model.size)


def hold(states: Tensor, term_probs: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Hold each particle at its last finite state that is not absurdly far out.

    Too far is a million times the size of the states in the data, of the particle's first state, or one, whichever is
    largest: dimensions that have hardly moved so far may have any unit.

    This runs after the whole rollout, because a few operations then replace a few for every step.
    """
    values = states.detach()
    bound = None if size is None else TOO_FAR * size.clamp(min=1)
    # The usual case in a few operations. A sum of finite numbers is finite unless it overflows. Not on a GPU, which
    # would have to wait for the result.
    if states.device.type == "cpu" and math.isfinite(values.sum()):
        flat = values.flatten(0, -2)
        if bound is None or not len(flat) or bool((flat.abs().amax(0) < bound).all()):
            return states, term_probs, torch.zeros(term_probs.shape, dtype=torch.bool)
    far = values.new_tensor(torch.inf) if bound is None else torch.maximum(bound, TOO_FAR * values[0].abs())
    kept = (values[1:].abs() < far).all(-1).int().cummin(0).values
    diverged = kept == 0
    last = torch.cat([torch.zeros_like(kept[:1]), kept.cumsum(0)]).long()
    states = states.gather(0, last.unsqueeze(-1).expand_as(states))
    return states, term_probs.gather(0, last[:-1]), diverged


def to_public(states: Tensor, term_probs: Tensor, diverged: Tensor, rows: tuple[int, int]) -> Batch:
    """Convert a rollout to its public form, batch first.

    Args:
        states: Shape (H+1, M, B * P, S).
        term_probs: Shape (H, M, B * P).
        diverged: Shape (H, M, B * P).
        rows: Numbers of rows B and of particles P of each.
    """
    n_steps, m, _, s = states.shape
    return Batch(
        state=states.view(n_steps, m, *rows, s).permute(2, 1, 3, 0, 4),
        term_prob=term_probs.view(n_steps - 1, m, *rows).permute(2, 1, 3, 0),
        diverged=diverged.view(n_steps - 1, m, *rows).permute(2, 1, 3, 0),
    )


def add_moments(result: Batch, members_apart: bool) -> None:
    """Add the moments over particles and members to a rollout in its public form.

    Args:
        result: Batch with `state` (B, M, P, H+1, S).
        members_apart: True if particles stay with their member; only then are variances within and between members
            aleatoric and epistemic uncertainty.
    """
    result.state_mean, result.state_var = moments(result.state, 2)
    if members_apart:
        result.state_epistemic_var = moments(result.state_mean, 1)[1]
        variances = result.state_var.unbind(1)
        result.state_aleatoric_var = _sum(variances) / len(variances)


def moments(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of x over a short dimension, slice by slice: much faster than torch.var_mean.

    Both are computed from differences to the first slice, so that the variance of equal slices is exactly zero, and
    that of nearly equal slices is not lost in rounding.
    """
    first, *others = x.unbind(dim)
    if not others:
        return first, torch.zeros_like(first)
    deviations = [other - first for other in others]
    squares = deviations[0].square()
    for deviation in deviations[1:]:
        squares.addcmul_(deviation, deviation)
    n = len(deviations) + 1
    shift = _sum(deviations) / n
    return first + shift, squares.div_(n).addcmul_(shift, shift, value=-1).clamp_(min=0)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    """Sum of tensors of one shape."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
