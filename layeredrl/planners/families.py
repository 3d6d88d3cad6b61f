"""Choice of the family of distributions for an action space, and the checks of the settings that planners share."""

import math
from typing import Any

from gymnasium import spaces

from layeredrl.checks import require_counts, require_number
from layeredrl.planners.categorical import Categorical
from layeredrl.planners.gaussian import ClippedGaussian, TruncatedGaussian
from layeredrl.planners.search import Search


def make_search(
    space: spaces.Space[object],
    horizon: int,
    *,
    init_std: float,
    uniform_share: float,
    noise_exponent: float = 0.0,
    truncate: bool = False,
) -> Search:
    """Make a Gaussian search for a Box, a categorical one for Discrete and MultiDiscrete.

    Args:
        space: Action space.
        horizon: Length H of the sequences.
        init_std: Initial standard deviation of a Gaussian, in units of half the action range.
        uniform_share: Weight of the uniform distribution in the initial probabilities of a categorical.
        noise_exponent: Exponent of the noise's power spectrum over time; 0 is white.
        truncate: If True, truncate Gaussian samples instead of clipping them; the noise is then white.
    """
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return Categorical(space, horizon, uniform_share, noise_exponent)
    if not isinstance(space, spaces.Box):
        raise ValueError(f"cannot plan in the action space {space}, expected a Box, Discrete or MultiDiscrete")
    if truncate:
        return TruncatedGaussian(space, horizon, init_std)
    return ClippedGaussian(space, horizon, init_std, noise_exponent)


def require_search_settings(settings: Any) -> None:
    """Raise unless the settings that all refitting planners share are within range."""
    require_counts(settings, horizon=1, n_samples=1, n_iterations=1)
    if settings.n_elites is not None:
        require_counts(settings, n_elites=1)
        if settings.n_elites > settings.n_samples:
            raise ValueError(f"n_elites is {settings.n_elites}, expected at most n_samples, {settings.n_samples}")
    require_number("momentum", settings.momentum, 0, 1)
    require_number("init_std", settings.init_std, 0, math.inf, open_low=True)
    require_number("uniform_share", settings.uniform_share, 0, 1)
