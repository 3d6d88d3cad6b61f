"""Recipes: one file per agent, a config dataclass with a `build` that wires parts of the library together."""
