"""Off-policy learning: SAC and TD3, and training of any algorithm of tianshou with an actor and critics."""

from layeredrl.off_policy.algorithm import (
    NonFiniteGradientError,
    OffPolicyAlgorithm,
    action_value,
    check_algorithm,
    drawn_action,
    guard_gradients,
    load_state_dict,
    log_prob,
    non_finite_gradient,
    optimizers,
    state_dict,
    targets,
    update,
)
from layeredrl.off_policy.config import ActorCriticConfig, SACConfig, TD3Config

__all__ = [
    "ActorCriticConfig",
    "NonFiniteGradientError",
    "OffPolicyAlgorithm",
    "SACConfig",
    "TD3Config",
    "action_value",
    "check_algorithm",
    "drawn_action",
    "guard_gradients",
    "load_state_dict",
    "log_prob",
    "non_finite_gradient",
    "optimizers",
    "state_dict",
    "targets",
    "update",
]
