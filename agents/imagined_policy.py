"""Settings that suit a policy which learns in the model, alone or beside a planner."""

from agents.recipe import Choice
from layeredrl.environments import TaskFacts


def policy_choices(facts: TaskFacts, *, sac: str, fitting: str) -> list[Choice]:
    """Settings of SAC and of the termination's predictor that suit a task.

    Args:
        facts: What is known about the task.
        sac: Name of the recipe's `SACConfig`.
        fitting: Name of its `ModelLearningConfig`.
    """
    small, size = facts.state_dim <= 6, f"{facts.state_dim} observation dimensions"
    choices = [
        Choice(f"{sac}.hidden", (64, 64) if small else (128, 128), size),
        Choice(f"{sac}.learning_rate", 1e-3 if small else 5e-4, size),
        Choice(f"{sac}.initial_alpha", 0.1, "few steps"),
    ]
    if facts.ends_after is None or small:
        entropy = -facts.action_dim / 2
        return [*choices, Choice(f"{sac}.target_entropy", entropy, "minus half the number of actions")]
    # A policy that becomes deterministic early, or whose model misses falls, gets stuck in a single leap that ends in
    # a fall.
    choices.append(Choice(f"{sac}.target_entropy", 0.0, "episodes end early: explore more"))
    if not facts.termination_known and facts.mean_reward >= 0:  # else ends attract, the more so the more are predicted
        choices.append(Choice(f"{fitting}.termination", "next_state", "more falls are predicted"))
    return choices
