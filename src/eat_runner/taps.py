"""Observing a network while it runs: every call of a leaf module or of a functional operation, in order.

Plain forward hooks miss functional activations (57 in torchvision's googlenet) and keep tensors that a later in-place
operation overwrites (``out += identity`` in torchvision's ResNets). So a tap is hooks on the leaf modules and one
TorchFunctionMode that is active outside of them. The network runs as it was built: a listener has to look at a tensor
when it is made, and ``overwritten_calls`` finds the outputs that it must not keep without a copy.
"""

import weakref
from collections.abc import Callable, Container, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_leaves

NETWORK_INPUT = -1

# activation functions, in lower case without underscores: names of torch.nn's modules and functions alike, and ours
ACTIVATIONS = frozenset(
    "celu elu fatrelu gelu glu hardshrink hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu relu relu6 "
    "rrelu selu sigmoid silu softplus softshrink softsign tanh tanhshrink threshold".split(" ")
)


@dataclass(slots=True)
class Call:
    """One call of a leaf module or functional operation.

    index: position in the forward pass, from 0. name: the module's path, or ``<path of the calling module>:<op>``.
    op: class name of the module (``Conv2d``) or name of the function (``relu``, ``add``, ``flatten``).
    module: None for a functional operation. inputs: its tensors, in order. output: what it returned.
    args, kwargs: of a functional operation, as it was called. inplace: the module's flag, or, for a functional
    operation, whether it returned one of its inputs: then the input has been overwritten by now.
    producers: for each input the index of the call that made it; NETWORK_INPUT for a tensor that no call made.
    versions: of the inputs, in front of the call; where an input has another one now, the call has overwritten it.
    """

    index: int
    name: str
    op: str
    module: nn.Module | None
    inputs: tuple[Tensor, ...]
    output: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    inplace: bool = False
    producers: tuple[int, ...] = ()
    versions: tuple[int, ...] = ()

    @property
    def is_activation(self) -> bool:
        """True for an activation function, as a module or as a function (``ReLU``, ``relu_``, ``leaky_relu``, ...)."""
        return self.op.lower().replace("_", "") in ACTIVATIONS


# A listener sees a call right after it was made and may return a tensor that takes the output's place.
Listener = Callable[[Call], Tensor | None]


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules without children, with their paths; a module that stands at two places comes once."""
    return ((name, module) for name, module in model.named_modules() if not any(module.children()))


@contextmanager
def tap(
    model: nn.Module,
    listener: Listener,
    functional: bool = True,
    modules: Container[nn.Module] | None = None,
) -> Generator[None]:
    """Report every call of ``model`` to ``listener`` while the block runs; nothing stays attached afterwards.

    functional: report functional operations too, those made outside of leaf modules, and who produced each input. What
    returns no tensor is left out; an operation that returns several (``chunk``) is one call for each. Each forward pass
    counts from index 0. Without ``functional`` a call has no producers and versions. modules: where there are no
    functional operations to report, only the calls of these leaf modules are, numbered among themselves.
    """
    with ExitStack() as stack:
        recorder = _Recorder(listener, trace=functional)
        stack.callback(model.register_forward_pre_hook(recorder.start, prepend=True).remove)
        for name, module in model.named_modules():
            if not any(module.children()):
                if functional:
                    enter = module.register_forward_pre_hook(recorder.enter_leaf, with_kwargs=True)
                    stack.callback(enter.remove)
                if functional or modules is None or module in modules:
                    leave = recorder.leave_leaf(name)
                    hook = module.register_forward_hook(leave, with_kwargs=True, always_call=functional)
                    stack.callback(hook.remove)
            elif functional:
                begin, end = recorder.container(name)
                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
        if functional:
            recorder.mode = stack.enter_context(_FunctionalCalls(recorder))
            stack.callback(recorder.resume)
        yield


def overwritten_calls(
    model: nn.Module,
    x: Tensor,
    functional: bool = True,
    modules: Container[nn.Module] | None = None,
) -> frozenset[int]:
    """Indices of the calls whose output a later operation of the same pass overwrites: to keep it, copy it.

    x: an example batch; the others as for ``tap``. The pass runs in eval mode without gradients; the network is left as
    it was.
    """
    kept: list[tuple[int, Tensor, int]] = []

    def keep(call: Call) -> None:
        kept.append((call.index, call.output, call.output._version))

    with evaluation_mode(model), torch.no_grad(), tap(model, keep, functional, modules):
        model(x)
    return frozenset(index for index, output, version in kept if output._version != version)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Put every module into evaluation mode for the time of the block, then each back into its own."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def tensors_in(values: Any) -> tuple[Tensor, ...]:
    """The tensors among ``values`` and in the lists, tuples and dicts among them, in order."""
    if isinstance(values, Tensor):
        return (values,)
    if type(values) is tuple and all(isinstance(value, Tensor) for value in values):  # most calls' arguments
        return values
    return tuple(value for value in tree_leaves(values) if isinstance(value, Tensor))


def _versions(values: Any) -> tuple[int, ...]:
    with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (to read a version is a function, too)
        return tuple(x._version for x in tensors_in(values))


class _Recorder:
    """Turns hooks into calls, and knows where in the network the forward pass is."""

    def __init__(self, listener: Listener, trace: bool):
        self.listener = listener
        self.trace = trace
        self.next_index = 0
        self.leaves: list[tuple[int, ...]] = []  # leaf modules that are running: the versions of their inputs
        self.mode: TorchFunctionMode | None = None
        self.paused = False
        self.path: list[str] = []  # the modules with children that are running, outermost first
        self.made_by: dict[int, tuple[weakref.ref[Tensor], int]] = {}  # id(tensor) -> tensor, call

    def start(self, module: nn.Module, args: Any) -> None:
        self.next_index = 0
        self.leaves.clear()
        self.path.clear()
        self.made_by.clear()

    def enter_leaf(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """No function inside of a leaf module is reported. So the mode, which costs every function there some
        microseconds, is switched off, unless the network has put another one on top of it."""
        self.leaves.append(_versions((args, kwargs) if kwargs else args))
        if len(self.leaves) == 1 and self.mode is not None and _get_current_function_mode() is self.mode:
            self.mode.__exit__(None, None, None)
            self.paused = True

    def resume(self) -> None:
        if self.paused and self.mode is not None:
            self.mode.__enter__()
            self.paused = False

    def leave_leaf(self, name: str) -> Callable[..., Tensor | None]:
        def leave(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Tensor | None:
            try:
                return report(module, args, kwargs, output, self.leaves[-1] if self.trace else ())
            finally:
                if self.trace:
                    self.leaves.pop()
                if not self.leaves:
                    self.resume()

        def report(
            module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, versions: tuple[int, ...]
        ) -> Tensor | None:
            outputs = tensors_in(output)  # None where the module has raised
            replacement = None
            if outputs:
                inputs = tensors_in((args, kwargs) if kwargs else args)
                inplace = getattr(module, "inplace", False) is True
                op = type(module).__name__
                replacement = self.report(name, op, module, inputs, outputs[0], inplace, versions=versions)
            return replacement

        return leave

    def container(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any) -> None:
            self.path.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self.path:
                self.path.pop()

        return enter, leave

    def report(
        self,
        name: str,
        op: str,
        module: nn.Module | None,
        inputs: tuple[Tensor, ...],
        output: Tensor,
        inplace: bool,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        versions: tuple[int, ...] = (),
    ) -> Tensor | None:
        """Tell the listener; returns what it puts in the output's place."""
        producers = tuple(self._producer(x) for x in inputs) if self.trace else ()
        call = Call(self.next_index, name, op, module, inputs, output, args, kwargs or {}, inplace, producers, versions)
        self.next_index += 1
        replacement = self.listener(call)
        if self.trace:
            made = output if replacement is None else replacement
            self.made_by[id(made)] = (weakref.ref(made), call.index)
        return replacement

    def _producer(self, x: Tensor) -> int:
        made = self.made_by.get(id(x))
        return made[1] if made is not None and made[0]() is x else NETWORK_INPUT


class _FunctionalCalls(TorchFunctionMode):
    """Reports the torch functions that containers call themselves. Inside the handler the mode is off, so what a
    function or the listener calls in turn is not reported."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.leaves or not recorder.path:
            return func(*args, **kwargs)
        versions = _versions((args, kwargs))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            replacement = self._report(func, args, kwargs, result, versions)
            return result if replacement is None else replacement
        if isinstance(result, tuple | list) and tensors_in(result):
            outputs = [(r, self._report(func, args, kwargs, r, versions)) for r in result if isinstance(r, Tensor)]
            replaced = {id(old): new for old, new in outputs if new is not None}
            return type(result)(replaced.get(id(r), r) for r in result) if replaced else result
        return result

    def _report(self, func: Any, args: Any, kwargs: Any, output: Tensor, versions: tuple[int, ...]) -> Tensor | None:
        inputs = tensors_in((args, kwargs))
        op = _function_name(func)
        name = f"{self.recorder.path[-1]}:{op}".lstrip(":")
        inplace = kwargs.get("inplace") is True or any(output is x for x in inputs)
        return self.recorder.report(name, op, None, inputs, output, inplace, tuple(args), kwargs, versions)


def _function_name(func: Any) -> str:
    """``relu`` for torch.relu and nn.functional.relu, ``add_`` for ``+=``, ``T`` for the property Tensor.T."""
    name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    return name.strip("_") if name.startswith("_") else name
