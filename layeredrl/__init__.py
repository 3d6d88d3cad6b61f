"""LayeredRL: online model-based reinforcement learning with agents that are stacks of levels.

The top level plans with a learned world model; the levels below carry out what it asks for, be it a primitive
action or a skill that runs for many steps. Import what you need from the subpackages: `layeredrl.models` for
dynamics models, `layeredrl.planners` for optimisers of action sequences, `layeredrl.levels` and
`layeredrl.hierarchy` for putting an agent together. This module itself imports nothing heavy.
"""

__version__ = "0.1.0"
