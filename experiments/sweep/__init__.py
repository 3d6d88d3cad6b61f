"""Studies of many runs: `python -m experiments.sweep STUDY`."""

from experiments.sweep.space import Choice, Range, Search
from experiments.sweep.study import Resources, Study

__all__ = ["Choice", "Range", "Resources", "Search", "Study"]
