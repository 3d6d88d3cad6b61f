"""What a search draws from."""

import math
import random
from dataclasses import dataclass
from typing import Literal

Value = bool | int | float | str | None
"""Of a setting."""

STRICT = {"extra": "forbid"}
"""For pydantic: a mistyped field is an error."""


@dataclass(frozen=True)
class Range:
    """A number between two bounds."""

    low: float
    """At least this."""
    high: float
    """At most this."""
    log: bool = False
    """Draw the logarithm evenly, not the number."""
    integer: bool = False
    """Whole numbers only."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a range goes from {self.low} to {self.high}, expected low < high")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins at {self.low}, expected a positive number")
        if self.integer and (self.low % 1 or self.high % 1):
            raise ValueError(f"a range of whole numbers goes from {self.low} to {self.high}")

    def draw(self, rng: random.Random) -> float:
        """One of them, short enough for a command line."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.integer and not self.log:
            return rng.randint(int(low), int(high))
        drawn = rng.uniform(low, high)
        return self.shorten(math.exp(drawn) if self.log else drawn)

    def shorten(self, value: float) -> float:
        """A number of the range as it is told on a command line."""
        rounded = round(value) if self.integer else float(f"{value:.4g}")
        return min(max(rounded, self._plain(self.low)), self._plain(self.high))

    def _plain(self, bound: float) -> float:
        return int(bound) if self.integer else bound


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    values: tuple[Value, ...]
    """All equally likely."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a choice has no values")

    def draw(self, rng: random.Random) -> Value:
        """One of them."""
        return rng.choice(self.values)


@dataclass(frozen=True)
class Search:
    """Settings drawn at random, or by Optuna from what earlier draws have brought; each is tried with all seeds."""

    n_trials: int
    """How many draws; where it learns, for each agent and environment. With more of them, the same ones come first."""
    settings: dict[str, Range | Choice]
    """What to draw from, by the name of the setting."""
    seed: int = 0
    """Of the draws."""
    method: Literal["random", "optuna"] = "random"
    """At random, the same draws for all agents and environments; or by Optuna, for each of these on its own."""
    metric: Literal["return", "evaluation"] = "return"
    """Column of trials.csv that Optuna is to make large, its mean over the seeds."""

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if self.n_trials < 1 or not self.settings:
            raise ValueError("a search needs n_trials of at least 1, and settings to draw")
        if self.method == "random" and self.metric != "return":
            raise ValueError(f"a search at random looks at no metric, but metric is {self.metric}")

    def draw(self, i: int) -> dict[str, Value]:
        """The settings of a draw; each depends on its own name alone, not on what else is drawn."""
        return {name: kind.draw(random.Random(f"{self.seed}/{i}/{name}")) for name, kind in self.settings.items()}


@dataclass(frozen=True)
class Draw:
    """Settings that a search has chosen from what it had learned, for one agent in one environment."""

    agent: str
    """As the study calls it."""
    environment: str
    """In which it trains."""
    number: int
    """How many draws there were before, for the same two."""
    settings: dict[str, Value]
    """What was chosen."""
