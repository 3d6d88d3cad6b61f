"""A GPU for machines without one: its tensors are on cuda:0, their values in memory, and what stops it is counted.

Every operation on its tensors runs on the CPU, for the values. Once for each kind of arguments it also runs under
torch's `FakeTensorMode`, which knows what is allowed on which device: a tensor on a wrong one is an error. Each
synchronisation and each copy from the host is recorded with the line of this repository that caused it.
"""

import copy
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from layeredrl.models.stacked import graphs
from layeredrl.off_policy import update_graphs

CUDA = torch.device("cuda:0")
_ROOT = str(Path(__file__).resolve().parent.parent)
_OWN = str(Path(__file__).resolve())
_NO_SHAPES = (fake_tensor.DataDependentOutputException, fake_tensor.DynamicOutputShapeException)
"""Results whose shape, or number, depends on values: `item` and `nonzero`."""
_SOLVES = ("linalg_eigh", "linalg_cholesky", "linalg_inv", "linalg_solve", "linalg_svd", "linalg_eigvalsh")


@dataclass
class Events:
    """Lines of this repository, `file:line operation`, one entry for each event."""

    syncs: list[str] = field(default_factory=list)
    """Waits of the host for the GPU."""
    copies: list[str] = field(default_factory=list)
    """Copies of arrays and of tensors from the host to the GPU."""

    def __str__(self) -> str:
        parts = [(f"{n}x {x}" for x, n in Counter(lines).most_common()) for lines in (self.syncs, self.copies)]
        return "\n  ".join(["synchronisations:", *parts[0], "copies from the host:", *parts[1]])


class _Rule(NamedTuple):
    """Outcome of an operation for arguments of some kinds."""

    devices: tuple[str, ...]
    """Types of the devices of its results; cuda where they are not known."""
    waits: bool
    copies: bool


_RULES: dict[Any, _Rule] = {}


class DeviceTensor(Tensor):
    """A tensor on the GPU; `value` is on the CPU."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> "DeviceTensor":
        # To C++ it is a meta tensor: autograd in a torch without CUDA cannot handle another device.
        form = value.shape, value.stride(), value.storage_offset(), torch.contiguous_format, value.dtype
        if value.is_inference() == torch.is_inference_mode_enabled():
            made = Tensor._make_wrapper_subclass(cls, *form, device="meta")
        else:
            with torch.inference_mode(value.is_inference()):  # a view of an ordinary tensor is none of inference
                made = Tensor._make_wrapper_subclass(cls, *form, device="meta")
        made.value = value
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of a fake GPU that is not there any more")

    device = CUDA
    is_cuda, is_cpu, is_meta = True, False, False

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.value.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"{self.value!r} on the fake GPU"

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor first")

    def numpy(self) -> Any:
        return self.__array__()

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceTensor":
        if id(self) in memo:
            return memo[id(self)]
        made = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        if self.grad is not None:
            made.grad = copy.deepcopy(self.grad, memo)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


class Generator(torch.Generator):
    """A generator of either device; that of the GPU draws the numbers of the CPU's."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.is_there = torch.device(device).type == "cuda"
        return made

    @property
    def device(self) -> torch.device:
        return CUDA if self.is_there else torch.device("cpu")


class _Fakes(FakeTensorMode):
    """Torch's mode, without torch's own wrapper, which imports its compiler and takes seconds to do so."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.dispatch(func, types, args, kwargs)


class _Mode(TorchDispatchMode):
    """Runs the operations on tensors of the GPU."""

    def __init__(self, gpu: "FakeGPU") -> None:
        super().__init__()
        self.gpu = gpu

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat: list[Any] = []
        _flatten(args, flat)
        _flatten([*kwargs.values()], flat)
        if not any(type(x) is DeviceTensor or _is_there(x) for x in flat):
            return _without_fakes(func, args, kwargs)
        return self.gpu.run(func, args, kwargs, flat)


class _Calls(TorchFunctionMode):
    """Records what dispatched operations do not show: lists as indices, and the class of generators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i, device=CUDA) if isinstance(i, list | np.ndarray) else i for i in index)
            args = args[0], index, *args[2:]
        result = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, torch._C.Generator) and isinstance(result, Tensor):
            wanted, there = result.device.type, generator.device.type
            if wanted != there:
                raise RuntimeError(f"Expected a '{wanted}' device type for generator of {func} but found '{there}'")
        return result


def _is_there(x: object) -> bool:
    """Return True for the GPU, and for a meta device, which is what C++ takes it for."""
    return isinstance(x, torch.device) and x.type in ("cuda", "meta")


class FakeGPU:
    """A GPU while it is entered as a context.

    Attributes:
        events: Events so far.
    """

    def __init__(self) -> None:
        self.events = Events()
        self._recorded: list[tuple[Any, Any, Any, list[Tensor]]] | None = None  # of the graph that is being captured
        self._fakes = _Fakes(allow_non_fake_inputs=True)
        self._stack = ExitStack()

    @property
    def capturing(self) -> bool:
        """True while a CUDA graph is being captured, in which waits and copies are errors."""
        return self._recorded is not None

    def __enter__(self) -> "FakeGPU":
        for patch in (
            mock.patch.object(torch, "Generator", Generator),
            mock.patch.object(torch, "load", self._loader(torch.load)),
            mock.patch.object(torch.cuda, "is_current_stream_capturing", side_effect=lambda: self.capturing),
            mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
            mock.patch.object(graphs, "in_turn", _at_once),
            mock.patch.object(update_graphs, "in_turn", _at_once),
            mock.patch.object(update_graphs.UpdateGraphs.__init__, "__defaults__", (self.capture, "cuda")),
            mock.patch.object(graphs.GraphCache.__init__, "__defaults__", (self.capture, 32, "cuda")),
            mock.patch.object(torch.nn.Module, "_apply", _move),
            _Calls(),
            self._fakes,
            _Mode(self),
        ):
            self._stack.enter_context(patch)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    @contextmanager
    def counting(self) -> Iterator[Events]:
        """Collect the events of a block."""
        outer, self.events = self.events, Events()
        try:
            yield self.events
        finally:
            self.events = outer

    def capture(self, function: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        """Record the operations of a function, as a CUDA graph does; it must neither wait nor copy.

        What Python computes is frozen in the record. Tensors keep their place, not their value.
        """
        self._recorded = recorded = []
        try:
            outputs = function()
        finally:
            self._recorded = None

        @torch.inference_mode()  # in which tensors of either kind may be written
        def replay() -> None:
            with torch.utils._python_dispatch._disable_current_modes():
                for func, args, kwargs, results in recorded:
                    for place, value in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                        if value.data_ptr() != place.data_ptr():  # neither written in place nor a view
                            place.copy_(value)

        return replay, outputs

    def run(self, func: Any, args: Any, kwargs: Any, flat: list[Any]) -> Any:
        """Run an operation, with its arguments and these in one list, of which one is on the GPU."""
        kinds = tuple([_kind(x) for x in flat])
        if (func, kinds) not in _RULES:
            _RULES[func, kinds] = self._rule(func, args, kwargs, flat)
        rule = _RULES[func, kinds]
        if rule.copies:
            self._record(self.events.copies, func)
        if rule.waits:
            self._record(self.events.syncs, func)
        args, kwargs = _values(args), {key: _values(x) for key, x in kwargs.items()}
        results = _without_fakes(func, args, kwargs)
        if self._recorded is not None:
            self._recorded.append((func, args, kwargs, _tensors(results)))
        own = {id(x.value): x for x in flat if type(x) is DeviceTensor}
        place = iter(rule.devices)

        def wrapped(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return [wrapped(part) for part in x] if isinstance(x, list | tuple) else x
            if next(place, "cuda") != "cuda":
                return x
            # A result may be an argument: one that was written in place, or a copy that copies nothing on a CPU.
            there = own.get(id(x))
            return DeviceTensor(x.clone() if any(x is y for y in flat) else x) if there is None else there

        return wrapped(results)

    def _rule(self, func: Any, args: Any, kwargs: Any, flat: list[Any]) -> "_Rule":
        """Return what an operation does with arguments of these kinds, by torch's rules; raise if it must not."""
        name = func._schema.name.removeprefix("aten::")
        on_host = [x for x in flat if isinstance(x, Tensor) and type(x) is not DeviceTensor]
        onto_host = name == "copy_" and type(flat[0]) is not DeviceTensor
        copies = not onto_host and any(x.ndim > 0 or name in ("_to_copy", "copy_", "to") for x in on_host)
        if name.startswith(("index", "_index")) and type(flat[0]) is not DeviceTensor:
            raise RuntimeError(f"{func}: indices should be on the same device as the indexed tensor, which is the CPU")
        masked = name in ("index", "index_put_", "_index_put_impl_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        waits = onto_host or masked or name.lstrip("_").startswith(_SOLVES)
        try:
            if masked:
                raise NotImplementedError
            with self._fakes:
                fake = func(*_mapped(_fake_of, args), **_mapped(_fake_of, kwargs))
        except _NO_SHAPES:
            return _Rule((), waits=True, copies=copies)
        except (NotImplementedError, RuntimeError) as error:  # the fake operation is not complete without CUDA
            if not isinstance(error, NotImplementedError) and "not linked with support for cuda" not in str(error):
                raise
            if any(x.ndim > 0 for x in on_host) and not masked:
                raise RuntimeError(f"{func}: expected all tensors on the same device, cuda:0, found the CPU") from None
            return _Rule((), waits, copies)
        devices = tuple(x.device.type for x in _tensors(fake))
        return _Rule(devices, waits or "cpu" in devices, copies)

    def _record(self, events: list[str], func: Any) -> None:
        where = _line()
        if self.capturing:
            raise RuntimeError(f"{func} is not permitted when the stream is capturing: {where}")
        events.append(f"{where} {func._schema.name.removeprefix('aten::')}")

    def _loader(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def on_device(path: Any, map_location: Any = None, **settings: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                content = load(path, map_location="cpu", **settings)
            if torch.device(map_location).type != "cuda":
                return content
            return _mapped(lambda x: DeviceTensor(x) if isinstance(x, Tensor) else x, content)

        return on_device


def _without_fakes(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation outside of torch's mode."""
    before = torch._C._unset_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    try:
        return func(*args, **kwargs)
    finally:
        if before is not None:
            torch._C._set_dispatch_mode(before)


def _flatten(x: Any, into: list[Any]) -> None:
    """Append everything in lists and tuples."""
    for part in x:
        if type(part) in (list, tuple):
            _flatten(part, into)
        else:
            into.append(part)


def _tensors(x: Any) -> list[Tensor]:
    """All tensors in a result."""
    found: list[Any] = []
    _flatten([x], found)
    return [part for part in found if isinstance(part, Tensor)]


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to everything in lists, tuples and dicts."""
    if type(x) in (list, tuple):
        return type(x)([_mapped(function, part) for part in x])
    return {key: _mapped(function, part) for key, part in x.items()} if isinstance(x, dict) else function(x)


def _kind(x: Any) -> Any:
    """Everything on which the devices of results may depend."""
    if isinstance(x, Tensor):
        return type(x) is DeviceTensor, x.ndim > 0, x.dtype, x.requires_grad
    return x if isinstance(x, bool | str | torch.dtype | torch.device | None) else type(x)


def _fake_of(x: Any) -> Any:
    if isinstance(x, Tensor) and (x.ndim or x.requires_grad or type(x) is DeviceTensor):
        device = CUDA if type(x) is DeviceTensor else torch.device("cpu")
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return CUDA if _is_there(x) else x


def _values(x: Any) -> Any:
    kind = type(x)
    if kind is DeviceTensor:
        return x.value
    if kind in (list, tuple):
        return kind([_values(part) for part in x])
    return torch.device("cpu") if kind is torch.device and _is_there(x) else x


def _line() -> str:
    """The innermost line of this repository on the stack, tests aside if there is another."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_ROOT) and name != _OWN and "/.venv/" not in name:
            return f"{name.removeprefix(_ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


@contextmanager
def _at_once(x: Tensor) -> Iterator[None]:
    yield


def _move(module: torch.nn.Module, *args: Any, _apply: Any = torch.nn.Module._apply, **settings: Any) -> Any:
    """`Module._apply` that keeps the parameters' identity, as it does where a device is real."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _apply(module, *args, **settings)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
