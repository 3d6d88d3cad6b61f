"""Optional parts of the network contract, and checks that networks meet it."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from layeredrl.models.normalization import Moments
from layeredrl.models.outputs import NetOutput, StepOutput


class Regularized(Protocol):
    """Network with a term for the loss."""

    def regularization(self) -> Tensor: ...


class FitsInputs(Protocol):
    """Network that gets the data before fitting."""

    def fit_inputs(self, state: Tensor, context: Tensor, action: Tensor) -> None: ...


class MergesInputs(Protocol):
    """Network that gets the moments of its inputs before fitting, merged from those of parts of the data."""

    def input_moments(self, state: Tensor, context: Tensor, action: Tensor) -> Moments: ...

    def set_input_moments(self, moments: Moments) -> None: ...


class Prepared(Protocol):
    """Network with a forward for the steps of a rollout."""

    def prepared(self) -> Callable[[Tensor, Tensor, Tensor], StepOutput]: ...


def require_alike(members: Sequence[nn.Module]) -> None:
    """Raise unless all members have the same parameters and buffers, by name and shape."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in member.state_dict().items()} for member in members]
    for other in shapes[1:]:
        for name in {**shapes[0], **other}:
            if shapes[0].get(name) != other.get(name):
                raise ValueError(
                    f"the networks made by partial_net differ: {name} has shape {shapes[0].get(name)} in one and "
                    f"{other.get(name)} in another"
                )
    for modules in zip(*(member.modules() for member in members), strict=True):
        settings = [_settings(module) for module in modules]
        for other in settings[1:]:
            if other != settings[0]:
                raise ValueError(
                    "the networks made by partial_net must differ in nothing but their parameters and buffers, "
                    f"but one {type(modules[0]).__name__} has {settings[0]} and another {other}"
                )


def overrides_alone(cls: type, name: str, companion: str) -> bool:
    """Return True if a class overrides an inherited method, such as `forward`, but not its companion, `prepared`.

    A trial need not show the difference, for instance if the override clips states that are far out.
    """
    owner = next((c for c in cls.__mro__ if {name, companion} & vars(c).keys()), None)
    return owner is not None and companion not in vars(owner)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Attributes of a module besides tensors and submodules, if of a type that is easy to compare."""
    return {name: x for name, x in vars(module).items() if isinstance(x, bool | int | float | str | tuple)}


def unpack(out: Any, n_dims: int, n_modes: int) -> NetOutput:
    """Convert the output of a network to a `NetOutput`, for inputs with `n_dims` dimensions."""
    try:
        (mean, std), *rest = out
    except (TypeError, ValueError):
        rest = []
    if len(rest) not in (1, 2):
        raise TypeError(
            "the network made by partial_net returned something else than ((mean, std), weights, term_prob)"
        )
    if len(rest) == 2:
        return NetOutput(mean, std, rest[0], rest[1])
    if n_modes > 1:
        raise ValueError(f"the network made by partial_net returned no mode weights, but n_modes is {n_modes}")
    if mean.ndim == n_dims:
        mean, std = mean.unsqueeze(-2), std.unsqueeze(-2)
    return NetOutput(mean, std, mean.new_ones(()).expand(mean.shape[:-1]), rest[0])


def require_shapes(out: NetOutput, n_rows: int, state_dim: int, n_modes: int) -> None:
    """Raise unless the output of a network has the shapes of the contract."""
    modes = (n_rows, n_modes)
    for name, shape in zip(out._fields, [(*modes, state_dim), (*modes, state_dim), modes, (n_rows,)], strict=True):
        actual = tuple(getattr(out, name).shape)
        if actual != shape:
            raise ValueError(
                f"the network made by partial_net returned {name} of shape {actual} for {n_rows} rows, expected {shape}"
            )


class Regularization(nn.Module):
    """Wrapper whose forward is a network's `regularization`, for `functional_call`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self) -> Tensor:
        return cast(Regularized, self.net).regularization()
