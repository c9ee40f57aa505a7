"""One training in several processes: what they tell each other. Alone (ranks.py), nothing is sent, and everything here
gives back what it gets.

All processes do the same in the same order: a function of this file is called by all of them, or by none.
"""

import pickle
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from eat_runner.errors import one_line
from eat_runner.progress import Audience
from eat_runner.ranks import is_first, rank, world_size

T = TypeVar("T")

FAILURE = "eat_runner/failure"  # in the store
IN_ALL = "raised_in_all_processes"  # of an exception


class OtherProcessError(RuntimeError):
    """Another process of the training failed first. The message says which, and why."""


@cache
def _join() -> Any:
    """Meet the others; the store (torch.distributed.Store) that torchrun keeps for all."""
    store, number, count = next(rendezvous("env://"))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
    return store


# --- objects ---------------------------------------------------------------------------------------------------------


def together(make: Callable[[], T]) -> list[T]:
    """What ``make`` returns in each process, by rank; in there each is on its own. What it raises in one of them is
    raised in all."""
    if world_size() == 1:
        return [make()]
    _join()
    error: Exception | None = None
    made: T | None = None
    try:
        with _batches(whole=False):
            made = make()
    except Exception as raised:
        error = raised
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, (made, _sendable(error)))
    if error is not None or any(theirs is not None for _, theirs in found):
        raise _in_all(error or next(theirs for _, theirs in found if theirs is not None))
    return [made for made, _ in found]


def from_first(make: Callable[[], T]) -> T:
    """What ``make`` returns, or raises, in the first process, which alone calls it."""
    if world_size() == 1:
        return make()
    _join()
    found: list[Any] = [None, None]
    if is_first():
        try:
            found[0] = make()
        except Exception as error:
            found[1] = _sendable(error)
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise _in_all(found[1])
    return found[0]


def anyone(flag: bool) -> bool:
    """Whether it is true in some process."""
    if world_size() == 1:
        return flag
    _join()
    flags = torch.tensor([int(flag)])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def _sendable(error: Exception | None) -> Exception | None:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception with a constructor of its own
        return RuntimeError(_in_words(cast(Exception, error)))
    return error


def _in_all(error: Exception) -> Exception:
    setattr(error, IN_ALL, True)
    return error


def first_failure(error: Exception) -> Exception:
    """What ended the training: ``error``, or that of the process that failed before, which the others only see as one
    that does not answer. Says on stderr what no other process knows. Nothing can be done together afterwards."""
    if world_size() == 1 or getattr(error, IN_ALL, False):
        return error
    mine = "" if _is_of_connection(error) else f"process {rank()} of {world_size()}: {_in_words(error)}"
    try:
        first = _join().compare_set(FAILURE, "", mine).decode()
    except Exception:  # nobody keeps the store any more
        return error
    if first != mine:
        return OtherProcessError(first)
    if not mine:
        return OtherProcessError("a process of this training was killed, as the system does where memory runs out")
    if not is_first():
        Audience(sys.stderr).write(f"{mine}\n")
    return error


def _is_of_connection(error: Exception) -> bool:
    """Whether it says no more than that another process does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _in_words(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


# --- tensors ---------------------------------------------------------------------------------------------------------


def of_first(x: Tensor) -> Tensor:
    """That of the first process, in the place of x."""
    if world_size() > 1:
        _join()
        dist.broadcast(x, src=0)
    return x


def joined(x: Tensor) -> Tensor:
    """Those of all processes, one behind the other along the first dimension, on the device of x."""
    if world_size() == 1:
        return x
    return torch.cat(together(lambda: x.cpu())).to(x.device)


def mean_over_all(values: Sequence[Tensor], weight: float) -> list[Tensor]:
    """Of each value, a scalar, the mean over the processes. weight: of this process' values."""
    if world_size() == 1:
        return list(values)
    _join()
    sums = torch.stack([value.detach() for value in values]).mul_(weight / world_size())
    dist.all_reduce(sums)
    return list(sums)


def same_everywhere(model: nn.Module) -> None:
    """Give every process the first one's parameters and buffers. RuntimeError where they do not have the same."""
    if world_size() == 1:
        return
    tensors = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    shapes = together(lambda: {name: x.shape for name, x in tensors.items()})
    if any(theirs != shapes[0] for theirs in shapes):
        raise RuntimeError("the processes of this training have made different networks")
    for x in tensors.values():
        dist.broadcast(x.detach(), src=0)


# --- training --------------------------------------------------------------------------------------------------------


def data_parallel(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network whose gradients are, behind backward, the mean over the processes. A parameter that the loss does not
    depend on is welcome, the same ones in every step."""
    if world_size() == 1:
        return model
    _join()
    return DistributedDataParallel(model, static_graph=True)


@contextmanager
def whole_batches() -> Generator[None]:
    """Inside, what a training computes of a batch, it computes of those of all processes together: the statistics of
    batch norms, and ``batch_sums``. Backward belongs inside, too, which may compute a part of the network again."""
    if world_size() == 1:
        yield
        return
    _join()
    with _batches(whole=True):
        yield


def batch_sums(sums: Tensor) -> Tensor:
    """Sums over a batch, as sums over those of all processes inside ``whole_batches``. Has no gradient."""
    if not _whole:
        return sums
    sums = sums.detach().clone()
    dist.all_reduce(sums)
    return sums


_whole = False  # whether a batch is that of all processes
_batch_norm_of_torch = F.batch_norm


@contextmanager
def _batches(whole: bool) -> Generator[None]:
    before = _whole
    _set_whole(whole)
    try:
        yield
    finally:
        _set_whole(before)


def _set_whole(whole: bool) -> None:
    """torch.nn.SyncBatchNorm does it on GPUs only, and as another module, which all who look at a network would have to
    know. What takes the function's place is there in every thread of a backward pass."""
    global _whole
    _whole = whole
    F.batch_norm = _batch_norm if whole else _batch_norm_of_torch


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with the statistics of all processes' batches in one. Computed in float32, or in float64 if
    ``input`` is that."""
    if not training:
        return _batch_norm_of_torch(input, running_mean, running_var, weight, bias, training, momentum, eps)
    wide = input if input.dtype == torch.float64 else input.float()
    others = [d for d in range(input.dim()) if d != 1]
    shape = [-1 if d == 1 else 1 for d in range(input.dim())]
    here = wide.new_full((1,), input.numel() // input.shape[1])
    sums = _summed(torch.cat([wide.sum(others), here]))
    count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
    if count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {input.size()}")
    centred = wide - mean.view(shape)
    variance = _summed(centred.square().sum(others)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    y = centred * scale.view(shape)
    return (y if bias is None else y + bias.view(shape)).to(input.dtype)


def _summed(x: Tensor) -> Tensor:
    """The sum over the processes, with gradient."""
    return cast(Tensor, _Summed.apply(x))


class _Summed(torch.autograd.Function):
    """Each process' loss depends on the sum, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return cast(Tensor, _Summed.apply(grad_outputs[0]))
