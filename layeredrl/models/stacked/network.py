"""Members of an ensemble, evaluated together.

The parameters of M networks of one architecture are stacked, one tensor per parameter with the member axis first.
The evaluation is chosen once, by trial: the first of these that gives the results of the members run one by one.

* "broadcast": the network's own `forward` runs once on inputs of shape (M, R, width). Its linear and layer-norm
  layers are replaced by ones with a member axis; every other parameter of shape `s` becomes (M, 1, *s), which
  broadcasts over the rows. No overhead beyond the batched products themselves.
* "vmap": `torch.vmap` over the members, for networks that do not broadcast.
* "loop": member by member, for networks that cannot be batched (data-dependent control flow).
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from layeredrl.models.normalization import Moments
from layeredrl.models.outputs import NetOutput, StepOutput
from layeredrl.models.stacked.contract import (
    FitsInputs,
    MergesInputs,
    Prepared,
    Regularization,
    Regularized,
    overrides_alone,
    require_alike,
    require_shapes,
    unpack,
)
from layeredrl.models.stacked.layers import StackedLinear, StackedSequential, stack_modules

Evaluation = Literal["broadcast", "vmap", "loop"]


class StackedNetwork(nn.Module):
    """M networks that satisfy the network contract of `layeredrl.models`, as one.

    Args:
        members: Networks that differ only in the values of parameters and buffers.
        n_modes: Number of mixture modes K that the networks predict.
        probe: Function that makes random inputs (state, context, action) with a given number of rows.

    Attributes:
        evaluation: Evaluation of the members: "broadcast", "vmap" or "loop".
        row_multiple: Number of rows of which a multiple makes the results of equal members bitwise equal.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        n_modes: int,
        probe: Callable[[int], tuple[Tensor, Tensor, Tensor]],
    ) -> None:
        super().__init__()
        require_alike(members)
        self.n_members = len(members)
        self.n_modes = n_modes
        self.net = stack_modules(members)
        self._linear_weights = {
            f"{name}.weight".lstrip(".")  # the root has no name
            for name, module in self.net.named_modules()
            if isinstance(module, StackedLinear)
        }
        # One unchanged member, for evaluation with other parameters; in a list, so that it is not a submodule.
        self._template = [members[0]]
        self._needs_loop_in_training = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in members[0].modules())
        self._regularizes = callable(getattr(members[0], "regularization", None))
        self._warned = False
        self._may_prepare = False
        self.evaluation: Evaluation = self._choose(members, probe)
        self.row_multiple = self._row_multiple()

    def forward(self, state: Tensor, context: Tensor, action: Tensor) -> NetOutput:
        """Predict with every member for its own rows: inputs (M, R, S), (M, R, C), (M, R, A)."""
        evaluation = self.evaluation
        if evaluation != "loop" and self.training and self._needs_loop_in_training:
            evaluation = "loop"
            self._warn("batch normalisation in training mode")
        return self._evaluate(evaluation, state, context, action)

    @contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Let chains of layers compute in another type if they can; inputs and outputs keep theirs."""
        chains: list[StackedSequential] = []
        if dtype is not None:
            chains = [module for module in self.net.modules() if isinstance(module, StackedSequential)]
        for chain in chains:
            chain.reduced = dtype
        try:
            yield
        finally:
            for chain in chains:
                chain.reduced = None

    def prepared(self) -> Callable[[Tensor, Tensor, Tensor], StepOutput]:
        """Return `forward` as a function with the constants of a rollout computed in advance.

        A network may have a method `prepared` that returns such a function, with a `StepOutput` as its result. It is
        used if its results were those of `forward` in a trial, and while there are no hooks, which it would ignore.
        """
        if self._may_prepare and not self.training and not self.is_hooked:
            return cast(Prepared, self.net).prepared()
        return lambda state, context, action: StepOutput.of(self(state, context, action))

    @property
    def is_hooked(self) -> bool:
        """Return True if a hook is registered on a forward, which then has to be called."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())

    def forward_member(self, member: int, state: Tensor, context: Tensor, action: Tensor) -> NetOutput:
        """Predict with one member for rows (R, S), (R, C), (R, A); the member axis of the output has length one."""
        out = self._call_member(member, state, context, action)
        return NetOutput(*(x.unsqueeze(0) for x in unpack(out, state.ndim, self.n_modes)))

    def regularization(self) -> Tensor | None:
        """Sum over members of the networks' regularisation terms; None if the networks have none."""
        if not self._regularizes:
            return None
        if self.evaluation == "broadcast":
            # Sums over a member axis are sums over members; `_choose` has checked that this holds here.
            return cast(Regularized, self.net).regularization()
        terms = [
            functional_call(Regularization(self._template[0]), self._member_state(i, "net."), (), tie_weights=False)
            for i in range(self.n_members)
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def fit_inputs(self, state: Tensor, context: Tensor, action: Tensor) -> None:
        """Call `fit_inputs` of networks that have it with data (N, S), (N, C), (N, A), e.g. to standardise inputs."""
        if callable(getattr(self._template[0], "fit_inputs", None)):
            self._template[0].to(state.device, state.dtype)
            self._change_members(lambda net: cast(FitsInputs, net).fit_inputs(state, context, action))

    @property
    def needs_all_inputs(self) -> bool:
        """True if the networks need all the data at once, in `fit_inputs`."""
        template = self._template[0]
        return callable(getattr(template, "fit_inputs", None)) and not self._merges_inputs

    @property
    def _merges_inputs(self) -> bool:
        owner = type(self._template[0])
        # A subclass that overrides `fit_inputs` alone has other statistics than those of the moments.
        return callable(getattr(owner, "input_moments", None)) and not overrides_alone(
            owner, "fit_inputs", "input_moments"
        )

    @torch.no_grad()
    def input_moments(self, state: Tensor, context: Tensor, action: Tensor) -> Moments | None:
        """Moments of the networks' inputs for a part of the data; None if the networks have no such method."""
        return (
            cast(MergesInputs, self._template[0]).input_moments(state, context, action) if self._merges_inputs else None
        )

    @torch.no_grad()
    def set_input_moments(self, moments: Moments) -> None:
        """Set the networks' input statistics to merged results of `input_moments`."""
        self._template[0].to(moments.mean.device)
        self._change_members(lambda net: cast(MergesInputs, net).set_input_moments(moments))

    def _change_members(self, change: Callable[[nn.Module], None]) -> None:
        """Apply a function to every member as a module of its own."""
        template = self._template[0]
        for i in range(self.n_members):
            stacked = self._member_state(i)
            template.load_state_dict(stacked)
            change(template)
            for name, tensor in template.state_dict().items():
                stacked[name].copy_(tensor)

    def linear_weights(self) -> list[Tensor]:
        """Weights of the linear layers in order, each (M, in, out)."""
        return [module.weight for module in self.net.modules() if isinstance(module, StackedLinear)]

    def _member_state(self, member: int, prefix: str = "") -> dict[str, Tensor]:
        """Views of one member's parameters and buffers, by their names in a single network."""
        return {
            prefix + name: tensor[member].mT if name in self._linear_weights else tensor[member, 0]
            for name, tensor in self._tensors()
        }

    def move_template(self, device: torch.device) -> None:
        """Move the template, including unregistered tensors that its `to` handles, to the device of the parameters."""
        self._template[0].to(device)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        net = self.net
        return [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]

    def _call_member(self, member: int, *inputs: Tensor) -> Any:
        template = self._template[0].train(self.training)
        return functional_call(template, self._member_state(member), inputs, tie_weights=False)

    def _evaluate(self, evaluation: Evaluation, *inputs: Tensor) -> NetOutput:
        if evaluation == "broadcast":
            return unpack(self.net(*inputs), inputs[0].ndim, self.n_modes)
        if evaluation == "loop":
            outputs = [
                unpack(self._call_member(i, *(x[i] for x in inputs)), inputs[0].ndim - 1, self.n_modes)
                for i in range(self.n_members)
            ]
            return NetOutput(*(torch.stack(parts) for parts in zip(*outputs, strict=True)))
        template = self._template[0].train(self.training)
        parameters = {n: t.mT if n in self._linear_weights else t.squeeze(1) for n, t in self._tensors()}

        def one(member: dict[str, Tensor], *member_inputs: Tensor) -> tuple[Tensor, ...]:
            return tuple(
                unpack(
                    functional_call(template, member, member_inputs, tie_weights=False),
                    member_inputs[0].ndim,
                    self.n_modes,
                )
            )

        return NetOutput(*torch.vmap(one, randomness="different")(parameters, *inputs))

    @torch.no_grad()
    def _choose(self, members: Sequence[nn.Module], probe: Callable[[int], tuple[Tensor, ...]]) -> Evaluation:
        """Find the fastest evaluation that gives the results of the members one by one.

        Parameters are changed at random after stacking for the comparison: with equal members it would not show that a
        network mixes members up, and with the original values not that a network reads other tensors.
        """
        n_rows = _probe_rows(self.n_members, self.net)
        rows = probe(n_rows * self.n_members)
        inputs = tuple(x.view(self.n_members, n_rows, -1) for x in rows)
        original = [tensor.clone() for _, tensor in self._tensors()]
        first = {name: tensor.clone() for name, tensor in self._member_state(0).items()}
        was_training = [module.training for module in self.modules()]
        self.eval()
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # warnings of a trial are irrelevant to the user
            torch.default_generator.manual_seed(0)  # of the CPU alone: those of GPUs are not forked
            for _, tensor in self._tensors():
                if tensor.is_floating_point():  # upwards, because some parameters must stay positive
                    tensor.mul_(1 + 0.3 * torch.rand_like(tensor)).add_(0.1 * torch.rand_like(tensor))
            reference = self._reference(members, inputs)
            members[0].load_state_dict(first)  # so that code that still reads its tensors gives other results
            choice = self._fastest(reference, inputs)
            self._may_prepare = choice == "broadcast" and self._prepared_agrees(reference[0], inputs)
        for (_, tensor), value in zip(self._tensors(), original, strict=True):
            tensor.copy_(value)
        for module, training in zip(self.modules(), was_training, strict=True):
            module.training = training
        if choice == "loop" and self.n_members > 1:
            self._warn(self._obstacle)
        return choice

    def _reference(self, members: Sequence[nn.Module], inputs: tuple[Tensor, ...]) -> tuple[NetOutput, Tensor]:
        """Outputs and summed regularisation of the members one by one, with their own code and stacked parameters."""
        outputs, penalties = [], []
        for i, member in enumerate(members):
            member.load_state_dict(self._member_state(i))
            torch.default_generator.manual_seed(0)
            try:
                out = member.eval()(*(x[i] for x in inputs))
            except Exception as error:  # a user's code may raise anything
                raise TypeError(
                    "the network made by partial_net cannot be called with (state, context, action) of shapes "
                    f"{', '.join(str(tuple(x.shape[1:])) for x in inputs)}: {type(error).__name__}: {error}"
                ) from error
            outputs.append(unpack(out, 2, self.n_modes))
            penalties.append(cast(Regularized, member).regularization() if self._regularizes else torch.zeros(()))
        n_rows, state_dim = inputs[0].shape[1:]
        require_shapes(outputs[0], n_rows, state_dim, self.n_modes)
        return NetOutput(*(torch.stack(parts) for parts in zip(*outputs, strict=True))), torch.stack(penalties).sum()

    def _fastest(self, reference: tuple[NetOutput, Tensor], inputs: tuple[Tensor, ...]) -> Evaluation:
        expected, expected_penalty = reference

        def agrees(evaluation: Evaluation) -> bool:
            try:
                torch.default_generator.manual_seed(0)
                out = self._evaluate(evaluation, *inputs)
                penalty = expected_penalty
                if evaluation == "broadcast" and self._regularizes:
                    penalty = cast(Regularized, self.net).regularization()
            except Exception as error:  # a user's network may raise anything; this evaluation fails
                self._obstacle = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                return False
            self._obstacle = "its batched outputs differ from those of the members one by one"
            pairs = [*zip(out, expected, strict=True), (penalty, expected_penalty)]
            return all(a.shape == b.shape and _close(a, b) for a, b in pairs)

        if agrees("vmap"):  # refuses control flow that depends on data, which broadcasting would not notice
            return "broadcast" if agrees("broadcast") else "vmap"
        obstacle = self._obstacle
        if not agrees("loop"):
            raise ValueError("the networks made by partial_net must differ in nothing but their parameters and buffers")
        self._obstacle = obstacle
        return "loop"

    def _prepared_agrees(self, expected: NetOutput, inputs: tuple[Tensor, ...]) -> bool:
        """Return True if the network has a `prepared` whose results are those of its `forward`."""
        if not callable(getattr(self.net, "prepared", None)) or overrides_alone(type(self.net), "forward", "prepared"):
            return False
        try:
            torch.default_generator.manual_seed(0)
            out = cast(Prepared, self.net).prepared()(*inputs)
            pairs = zip(out, StepOutput.of(expected), strict=True)
            return isinstance(out, StepOutput) and all(
                a is b if a is None or b is None else a.shape == b.shape and _close(a, b) for a, b in pairs
            )
        except Exception:  # a user's code may raise anything; `forward` is used instead
            return False

    def _row_multiple(self) -> int:
        """Number of rows of which a multiple keeps equal members bitwise equal.

        torch computes the last elements of a tensor, which do not fill its vector registers (at most 32 elements for
        float32), with other code that may differ in the last bit. They belong to the last member.
        """
        if self.evaluation == "loop":
            return 1
        widths = [weight.shape[2] for weight in self.linear_weights()]
        return 32 // math.gcd(32, *widths) if widths else 32

    def _warn(self, obstacle: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the network made by partial_net cannot be batched over members ({obstacle}); "
                "it is evaluated member by member, which is slower",
                stacklevel=2,
            )


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # float32, for numbers around one


def _probe_rows(n_members: int, net: nn.Module) -> int:
    """Number of rows that differs from all other sizes, so that confused axes cause an error."""
    n, taken = 7, {n_members, *(size for tensor in net.state_dict().values() for size in tensor.shape)}
    while n in taken:
        n += 1
    return n
