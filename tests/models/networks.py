"""Small user networks for the tests: constants, known functions, and ones that are hard to batch."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class Members:
    """A `partial_net` that hands out copies of the given networks in order and keeps the originals."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self.nets = list(nets)
        self.calls = 0

    def __call__(self, state_space, context_space, action_space, n_modes) -> nn.Module:
        self.calls += 1
        return copy.deepcopy(self.nets[(self.calls - 1) % len(self.nets)])


class Recorder:
    """A `partial_net` that keeps a copy of every network of its factory, from before it is used."""

    def __init__(self, factory: Callable[..., nn.Module]) -> None:
        self.factory = factory
        self.nets: list[nn.Module] = []

    def __call__(self, state_space, context_space, action_space, n_modes) -> nn.Module:
        net = self.factory(state_space, context_space, action_space, n_modes)
        self.nets.append(copy.deepcopy(net))
        return net


def random_values(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class ConstantNet(nn.Module):
    """The same mixture and termination probability whatever the input."""

    def __init__(self, mean: Tensor, std: Tensor, weights: Tensor | None = None, term_prob: float = 0.0):
        """`mean` and `std` (K, S), `weights` (K,)."""
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.std = nn.Parameter(std.expand(mean.shape).clone())
        weights = torch.full((len(mean),), 1 / len(mean)) if weights is None else weights
        self.weights = nn.Parameter(weights.clone())
        self.term_prob = nn.Parameter(torch.tensor(float(term_prob)))

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        leading = state.shape[:-1]
        distribution = (self.mean.expand(*leading, -1, -1), self.std.expand(*leading, -1, -1))
        return distribution, self.weights.expand(*leading, -1), self.term_prob.expand(leading)


class LinearNet(nn.Module):
    """Means linear in (state, context, action); stds, weights and termination smooth functions of them."""

    def __init__(self, state_dim: int, context_dim: int, action_dim: int, n_modes: int, seed: int = 0):
        super().__init__()
        width = state_dim + context_dim + action_dim
        self.shape = (n_modes, state_dim)
        self.mean = nn.Parameter(0.3 * random_values(seed, n_modes * state_dim, width))
        self.spread = nn.Parameter(0.3 * random_values(seed + 1, n_modes * state_dim, width))
        self.gate = nn.Parameter(random_values(seed + 2, n_modes, width))
        self.end = nn.Parameter(random_values(seed + 3, width))

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        x = torch.cat([state, context, action], dim=-1)
        mean = (x @ self.mean.T).unflatten(-1, self.shape)
        std = 0.2 + torch.sigmoid(x @ self.spread.T).unflatten(-1, self.shape)
        return (mean, std), torch.softmax(x @ self.gate.T, -1), torch.sigmoid((x * self.end).sum(-1))


class RegularizedNet(LinearNet):
    """A linear network with a penalty."""

    def regularization(self) -> Tensor:
        return 0.7 * self.mean.square().sum()


class DriftNet(nn.Module):
    """One mode: the state moves by the first actions plus a constant, with a given noise."""

    def __init__(self, drift: float = 0.0, std: float = 0.1, term_prob: float = 0.25):
        super().__init__()
        self.drift = nn.Parameter(torch.tensor(drift))
        self.log_std = nn.Parameter(torch.tensor(std).log())
        self.term_prob = term_prob

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        push = action.sum(-1, keepdim=True)
        mean = torch.zeros_like(state) + self.drift + push
        std = torch.zeros_like(state) + self.log_std.exp()
        weights = torch.ones_like(state[..., :1])
        term_prob = torch.zeros_like(state[..., 0]) + self.term_prob
        return (mean.unsqueeze(-2), std.unsqueeze(-2)), weights, term_prob


class ExplodingNet(DriftNet):
    """Moves by one a step and predicts `bad` for every dimension once the first is beyond `limit`."""

    def __init__(self, limit: float = 2.5, bad: float = float("inf")):
        super().__init__(drift=1.0, std=1e-6)
        self.register_buffer("limit", torch.tensor(limit))
        self.bad = bad

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        (mean, std), weights, term_prob = super().forward(state, context, action)
        beyond = (state[..., :1] > self.limit).unsqueeze(-2)
        return (torch.where(beyond, self.bad, mean), std), weights, term_prob


class OutputNet(nn.Module):
    """Splits the outputs of `body` into the parts of a mixture and a termination probability."""

    def __init__(self, state_dim: int, context_dim: int, action_dim: int, n_modes: int):
        super().__init__()
        self.shape = (n_modes, state_dim)
        self.n_inputs, self.n_outputs = state_dim + context_dim + action_dim, 2 * n_modes * state_dim + n_modes + 1

    def body(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        x = torch.cat([state, context, action], dim=-1)
        out = self.body(x)
        n_modes, state_dim = self.shape
        sizes = [n_modes * state_dim, n_modes * state_dim, n_modes, 1]
        mean, spread, gate, end = out.split(sizes, dim=-1)
        std = 0.1 + nn.functional.softplus(spread).unflatten(-1, self.shape)
        return (mean.unflatten(-1, self.shape), std), gate.softmax(-1), end.squeeze(-1).sigmoid()


class SequentialNet(OutputNet):
    """An MLP out of `nn.Sequential`, with a layer of the given kind inside."""

    def __init__(self, *dims: int, kind: str, width: int = 8):
        super().__init__(*dims)
        layer = {
            "layer_norm": nn.LayerNorm(width),
            "dropout": nn.Dropout(0.5),
            "batch_norm": nn.BatchNorm1d(width),
            "none": nn.Identity(),
        }[kind]
        first, last = nn.Linear(self.n_inputs, width), nn.Linear(width, self.n_outputs)
        self.layers = nn.Sequential(first, layer, nn.Tanh(), last)

    def body(self, x: Tensor) -> Tensor:
        if isinstance(self.layers[1], nn.BatchNorm1d):  # wants rows in one dimension
            return self.layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        return self.layers(x)


class HalvingLinear(nn.Linear):
    """A user's linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x) + 0.1


class OddNet(OutputNet):
    """An MLP with something that a clever treatment of linear layers or parameters could get wrong."""

    def __init__(self, *dims: int, kind: str, width: int = 8):
        super().__init__(*dims)
        self.kind = kind
        first_layer = HalvingLinear if kind == "custom_linear" else nn.Linear
        self.first, self.hidden = first_layer(self.n_inputs, width), nn.Linear(width, width)
        self.last = nn.Linear(width, self.n_outputs)
        self.gain = nn.Parameter(torch.ones(width))  # the same in every member, until it is trained
        self.temperature = nn.Parameter(torch.tensor(1.0))
        if kind == "weight_norm":
            self.first = nn.utils.parametrizations.weight_norm(self.first)
        if kind == "frozen":
            self.hidden.requires_grad_(False)
        self.second = nn.Linear(width, width)
        if kind == "shared_weight":
            self.second.weight = self.hidden.weight
        self.activation = self.scaled_tanh  # bound to this very object

    def scaled_tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * x) if self.kind == "bound_method" else torch.tanh(x)

    def body(self, x: Tensor) -> Tensor:
        h = self.hidden(torch.tanh(self.first(x)))
        if self.kind == "tied":
            h = self.hidden(torch.tanh(h))
        if self.kind == "shared_weight":
            h = self.second(torch.tanh(h))
        if self.kind == "direct_weight":
            h = h @ self.hidden.weight.mT
        if self.kind == "alike":
            h = h * self.gain * self.gain.mean()
        if self.kind == "scalar":
            h = h * self.temperature
        return self.last(self.activation(h))


class ElementwiseNet(nn.Module):
    """One mode; raw parameter vectors that meet the data elementwise, where broadcasting could go wrong."""

    def __init__(self, state_dim: int, seed: int = 0):
        super().__init__()
        self.scale = nn.Parameter(random_values(seed, state_dim))
        self.shift = nn.Parameter(random_values(seed + 1, state_dim))
        self.raw_std = nn.Parameter(random_values(seed + 2, state_dim))
        self.register_buffer("offset", random_values(seed + 3, state_dim))

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        mean = state * self.scale + self.shift * torch.sin(state) + self.offset
        std = self.raw_std.exp() + torch.zeros_like(state)
        term_prob = torch.sigmoid((state * self.shift).sum(-1))
        return (mean.unsqueeze(-2), std.unsqueeze(-2)), torch.ones_like(state[..., :1]), term_prob


class BranchingNet(ElementwiseNet):
    """Control flow that depends on the data: cannot be batched over members."""

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        (mean, std), weights, term_prob = super().forward(state, context, action)
        if state.sum() > 0:
            mean = -3 * mean
        return (mean, std), weights, term_prob


class TwoOutputNet(ElementwiseNet):
    """The form of the seed's text: ((mean, std), term_prob), with or without an axis of one mode."""

    def __init__(self, state_dim: int, seed: int = 0, mode_axis: bool = False):
        super().__init__(state_dim, seed)
        self.mode_axis = mode_axis

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        (mean, std), _, term_prob = super().forward(state, context, action)
        if not self.mode_axis:
            mean, std = mean.squeeze(-2), std.squeeze(-2)
        return (mean, std), term_prob


class TableNet(nn.Module):
    """One row of parameters per discrete action."""

    def __init__(self, state_dim: int, n_actions: int, seed: int = 0):
        super().__init__()
        self.table = nn.Parameter(random_values(seed, n_actions, state_dim))

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        mean = self.table[action[..., 0]] - 0.1 * state
        std = 0.3 + torch.zeros_like(state)
        term_prob = torch.sigmoid(mean.sum(-1))
        return (mean.unsqueeze(-2), std.unsqueeze(-2)), torch.ones_like(state[..., :1]), term_prob


class LimitedNet(DriftNet):
    """A drift that stops beyond a limit, which is a plain attribute: no parameter, no buffer."""

    def __init__(self, limit: float):
        super().__init__(drift=1.0)
        self.limit = limit

    def forward(self, state: Tensor, context: Tensor, action: Tensor):
        (mean, std), weights, term_prob = super().forward(state, context, action)
        return (torch.where(state.unsqueeze(-2) > self.limit, 0.0, mean), std), weights, term_prob


def three_space_factory(state_space, context_space, action_space) -> nn.Module:
    return ElementwiseNet(state_space.shape[0], seed=17)
