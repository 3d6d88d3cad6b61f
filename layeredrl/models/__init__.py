"""Dynamics models: the interface, probabilistic ensembles, and fitting."""

from layeredrl.models.ensemble import ProbabilisticEnsemble
from layeredrl.models.fitting import FitConfig, FitResult, fit
from layeredrl.models.model import Model

__all__ = ["FitConfig", "FitResult", "Model", "ProbabilisticEnsemble", "fit"]
