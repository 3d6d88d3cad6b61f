"""The world model: encoding, rollouts, rewards, terminations and scores, as planning needs them."""

from collections.abc import Sequence

import torch
from tianshou.data import Batch
from torch import Tensor, nn

from layeredrl import action_spaces
from layeredrl.checks import are_probabilities, require_count
from layeredrl.models import Model
from layeredrl.models.nets import ScalarMLP, TerminationMLP
from layeredrl.task import TaskSpec
from layeredrl.world_model.encoders import Encoder
from layeredrl.world_model.objective import Objective


class WorldModel(nn.Module):
    """Encoder, dynamics, reward and termination in one object, so that planners and skills take one argument.

    Args:
        encoder: Observation to state and context; a learned one needs a learned reward, from which alone it learns.
        dynamics: Predicts the next state.
        task: Gives the known reward and termination; an unknown reward is learned, an unknown termination comes from
            the dynamics, or is learned.
        objective: Score of a rollout; None for the sum of rewards while alive.
        reward_hidden: Widths of the hidden layers of a learned reward; None if a subclass has a reward of its own.
        termination_net: Learned termination, which depends on the state that is reached; None for that of the dynamics.
        repeat: Steps of the dynamics for which each action of a sequence is held.

    Attributes:
        reward_net: The learned reward; None if the reward is known.
        termination_net: The learned termination; None also if it is known.
    """

    def __init__(
        self,
        encoder: Encoder,
        dynamics: Model,
        task: TaskSpec,
        *,
        objective: Objective | None = None,
        reward_hidden: Sequence[int] | None = (64, 64),
        termination_net: TerminationMLP | None = None,
        repeat: int = 1,
    ) -> None:
        super().__init__()
        require_count("repeat", repeat)
        encoder.check(task)
        self.repeat = repeat
        self.encoder = encoder.to(dynamics.device)
        self.dynamics = dynamics
        self.task = task
        self.objective = (Objective(encoder.state_dim) if objective is None else objective).to(dynamics.device)
        self.objective.check(dynamics)
        self.reward_net: ScalarMLP | None = None
        if task.reward is None and reward_hidden is not None:
            width = 2 * encoder.state_dim + encoder.context_dim + action_spaces.n_features(task.action_space)
            self.reward_net = ScalarMLP(width, reward_hidden).to(dynamics.device)
        self.termination_net: TerminationMLP | None = None
        if task.termination is None and termination_net is not None:
            self.termination_net = termination_net.to(dynamics.device)

    def encode(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (..., O) to state (..., S) and context (..., C)."""
        state, context = self.encoder(obs)
        return state, context

    def rollout(
        self,
        obs: Tensor,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        statistics: bool = True,
        n_alike: int = 1,
        exploring: bool = False,
    ) -> Batch:
        """Roll out action sequences with the dynamics, and compute their rewards and returns.

        Args:
            obs: Shape (B, O).
            actions: As agents have them: floats in [-1, 1], or integers; shape (B, H, A).
            generator: Source of randomness; None for torch's global one.
            statistics: If True, means and variances of the states are returned too.
            n_alike: Rows of the batch, one after the other, that draw the same noise.
            exploring: As of `Objective.forward`.

        Returns:
            The keys of `Model.rollout`, with H the steps of the dynamics; `reward` and `alive` (B, M, P, H), reward
            of step t and the probability of being alive before it; and `returns` (B, M, P), the objective of each
            particle.
        """
        state, context = self.encode(obs)
        return self._rollout(
            state,
            context,
            actions,
            generator=generator,
            statistics=statistics,
            n_alike=n_alike,
            exploring=exploring,
        )

    def _rollout(
        self,
        state: Tensor,
        context: Tensor,
        actions: Tensor,
        *,
        generator: torch.Generator | None,
        statistics: bool,
        n_alike: int,
        exploring: bool,
    ) -> Batch:
        """`rollout` of encoded observations."""
        actions = actions if self.repeat == 1 else actions.repeat_interleave(self.repeat, 1)
        modelled = action_spaces.for_model(self.task.action_space, actions, state.dtype)
        result = self.dynamics.rollout(
            state, context, modelled, generator=generator, statistics=statistics, n_alike=n_alike
        )
        before, after = result.state[..., :-1, :], result.state[..., 1:, :]  # (B, M, P, H, S)
        shape = before.shape[:-1]
        contexts = context[:, None, None, None].expand(*shape, -1)
        taken = actions[:, None, None].expand(*shape, -1)
        if self.has_termination:
            result.term_prob = self.termination(before, contexts, taken, after)
        result.reward = self.reward(before, contexts, taken, after)
        survival = torch.cumprod(1 - result.term_prob, -1)
        result.alive = torch.cat([torch.ones_like(survival[..., :1]), survival[..., :-1]], -1)
        result.returns = self.objective(result, context, exploring=exploring)
        return result

    def reward(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Reward of a transition, known or learned: (..., S), (..., C), (..., A), (..., S) -> (...).

        Actions are agents' actions: floats in [-1, 1], or integers.
        """
        if self.reward_net is not None:
            action = action_spaces.features(self.task.action_space, action, state.dtype)
            predicted: Tensor = self.reward_net(state, context, action, next_state)
            return predicted
        return self._known("reward", state, context, action, next_state)

    @property
    def has_termination(self) -> bool:
        """True if `termination` replaces that of the dynamics."""
        return self.task.termination is not None or self.termination_net is not None

    def termination(self, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        """Probability that a transition ends the episode, known or learned; arguments as of `reward`, -> (...)."""
        if self.termination_net is not None:
            predicted: Tensor = self.termination_net(next_state, context)
            return predicted
        result = self._known("termination", state, context, action, next_state).to(state.dtype)
        # A GPU would have to wait for the values. NaN may follow from absurd states, which are dealt with elsewhere.
        if result.device.type == "cpu" and not are_probabilities(result):
            low, high = float(result.nan_to_num(0.0).min()), float(result.nan_to_num(0.0).max())
            raise ValueError(
                f"the task's termination function returned {low:g} to {high:g}, expected probabilities in [0, 1]"
            )
        return result.clamp(0, 1)

    def _known(self, name: str, state: Tensor, context: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
        function = self.task.reward if name == "reward" else self.task.termination
        assert function is not None, f"the task's {name} is not known"
        result = function(state, context, self.task.to_env_units(action), next_state)
        if result.shape != state.shape[:-1]:
            raise ValueError(
                f"the task's {name} function returned shape {tuple(result.shape)} for states of shape "
                f"{tuple(state.shape)}, expected {tuple(state.shape[:-1])}"
            )
        return result

    def score(
        self,
        obs: Tensor,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        common_noise: bool = False,
        exploring: bool = False,
    ) -> Tensor:
        """Score candidate action sequences by the objective, averaged over members and particles; higher is better.

        Candidates that leave the finite range in any particle score minus infinity.

        Args:
            obs: Shape (E, O).
            actions: As agents have them, shape (E, N, H, A): N candidates for each of E environments.
            generator: Source of randomness; None for torch's global one.
            common_noise: If True, all candidates of an environment are rolled out with the same noise, so that their
                scores differ by their actions alone.
            exploring: As of `Objective.forward`.

        Returns:
            Scores (E, N).
        """
        return self.score_from(
            *self.encode(obs), actions, generator=generator, common_noise=common_noise, exploring=exploring
        )

    def score_from(
        self,
        state: Tensor,
        context: Tensor,
        actions: Tensor,
        *,
        generator: torch.Generator | None = None,
        common_noise: bool = False,
        exploring: bool = False,
    ) -> Tensor:
        """`score` of encoded observations, states (E, S) and contexts (E, C); a subclass may compute it otherwise."""
        n_envs, n_candidates = actions.shape[:2]
        state, context = (x.repeat_interleave(n_candidates, 0) for x in (state, context))
        result = self._rollout(
            state,
            context,
            actions.flatten(0, 1),
            generator=generator,
            statistics=False,
            n_alike=max(1, n_candidates) if common_noise else 1,
            exploring=exploring,
        )
        returns = result.returns.mean((1, 2))
        failed = result.diverged.flatten(1).any(1) | ~returns.isfinite()
        scores: Tensor = returns.masked_fill(failed, -torch.inf).view(n_envs, n_candidates)
        return scores
