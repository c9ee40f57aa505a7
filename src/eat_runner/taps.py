"""Observing a network while it runs: every call of a leaf module or of a functional operation, in order.

Plain forward hooks miss functional activations (57 in torchvision's googlenet) and keep tensors that a later in-place
operation overwrites (``out += identity`` in torchvision's ResNets). So a tap is hooks on the leaf modules and one
TorchFunctionMode that is active outside of them. The network runs as it was built: a listener has to look at a tensor
when it is made, ``overwritten_calls`` finds the outputs that it must not keep without a copy, and ``writes`` tells of
an operation that works in place before it does.

A leaf is a module whose computation we know: one of LEAVES that computes as that class does, whatever makes its
weights (parametrisation, pruning) and whatever its class is called. Every other module is looked into, function by
function. What nobody can look into (torch.jit) is refused by name.
"""

import inspect
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedTensorMixin  # pyright: ignore[reportAttributeAccessIssue]
from torch.nn.utils import prune
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode, _get_current_function_mode  # pyright: ignore[reportPrivateUsage]
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode  # pyright: ignore
from torch.utils._pytree import tree_leaves

from eat_runner.errors import UserError, one_line

NETWORK_INPUT = -1

# activation functions, in lower case without underscores: names of torch.nn's modules and functions alike, and ours
ACTIVATIONS = frozenset(
    "celu elu fatrelu gelu glu hardshrink hardsigmoid hardswish hardtanh leakyrelu logsigmoid mish prelu relu relu6 "
    "rrelu selu sigmoid silu softplus softshrink softsign tanh tanhshrink threshold".split(" ")
)

# The modules whose computation we know: classes of torch.nn, and others by where they are defined.
LEAVES: frozenset[str] = frozenset(
    f"{getattr(nn, name).__module__}.{name}"
    for name in (
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Linear "
        "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm LayerNorm GroupNorm RMSNorm "
        "InstanceNorm1d InstanceNorm2d InstanceNorm3d LocalResponseNorm "
        "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
        "AdaptiveMaxPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d "
        "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 RReLU "
        "SELU Sigmoid SiLU Softplus Softshrink Softsign Tanh Tanhshrink Threshold "
        "Softmax Softmax2d Softmin LogSoftmax "
        "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout "
        "Flatten Unflatten ChannelShuffle PixelShuffle PixelUnshuffle Upsample UpsamplingNearest2d "
        "UpsamplingBilinear2d ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d "
        "ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d "
        "CircularPad2d CircularPad3d"
    ).split(" ")
) | {
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "torchvision.ops.misc.Permute",
    "torchvision.ops.stochastic_depth.StochasticDepth",
    "torchvision.models.convnext.LayerNorm2d",
    "eat_runner.methods.channels.Shift",
    "eat_runner.methods.thresholds.FATReLU",
}
# methods that change nothing about what a module computes
HARMLESS = frozenset(
    "__init__ __repr__ __setstate__ extra_repr reset_parameters reset_running_stats _load_from_state_dict "
    "_save_to_state_dict load_state_dict state_dict".split(" ")
)
# functions of several steps that are looked into
COMPOSITE: frozenset[Any] = frozenset({F.multi_head_attention_forward})


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
    function: of a functional operation, the object that was called.
    constant: for each input whether it is none of an image: a parameter, a buffer, or made of these alone.
    is_activation: whether it is an activation function (``ReLU``, ``relu_``, ``leaky_relu``, ...).
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
    function: Any = None
    constant: tuple[bool, ...] = ()
    is_activation: bool = False

    @property
    def is_constant(self) -> bool:
        """True where nothing that it reads is of an image, so that it need not be computed for each."""
        return bool(self.constant) and all(self.constant)


# A listener sees a call right after it was made and may return a tensor that takes the output's place.
Listener = Callable[[Call], Tensor | None]


# --- what is a leaf ------------------------------------------------------------------------------------------------


def where(kind: type) -> str:
    """A class by the place where it is defined, which no other class shares."""
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _leaf_class_of(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The class of LEAVES that ``kind`` computes as: itself, or one that it inherits from without a change."""
    known = next((parent for parent in kind.__mro__ if where(parent) in LEAVES), None)
    if known is None:
        return None
    mine = {name for parent in kind.__mro__[: kind.__mro__.index(known)] for name in vars(parent)}
    return None if mine & _computing(known) else known


@cache
def _computing(known: type[nn.Module]) -> frozenset[str]:
    """Names of the methods that make up what a known class computes."""
    parents = known.__mro__[: known.__mro__.index(nn.Module)]
    methods = {name for parent in parents for name, value in vars(parent).items() if isinstance(value, FunctionType)}
    return frozenset(methods - HARMLESS | {"forward", "__call__"})


def leaf_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of LEAVES that the module computes as; None for one that has to be looked into. What it has of its own
    may say that it ``computes_the_same``."""
    known = _leaf_class_of(type(module))
    if known is None:
        return None
    own = (vars(module)[name] for name in _computing(known) & vars(module).keys())
    return known if all(getattr(value, "computes_the_same", False) for value in own) else None


def has_made_weight(module: nn.Module) -> bool:
    """Whether something makes the module's weight anew for each call (a parametrisation, a mask, a norm): what is
    written into it is lost."""
    state = {*module._parameters, *module._buffers}  # pyright: ignore[reportPrivateUsage]
    return "weight" not in state and isinstance(getattr(module, "weight", None), Tensor)


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Path, module, and whether it is a leaf: every module that is called, but nothing inside of leaves and nothing
    that only makes weights. One that stands at two places comes once."""
    seen: set[nn.Module] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
        if module in seen or isinstance(module, ParametrizationList):
            return
        seen.add(module)
        is_leaf = leaf_class(module) is not None
        yield path, module, is_leaf
        if not is_leaf:
            for name, child in module.named_children():
                yield from walk(f"{path}.{name}" if path else name, child)

    return walk("", model)


def _is_last(module: nn.Module, is_leaf: bool) -> bool:
    """Whether there is no module inside of it: a leaf, or one of somebody's own. An empty container is none."""
    children = (child for child in module.children() if not isinstance(child, ParametrizationList))
    return is_leaf or (next(children, None) is None and type(module) not in (nn.Sequential, nn.ModuleList))


def leaf_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The leaves, and the modules without children that somebody wrote, with their paths; a module that stands at two
    places comes once."""
    return ((path, module) for path, module, is_leaf in parts(model) if _is_last(module, is_leaf))


SPACES: tuple[Any, ...] = (torch, F, Tensor, torch._C._nn, torch.linalg, torch.special)  # pyright: ignore


@cache
def is_of_torch(function: Any) -> bool:
    """Whether it is torch's function of that name, and no other that has the name."""
    names = (function.__name__, f"__{function.__name__}__")
    if function.__name__ == "__get__":
        return getattr(function.__self__, "__objclass__", None) in Tensor.__mro__
    return any(getattr(space, name, None) is function for space in SPACES for name in names)


def refuse_opaque(model: nn.Module, compiled: bool = True) -> None:
    """UserError, by name, for what nobody can look into. compiled: whether compiled parts are welcome."""
    for path, module in model.named_modules():
        what = None
        if isinstance(module, torch.jit.ScriptModule):
            what = "is scripted or traced (torch.jit), and nobody can look into it: use the network that it was made of"
        elif isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            what = "runs copies on several devices (DataParallel), and nobody can look into them: use its module"
        elif not compiled and (hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None)):
            what = "is compiled, and nobody can look into it: leave that to trainer.compile"
        elif any(isinstance(p, UninitializedTensorMixin) for p in module.parameters(recurse=False)):
            what = "has no weights yet (lazy): call the network once on a batch"
        if what is not None:
            raise UserError(f"{one_line(path) or 'the network'} ({type(module).__name__}) {what}")


# --- tapping -------------------------------------------------------------------------------------------------------


@contextmanager
def tap(
    model: nn.Module,
    listener: Listener,
    functional: bool = True,
    modules: Container[nn.Module] | None = None,
) -> Generator["Recorder"]:
    """Report every call of ``model`` to ``listener`` while the block runs; nothing stays attached afterwards.

    functional: report functional operations too, those made outside of leaf modules, and who produced each input. What
    returns no tensor is left out, but for a tensor that was written into; an operation that returns several (``chunk``)
    is one call for each. Each forward pass counts from index 0. modules: without ``functional`` only the calls of these
    are reported, numbered among themselves (None: ``leaf_modules``), and a call has no producers and versions. With it
    a module of somebody's own is reported function by function.
    Raises UserError for what nobody can look into, and, with ``functional``, for hooks of somebody's own that change
    what a leaf reads or returns, and for values that leave torch (``numpy()``, ``tolist()``).
    """
    refuse_opaque(model)
    with ExitStack() as stack:
        recorder = Recorder(listener, functional, model)
        for name, module, is_leaf in parts(model):
            wanted = is_leaf if functional else _is_last(module, is_leaf)
            if modules is not None and not functional:
                wanted = module in modules
            if is_leaf and functional:
                recorder.watch_hooks(name, module, stack)
                enter = module.register_forward_pre_hook(recorder.enter_leaf, prepend=True, with_kwargs=True)
                stack.callback(enter.remove)
            if wanted or (is_leaf and functional):
                leave = recorder.leave_leaf(name, leaf_class(module) or type(module), wanted, is_leaf)
                hook = module.register_forward_hook(leave, with_kwargs=True, always_call=functional and is_leaf)
                stack.callback(hook.remove)
            if functional and not is_leaf:
                begin, end = recorder.container(name)  # round its other hooks, too
                stack.callback(module.register_forward_pre_hook(begin, prepend=True).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
        stack.callback(model.register_forward_pre_hook(recorder.start, prepend=True, with_kwargs=True).remove)
        if functional:
            recorder.mode = stack.enter_context(_FunctionalCalls(recorder))
            stack.callback(recorder.resume)
        yield recorder


Place = tuple[str, int]  # a module's path, and how often it had been called before in the pass


def overwritten_calls(
    model: nn.Module,
    x: Tensor,
    functional: bool = True,
    modules: Container[nn.Module] | None = None,
) -> frozenset[Place]:
    """The calls whose output a later operation of the same pass overwrites, by their names and how often that name had
    come before: to keep it, copy it.

    x: an example batch; the others as for ``tap``. The pass runs in eval mode without gradients; the network is left as
    it was.
    """
    kept: list[tuple[Place, Tensor, int]] = []
    times: Counter[str] = Counter()

    def keep(call: Call) -> None:
        kept.append(((call.name, times[call.name]), call.output, version_of(call.output)))
        times[call.name] += 1

    with looking(model), tap(model, keep, functional, modules):
        model(x)
    return frozenset(place for place, output, version in kept if version_of(output) != version)


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


def _memory(x: Tensor) -> int:
    """Where its values lie; 0 for what has no place. UserError for what stands for another tensor."""
    try:
        return 0 if x.is_sparse or x.is_meta or x.is_nested else x.untyped_storage().data_ptr()
    except NotImplementedError as error:
        raise UserError(
            "torch.vmap hides the batch, and nobody can look into it: write the network for a batch"
        ) from error


@contextmanager
def looking(model: nn.Module) -> Generator[None]:
    """A look at a network: in evaluation mode, without gradients, compiled parts run as they were written, and nothing
    is changed by where it is called from (inference mode)."""
    # nothing can be compiled where this was never imported, which takes seconds
    eagerly = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.inference_mode(False), evaluation_mode(model), torch.no_grad(), eagerly:
        yield


def tensors_in(values: Any) -> tuple[Tensor, ...]:
    """The tensors among ``values`` and in the lists, tuples and dicts among them, in order."""
    if isinstance(values, Tensor):
        return (values,)
    if type(values) is tuple and all(isinstance(value, Tensor) for value in values):  # most calls' arguments
        return values
    return tuple(value for value in tree_leaves(values) if isinstance(value, Tensor))


def version_of(x: Tensor) -> int:
    """How often it was written into; 0 where nobody keeps count (inference mode)."""
    return 0 if x.is_inference() else x._version


def _other_than_dense(x: Tensor) -> str | None:
    """What a tensor is whose values do not lie side by side: nested, sparse_coo, ..."""
    with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (to ask is a function, too)
        if x.is_nested:
            return "nested"
        return None if x.layout == torch.strided else str(x.layout).removeprefix("torch.")


def _versions(values: Any) -> tuple[int, ...]:
    with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]  (to read a version is a function, too)
        return tuple(map(version_of, tensors_in(values)))


_MAKES_WEIGHTS = (prune.BasePruningMethod, WeightNorm, SpectralNorm)
# what these return has the shape of their input, and nothing of its values
_SHAPED_LIKE = frozenset(
    "empty_like full_like new_empty new_full new_ones new_tensor new_zeros ones_like rand_like randint_like randn_like "
    "zeros_like".split(" ")
)


# what takes all of a tensor's values where no call is seen
_LEAVES_TORCH: frozenset[Any] = frozenset({Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__})
# what takes one value; a network may decide by it, or multiply what it computes with it
_TAKES_A_NUMBER: frozenset[Any] = frozenset(
    {Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__complex__, Tensor.__format__}
)


class _Made(NamedTuple):
    """A tensor of the pass that is running: itself, the call that made it, whether it is of no image."""

    tensor: weakref.ref[Tensor]
    call: int
    constant: bool


class Recorder:
    """Turns hooks into calls, and knows where in the network the forward pass is."""

    def __init__(self, listener: Listener, trace: bool, model: nn.Module):
        self.listener = listener
        self.trace = trace
        self.state = {id(x) for x in (*model.parameters(), *model.buffers())} if trace else set[int]()
        self.next_index = 0
        self.leaves: list[tuple[int, ...]] = []  # leaf modules that are running: the versions of their inputs
        self.mode: TorchFunctionMode | None = None
        self.paused = False
        self.calling = False  # a functional operation
        self.unseen: _Unseen | None = None
        self.path: list[str] = []  # the modules that are looked into, outermost first
        self.number: tuple[str, str] | None = None  # a value of an image left torch: where, by which function
        self.made_by: dict[int, _Made] = {}  # by id(tensor)

    def start(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.next_index = 0
        self.leaves.clear()
        self.path.clear()
        self.number = None
        self.made_by.clear()
        if self.trace:
            for x in tensors_in((args, kwargs)):
                self._note(x, NETWORK_INPUT, False)

    def enter_leaf(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """No function inside of a leaf module is reported. So the mode, which costs every function there some
        microseconds, is switched off, unless the network has put another one on top of it."""
        self.leaves.append(_versions((args, kwargs) if kwargs else args))
        if len(self.leaves) == 1 and self.mode is not None and _get_current_function_mode() is self.mode:
            self.mode.__exit__(None, None, None)
            self.paused = True
        if self.unseen is not None:
            self.unseen.pause()

    def resume(self) -> None:
        if self.paused and self.mode is not None:
            self.mode.__enter__()
            self.paused = False

    def leave_leaf(self, name: str, kind: type[nn.Module], wanted: bool, is_leaf: bool) -> Callable[..., Tensor | None]:
        traced = self.trace and is_leaf
        op, activates = kind.__name__, is_leaf and kind.__name__.lower() in ACTIVATIONS

        def leave(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Tensor | None:
            try:
                return report(module, args, kwargs, output, self.leaves[-1] if traced else ()) if wanted else None
            finally:
                if traced:
                    self.leaves.pop()
                if not self.leaves:
                    self.resume()
                    if self.unseen is not None:
                        self.unseen.resume()

        def report(
            module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, versions: tuple[int, ...]
        ) -> Tensor | None:
            outputs = tensors_in(output)  # None where the module has raised
            replacement = None
            if outputs:
                inputs = tensors_in((args, kwargs) if kwargs else args)
                inplace = getattr(module, "inplace", False) is True
                replacement = self.report(
                    name, op, module, inputs, outputs[0], inplace, versions=versions, activates=activates
                )
                if self.trace:
                    for other in outputs[1:]:
                        self._note(other, self.next_index - 1, False)
            return replacement

        return leave

    def container(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        def enter(module: nn.Module, args: Any) -> None:
            self.path.append(name)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self.path:
                self.path.pop()

        return enter, leave

    def watch_hooks(self, name: str, module: nn.Module, stack: ExitStack) -> None:
        """Refuse hooks of somebody's own that change what a leaf reads or returns: nobody would see what that costs.
        Those that make its weights are a part of it, and so are those of ours that round what it returns."""
        seen: list[Any] = []

        def state(*values: Any) -> Any:
            return tuple(map(id, tensors_in(values))), _versions(values)

        def note_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append(state(args, kwargs))

        def compare_inputs(module: nn.Module, args: Any, kwargs: Any) -> None:
            refuse_other(state(args, kwargs), "a forward pre-hook", "reads")

        def note_output(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(state(output))

        def compare_output(module: nn.Module, args: Any, output: Any) -> None:
            refuse_other(state(output), "a forward hook", "returns")

        def refuse_other(now: Any, hook: str, does: str) -> None:
            if seen.pop() != now:
                raise UserError(
                    f"{hook} changes what {one_line(name) or 'the network'} {does}, and nobody sees what that costs: "
                    "make it a part of the network's forward"
                )

        hooks = module._forward_pre_hooks.values()  # pyright: ignore[reportPrivateUsage]
        if not all(isinstance(hook, _MAKES_WEIGHTS) for hook in hooks):
            stack.callback(module.register_forward_pre_hook(note_inputs, prepend=True, with_kwargs=True).remove)
            stack.callback(module.register_forward_pre_hook(compare_inputs, with_kwargs=True).remove)
        hooks = module._forward_hooks.values()  # pyright: ignore[reportPrivateUsage]
        if hooks and not any(getattr(hook, "is_part_of_module", False) for hook in hooks):
            stack.callback(module.register_forward_hook(note_output, prepend=True).remove)
            stack.callback(module.register_forward_hook(compare_output).remove)

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
        function: Any = None,
        activates: bool = False,
    ) -> Tensor | None:
        """Tell the listener; returns what it puts in the output's place."""
        producers: tuple[int, ...] = ()
        constant: tuple[bool, ...] = ()
        if self.trace:
            if (kind := _other_than_dense(output)) is not None:
                raise UserError(f"{one_line(name)} returns a {kind} tensor, which nobody counts: use dense tensors")
            if self.number is not None:
                self._refuse_made_of_numbers(name, self.number, inputs, args, kwargs)
            made = [self._producer(x) for x in inputs]
            producers = tuple(call for call, _ in made)
            constant = tuple(is_constant for _, is_constant in made)
        index = self.next_index
        call = Call(
            index=index,
            name=name,
            op=op,
            module=module,
            inputs=inputs,
            output=output,
            args=args,
            kwargs=kwargs or {},
            inplace=inplace,
            producers=producers,
            versions=versions,
            function=function,
            constant=constant,
            is_activation=activates,
        )
        self.next_index += 1
        replacement = self.listener(call)
        if self.trace:
            self._note(output if replacement is None else replacement, index, call.is_constant)
            if inplace and (base := output._base) is not None:  # a part of it was written into
                self._note(base, index, call.is_constant)
        return replacement

    def _note(self, x: Tensor, call: int, constant: bool) -> None:
        self.made_by[id(x)] = _Made(weakref.ref(x), call, constant)

    def _producer(self, x: Tensor) -> tuple[int, bool]:
        """The call that made it, and whether it is a constant, as is what nobody has made."""
        made = self.made_by.get(id(x))
        if made is None or made.tensor() is not x:
            made = None if id(x) in self.state else self._same_memory(x)
        return (NETWORK_INPUT, True) if made is None else (made.call, made.constant)

    def _refuse_made_of_numbers(
        self, name: str, number: tuple[str, str], inputs: tuple[Tensor, ...], args: Any, kwargs: Any
    ) -> None:
        """A value of an image is a Python number by now, and what looks like a constant may be made of it: a tensor
        that no call has made, or a number that goes into constants."""
        unmade = any(
            x.is_floating_point() and id(x) not in self.state and self._producer(x) == (NETWORK_INPUT, True)
            for x in inputs
        )
        numbers = any(isinstance(value, float | complex) for value in tree_leaves((args, kwargs)))
        if unmade or (numbers and self.is_constant(inputs)):
            place, taken_by = number
            raise UserError(
                f"{one_line(place) or 'the network'} takes a number of an image out of torch ({taken_by}), and "
                f"{one_line(name)} may compute with tensors that are made of it: keep it a tensor"
            )

    def is_constant(self, values: Any) -> bool:
        """Whether there are tensors among the values, and nothing of an image is known to have gone into any."""
        found = tensors_in(values)
        return bool(found) and all(self._producer(x)[1] for x in found)

    def _same_memory(self, x: Tensor) -> _Made | None:
        """Of a tensor that no call has returned: what was last made in the same memory. So another object for the same
        values is known, and what was written into by parts."""
        with torch._C.DisableTorchFunction():  # pyright: ignore[reportPrivateUsage]
            memory = _memory(x)
            for made in reversed(list(self.made_by.values())):
                other = made.tensor()
                if other is not None and memory and _memory(other) == memory:
                    self._note(x, made.call, made.constant)
                    return made
        return None

    @contextmanager
    def nothing_hidden(self) -> Generator[None]:
        """UserError, by name, where the network computes what no call shows (torch.jit functions, kernels of its own).
        It costs each operation some microseconds: for one pass."""
        self.unseen = unseen = _Unseen(self)
        try:
            with unseen:
                yield
        finally:
            self.unseen = None
        if unseen.found:
            (place, op) = unseen.found[0]
            raise UserError(
                f"{one_line(place) or 'the network'} computes {op} where nobody can look (torch.jit, or a kernel of "
                "its own): write it with torch's functions"
            )


class _Unseen(TorchDispatchMode):
    """What reaches torch's kernels outside of every call."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder
        self.found: list[tuple[str, str]] = []
        self.paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """It is never active where something is compiled, and to say so to the compiler imports it, for seconds."""
        return False

    def pause(self) -> None:
        """It costs every kernel some microseconds."""
        if not self.paused and _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)
            self.paused = True

    def resume(self) -> None:
        if self.paused:
            self.__enter__()
            self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = self.recorder
        if recorder.path and not recorder.leaves and not recorder.calling:
            name = func.overloadpacket.__name__
            if name not in _ALIASES and any(x.is_floating_point() for x in tensors_in((args, kwargs or {}))):
                self.found.append((recorder.path[-1], name))
        return func(*args, **(kwargs or {}))


_ALIASES = frozenset({"alias", "detach", "view", "view_as", "_unsafe_view", "lift_fresh"})


class _FunctionalCalls(TorchFunctionMode):
    """Reports the torch functions that the modules call that are looked into. Inside the handler the mode is off, so
    what a function or the listener calls in turn is not reported."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        if recorder.leaves or not recorder.path:
            return func(*args, **kwargs)
        if func in _LEAVES_TORCH and not recorder.is_constant(args) and args[0].is_floating_point():
            raise UserError(
                f"{one_line(recorder.path[-1]) or 'the network'} takes values of an image out of torch "
                f"({_function_name(func)}), and nobody sees what becomes of them: write it with torch's functions"
            )
        if func in _TAKES_A_NUMBER and not recorder.is_constant(args) and args[0].is_floating_point():
            recorder.number = recorder.path[-1], _function_name(func)
        if func in COMPOSITE:
            with self:
                return _looked_into(func)(*args, **kwargs)
        recorder.calling = True
        if recorder.unseen is not None:
            recorder.unseen.pause()
        try:
            return self._call(func, args, kwargs)
        finally:
            recorder.calling = False
            if recorder.unseen is not None:
                recorder.unseen.resume()

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        versions = _versions((args, _without_out(kwargs)))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            replacement = self._report(func, args, kwargs, result, versions)
            return result if replacement is None else replacement
        if isinstance(result, tuple | list) and tensors_in(result):
            outputs = [x for x in result if isinstance(x, Tensor) and x.is_floating_point()]
            replaced = {
                id(x): new for x in outputs if (new := self._report(func, args, kwargs, x, versions)) is not None
            }
            if outputs:  # indices and the like come with them
                for other in tensors_in([x for x in result if not any(x is output for output in outputs)]):
                    self.recorder._note(other, self.recorder.next_index - 1, False)  # pyright: ignore[reportPrivateUsage]
            return type(result)(replaced.get(id(r), r) for r in result) if replaced else result
        if result is None and func is Tensor.__setitem__:
            self._report(func, args, kwargs, args[0], versions)
        return result

    def _report(self, func: Any, args: Any, kwargs: Any, output: Tensor, versions: tuple[int, ...]) -> Tensor | None:
        op = _function_name(func)
        if op in _SHAPED_LIKE:
            return None
        inputs = tensors_in((args, _without_out(kwargs)))
        if not inputs:
            return None
        name = f"{self.recorder.path[-1]}:{op}".lstrip(":")
        inplace = kwargs.get("inplace") is True or any(output is x for x in inputs)
        report = self.recorder.report
        return report(name, op, None, inputs, output, inplace, tuple(args), kwargs, versions, func, _activates(func))


def _without_out(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A tensor to write into is not read."""
    return {name: value for name, value in kwargs.items() if name != "out"} if "out" in kwargs else kwargs


@cache
def _activates(function: Any) -> bool:
    return _function_name(function).lower().replace("_", "") in ACTIVATIONS and is_of_torch(function)


@cache
def _looked_into(function: FunctionType) -> FunctionType:
    """The same function, without the question at its beginning whether a mode wants to have it as a whole."""
    names = function.__globals__ | {"has_torch_function": lambda tensors: False}
    inside = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside


def _function_name(func: Any) -> str:
    """``relu`` for torch.relu and nn.functional.relu, ``add_`` for ``+=``, ``T`` for the property Tensor.T."""
    name = func.__self__.__name__ if func.__name__ == "__get__" else func.__name__
    return name.strip("_") if name.startswith("_") else name


# --- what works in place -------------------------------------------------------------------------------------------


class writes(TorchFunctionMode):
    """Calls ``before(x)`` in front of every function that overwrites x: while it is active, in this thread. What leaf
    modules do in place is seen, too. It costs every function some microseconds."""

    def __init__(self, before: Callable[[Tensor], None]):
        super().__init__()
        self.before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for x in _overwritten(func, args, kwargs):
            self.before(x)
        return func(*args, **kwargs)


def _overwritten(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterable[Tensor]:
    how = _writes(func)
    if how is None and "out" not in kwargs:
        return ()
    if "out" in kwargs:
        return tensors_in(kwargs["out"])
    inplace = how is True or kwargs.get("inplace", isinstance(how, int) and len(args) > how and args[how])
    return tensors_in(args[:1] or next(iter(kwargs.values()), ())) if inplace else ()


@cache
def _writes(func: Any) -> bool | int | None:
    """Whether a function overwrites its first argument: True, never (None), or by its argument of that number."""
    name = func.__name__
    if name == "__setitem__" or (
        name.startswith("__i") and name.endswith("__") and name not in {"__index__", "__int__", "__invert__"}
    ):
        return True
    if name.endswith("_") and not name.endswith("__"):
        return True
    if isinstance(func, FunctionType):
        parameters = [*inspect.signature(func).parameters]
        return parameters.index("inplace") if "inplace" in parameters else None
    return None
