"""Members of an ensemble, evaluated together.

The parameters of M networks of one architecture are stacked, one tensor per parameter with the member axis first.
How they are evaluated depends on what the network is made of; the choice is made once, by trying, and is checked
against the members run one by one:

* "broadcast": the network's own `forward` runs once on inputs of shape (M, R, width). Its linear and layer-norm
  layers are exchanged for ones with a member axis; every other parameter of shape `s` becomes (M, 1, *s), which
  broadcasts over the rows. No overhead beyond the batched products themselves.
* "vmap": `torch.vmap` over the members, for networks that broadcasting does not fit.
* "loop": member by member, for what cannot be batched at all (data-dependent control flow).
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Evaluation = Literal["broadcast", "vmap", "loop"]
PROBE_ROWS = 3  # more than one, so that a network that mixes rows or members up is found out


class NetOutput(NamedTuple):
    """What the networks of all members predict for R rows, members first, in the networks' units."""

    mean: Tensor
    """(M, R, K, S)"""
    std: Tensor
    """(M, R, K, S)"""
    weights: Tensor
    """(M, R, K)"""
    term_prob: Tensor
    """(M, R)"""


class _Regularized(Protocol):
    """What a network may offer: a term for the loss."""

    def regularization(self) -> Tensor: ...


class _FitsInputs(Protocol):
    """What a network may offer: a look at the data before fitting."""

    def fit_inputs(self, state: Tensor, context: Tensor, action: Tensor) -> None: ...


class StackedLinear(nn.Module):
    """The linear layers of M members: (M, ..., in) -> (M, ..., out)."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.stack([layer.weight.detach() for layer in layers]), requires_grad=layers[0].weight.requires_grad
        )
        biases = [layer.bias.detach().unsqueeze(0) for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x if x.ndim == 3 else x.flatten(1, -2)
        weight = self.weight.mT
        out = torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.bias, rows, weight)
        return out if x.ndim == 3 else out.unflatten(1, x.shape[1:-1])


class StackedLayerNorm(nn.Module):
    """The layer norms of M members, over the last dimension of (M, R, width)."""

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.normalized_shape = layers[0].normalized_shape
        self.eps = layers[0].eps
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().unsqueeze(0) for layer in layers]))
        biases = [layer.bias.detach().unsqueeze(0) for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x, self.normalized_shape, eps=self.eps) * self.weight
        return out if self.bias is None else out + self.bias


def _stack_modules(modules: Sequence[nn.Module], seen: dict[int, Any]) -> nn.Module:
    """A module of the same class whose tensors hold those of all `modules`, with a member axis in front."""
    first = modules[0]
    if id(first) in seen:
        return cast(nn.Module, seen[id(first)])
    stacked: nn.Module
    if type(first) is nn.Linear:
        stacked = StackedLinear([m for m in modules if isinstance(m, nn.Linear)])
    elif type(first) is nn.LayerNorm and first.elementwise_affine and len(first.normalized_shape) == 1:
        stacked = StackedLayerNorm([m for m in modules if isinstance(m, nn.LayerNorm)])
    else:
        stacked = copy.copy(first)
        stacked._parameters, stacked._buffers, stacked._modules = {}, dict(first._buffers), {}
        for name, parameter in first._parameters.items():
            tensors = [m._parameters[name] for m in modules]
            if parameter is not None and id(parameter) not in seen:
                stack = torch.stack([t.detach().unsqueeze(0) for t in tensors if t is not None])
                seen[id(parameter)] = nn.Parameter(stack, requires_grad=parameter.requires_grad)
            stacked._parameters[name] = None if parameter is None else seen[id(parameter)]
        for name, buffer in first._buffers.items():
            if buffer is not None:
                stacked._buffers[name] = torch.stack([m.get_buffer(name).unsqueeze(0) for m in modules])
        for name, child in first._modules.items():
            children = [m._modules[name] for m in modules]
            stacked._modules[name] = (
                None if child is None else _stack_modules([c for c in children if c is not None], seen)
            )
    seen[id(first)] = stacked
    return stacked


class StackedNetwork(nn.Module):
    """M networks that satisfy the network contract of `layeredrl.models`, as one.

    Args:
        members: The networks, alike but for their parameters and buffers.
        n_modes: Number of mixture modes K that the networks predict.
        probe: Makes random inputs (state, context, action) of a given number of rows.

    Attributes:
        evaluation: How the members are evaluated: "broadcast", "vmap" or "loop".
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        n_modes: int,
        probe: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        super().__init__()
        self.n_members = len(members)
        self.n_modes = n_modes
        self.net = _stack_modules(members, {})
        # One member as it is, for evaluation with other parameters; in a list, so that it is not a submodule.
        self._template = [copy.deepcopy(members[0])]
        self._needs_loop_in_training = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) for m in members[0].modules()
        )
        self._linear_weights = {
            f"{name}.weight" for name, module in self.net.named_modules() if isinstance(module, StackedLinear)
        }
        self._warned = False
        self.evaluation: Evaluation = self._choose(members, probe(PROBE_ROWS))
        self._regularizes = callable(getattr(members[0], "regularization", None))

    def forward(self, state: Tensor, context: Tensor, action: Tensor) -> NetOutput:
        """Predict with every member for its own rows: inputs (M, R, S), (M, R, C), (M, R, A)."""
        evaluation = self.evaluation
        if evaluation != "loop" and self.training and self._needs_loop_in_training:
            evaluation = "loop"
            self._warn("batch normalisation in training mode")
        return self._evaluate(evaluation, state, context, action)

    def forward_member(self, member: int, state: Tensor, context: Tensor, action: Tensor) -> NetOutput:
        """Predict with one member for rows (R, S), (R, C), (R, A); the member axis of the output has length one."""
        out = self._call_member(member, state, context, action)
        return NetOutput(*(x.unsqueeze(0) for x in self._unpack(out, state.ndim)))

    def regularization(self) -> Tensor | None:
        """Sum over the members of what the networks want added to the loss; None if they offer nothing."""
        if not self._regularizes:
            return None
        if self.evaluation == "broadcast":
            # Sums over a member axis are sums over members; `_choose` has checked that this holds here.
            return cast(_Regularized, self.net).regularization()
        terms = [
            functional_call(_Regularization(self._template[0]), self._member_state(i, "net."), ())
            for i in range(self.n_members)
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def fit_inputs(self, state: Tensor, context: Tensor, action: Tensor) -> None:
        """Show data (N, S), (N, C), (N, A) to networks that have a `fit_inputs`, input standardisation for instance."""
        template = self._template[0]
        if not callable(getattr(template, "fit_inputs", None)):
            return
        for i in range(self.n_members):
            stacked = self._member_state(i)
            template.load_state_dict(stacked)
            template.to(state.device, state.dtype)
            cast(_FitsInputs, template).fit_inputs(state, context, action)
            for name, tensor in template.state_dict().items():
                stacked[name].copy_(tensor)

    def _member_state(self, member: int, prefix: str = "") -> dict[str, Tensor]:
        """Views of one member's parameters and buffers, by the names they have in a single network."""
        return {
            prefix + name: tensor[member] if name in self._linear_weights else tensor[member, 0]
            for name, tensor in self._tensors()
        }

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.net.named_parameters(), *self.net.named_buffers()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "StackedNetwork":
        self._template[0]._apply(fn)  # tensors that a network keeps to itself move with the rest
        return super()._apply(fn, recurse)

    def _call_member(self, member: int, *inputs: Tensor) -> Any:
        template = self._template[0].train(self.training)
        return functional_call(template, self._member_state(member), inputs)

    def _evaluate(self, evaluation: Evaluation, *inputs: Tensor) -> NetOutput:
        if evaluation == "broadcast":
            return self._unpack(self.net(*inputs), inputs[0].ndim)
        if evaluation == "loop":
            outputs = [
                self._unpack(self._call_member(i, *(x[i] for x in inputs)), inputs[0].ndim - 1)
                for i in range(self.n_members)
            ]
            return NetOutput(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))
        template = self._template[0].train(self.training)
        parameters = {n: t if n in self._linear_weights else t.squeeze(1) for n, t in self._tensors()}

        def one(member: dict[str, Tensor], *member_inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(self._unpack(functional_call(template, member, member_inputs), member_inputs[0].ndim))

        return NetOutput(*torch.vmap(one, randomness="different")(parameters, *inputs))

    def _unpack(self, out: Any, n_dims: int) -> NetOutput:
        """Bring what a network returned into one form, for inputs of `n_dims` dimensions."""
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
        if self.n_modes > 1:
            raise ValueError(f"the network made by partial_net returned no mode weights, but n_modes is {self.n_modes}")
        if mean.ndim == n_dims:
            mean, std = mean.unsqueeze(-2), std.unsqueeze(-2)
        return NetOutput(mean, std, mean.new_ones(mean.shape[:-1]), rest[0])

    @torch.no_grad()
    def _choose(self, members: Sequence[nn.Module], probe: tuple[Tensor, Tensor, Tensor]) -> Evaluation:
        """Find the fastest way that gives what the members give one by one."""
        modes = [module.training for module in self.modules()]
        self.eval()
        reference = self._reference(members, probe)
        stacked = tuple(x.expand(self.n_members, *x.shape) for x in probe)

        def agrees(evaluation: Evaluation) -> bool:
            try:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    out = self._evaluate(evaluation, *stacked)
            except Exception as error:  # whatever a stranger's network raises means: not this way
                self._obstacle = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                return False
            self._obstacle = "its batched outputs differ from those of the members one by one"
            return all(
                a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
                for a, b in zip(out, reference, strict=True)
            )

        choice: Evaluation = "loop"
        if agrees("vmap"):  # refuses control flow that depends on data, which broadcasting would not notice
            choice = "broadcast" if agrees("broadcast") and self._regularization_agrees(members) else "vmap"
        else:
            self._warn(self._obstacle)
            if not agrees("loop"):
                raise ValueError(
                    "the networks made by partial_net must differ in nothing but their parameters and buffers"
                )
        for module, training in zip(self.modules(), modes, strict=True):
            module.training = training
        return choice

    def _reference(self, members: Sequence[nn.Module], probe: tuple[Tensor, ...]) -> NetOutput:
        outputs = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for member in members:
                was_training = member.training
                outputs.append(self._unpack(member.eval()(*probe), probe[0].ndim))
                member.train(was_training)
        self._check_shapes(outputs[0], *probe[0].shape)
        return NetOutput(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))

    def _check_shapes(self, out: NetOutput, n_rows: int, state_dim: int) -> None:
        modes = (n_rows, self.n_modes)
        for name, shape in zip(out._fields, [(*modes, state_dim), (*modes, state_dim), modes, (n_rows,)], strict=True):
            actual = tuple(getattr(out, name).shape)
            if actual != shape:
                raise ValueError(
                    f"the network made by partial_net returned {name} of shape {actual} for {n_rows} rows, "
                    f"expected {shape}"
                )

    def _regularization_agrees(self, members: Sequence[nn.Module]) -> bool:
        if not callable(getattr(members[0], "regularization", None)):
            return True
        try:
            stacked = cast(_Regularized, self.net).regularization()
        except Exception:  # a stranger's code again: then not by broadcasting
            return False
        single = torch.stack([cast(_Regularized, member).regularization() for member in members])
        return torch.allclose(stacked, single.sum(), rtol=1e-4)

    def _warn(self, obstacle: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the network made by partial_net cannot be batched over members ({obstacle}); "
                "it is evaluated member by member, which is slower",
                stacklevel=2,
            )


class _Regularization(nn.Module):
    """Calls a network's `regularization` in its forward, for `functional_call`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self) -> Tensor:
        return cast(_Regularized, self.net).regularization()
