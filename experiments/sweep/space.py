"""Search spaces of a study."""

import math
import random
from dataclasses import dataclass
from typing import Literal

Value = bool | int | float | str | None
"""Value of a setting."""

STRICT = {"extra": "forbid"}
"""Configuration of pydantic: an unknown field is an error."""


@dataclass(frozen=True)
class Range:
    """A number between two bounds."""

    low: float
    """Lower bound, included."""
    high: float
    """Upper bound, included."""
    log: bool = False
    """If True, draw uniformly on the logarithmic scale."""
    integer: bool = False
    """If True, draw integers only."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from {self.low} to {self.high}, expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins at {self.low}, expected a positive number")
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError(f"a range of integers goes from {self.low} to {self.high}")

    def draw(self, rng: random.Random) -> float:
        """Draw a number, rounded as by `shorten`."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return rng.randint(int(low), int(high))
        drawn = rng.uniform(low, high)
        return self.shorten(math.exp(drawn) if self.log else drawn)

    def shorten(self, value: float) -> float:
        """Round to four digits, or to an integer, within the bounds."""
        kind = int if self.integer else float
        rounded = round(value) if self.integer else float(f"{value:.4g}")
        return min(max(rounded, kind(self.low)), kind(self.high))


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]
    """Candidates, all equally likely."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a choice has no values")

    def draw(self, rng: random.Random) -> Value:
        """Draw a value."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Search:
    """Draws from a search space; each is trained with all seeds of the study."""

    n_trials: int
    """Number of draws; with Optuna, for each agent and environment. A longer search begins with the draws of a shorter
    one."""
    settings: dict[str, Range | Choice]
    """Search space by name of the setting."""
    seed: int = 0
    """Seed of the draws."""
    method: Literal["random", "optuna"] = "random"
    """`random`: the same draws for all agents and environments; `optuna`: chosen for each of these separately, from the
    scores of earlier draws."""
    metric: Literal["return", "evaluation"] = "return"
    """Column of trials.csv whose mean over the seeds Optuna maximises."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if self.n_trials < 1 or not self.settings:
            raise ValueError("a search needs n_trials of at least 1, and settings to draw")
        if self.method == "random" and self.metric != "return":
            raise ValueError(f"a random search uses no metric, but metric is {self.metric}")

    def draw(self, i: int) -> dict[str, Value]:
        """Draw at random; each setting depends on its own name and on `i` only."""
        return {name: kind.draw(random.Random(f"{self.seed}/{i}/{name}")) for name, kind in self.settings.items()}


@dataclass(frozen=True)
class Draw:
    """Settings that Optuna has chosen for an agent in an environment."""

    agent: str
    """Name of the agent in the study."""
    environment: str
    """Environment id."""
    number: int
    """Number of earlier draws for the same agent and environment."""
    settings: dict[str, Value]
    """Chosen values by name of the setting."""
