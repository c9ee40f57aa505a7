"""The meter on networks as people write them: each value worked out by hand or counted one by one."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from eat_runner.config import MeterConfig
from eat_runner.energy.counts import Counts, Kind, LayerCounts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.energy.meter import measure
from eat_runner.errors import UserError

torch.manual_seed(0)
X = torch.randn(4, 3, 8, 8)
CONV = 4 * 6 * 6 * 6 * 27  # products of a 3x3 convolution from 3 to 6 channels on X


class Calls(nn.Module):
    """A network that is one function of its input and its modules."""

    def __init__(self, function: Any, *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.parts)


def meter(model: nn.Module, *batches: Any, **config: Any) -> Counts:
    first = batches[0] if isinstance(batches[0], Tensor) else batches[0][0]
    return measure(model, batches, MeterConfig(batch_size=len(first), **config), floor=False)


def rows_of(function: Any, x: Tensor, *modules: nn.Module) -> list[LayerCounts]:
    return meter(Calls(function, *modules), x).layers


def row_of(function: Any, x: Tensor, *modules: nn.Module) -> LayerCounts:
    """The last call's."""
    return rows_of(function, x, *modules)[-1]


def macs(row: LayerCounts) -> tuple[int, int, int]:
    return row.macs_valid, row.macs_input_nonzero, row.macs_both_nonzero


def sparse(*shape: int, density: float = 0.5) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < density)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))


# --- which dimension is the images' --------------------------------------------------------------------------------


def squeezing(x: Tensor, conv: nn.Module, linear: nn.Module) -> Tensor:
    return linear(F.adaptive_max_pool2d(F.relu(conv(x)), 1).squeeze()).view(-1, 4)


@pytest.mark.parametrize("batches", [(X, X[:1]), (X[:1], X[1:2])])
def test_a_batch_of_one_image_that_is_squeezed_away(batches: tuple[Tensor, ...]) -> None:
    conv, linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
    row = next(row for row in meter(Calls(squeezing, conv, linear), *batches).layers if row.op == "Linear")
    with torch.no_grad():
        features = [F.relu(conv(x)).amax((2, 3)) for x in batches]
    images = sum(len(x) for x in batches)
    assert macs(row)[0] == images * 6 * 4
    assert macs(row)[1:] == (4 * sum(int((x != 0).sum()) for x in features),) * 2


def test_an_image_without_a_batch_dimension_in_a_convolution() -> None:
    conv = nn.Conv2d(3, 2, 1)
    row = row_of(lambda x, conv: conv(x[0]), X[:1].relu(), conv)
    assert macs(row) == (64 * 3 * 2, *(2 * int((X[0] > 0).sum()),) * 2)


def test_batches_of_another_image_size_are_counted_apart() -> None:
    conv = nn.Conv2d(3, 2, 3, padding=1)
    small, large = X[:, :, :4, :4].relu(), X.relu()
    [row] = meter(nn.Sequential(conv), large, small).layers
    apart = [meter(nn.Sequential(conv), x).layers[0] for x in (large, small)]
    assert macs(row) == tuple(map(sum, zip(*map(macs, apart), strict=True)))


def test_images_folded_into_other_dimensions() -> None:
    x = sparse(4, 5, 6)
    linear = nn.Linear(6, 3)
    expected = (4 * 5 * 6 * 3, *(3 * int((x != 0).sum()),) * 2)
    for fold in (lambda x: x.transpose(0, 1), lambda x: x.flatten(0, 1), lambda x: x.unsqueeze(0), lambda x: x):
        assert macs(row_of(lambda x, linear, fold=fold: linear(fold(x)), x, linear)) == expected


# --- what is no pure re-arrangement is counted ---------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "dropout in training": lambda x: F.dropout(x, 0.9),
    "dropout2d in training": lambda x: F.dropout2d(x, 0.5, training=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "repeat": lambda x: x[:, :1].repeat(1, 3, 1, 1),
    "tile": lambda x: x[:, :1].tile(1, 3, 1, 1),
    "repeat_interleave": lambda x: x[:, 1:2].repeat_interleave(3, 1),
    "broadcast_to": lambda x: torch.broadcast_to(x[:, :1], x.shape),
    "pad": lambda x: F.pad(x, (1, 1)),
    "pad with a value": lambda x: F.pad(x[..., 1:], (1, 0), value=2.0),
    "reflect": lambda x: F.pad(x[..., 1:], (1, 0, 0, 0), mode="reflect"),
    "circular": lambda x: F.pad(x[..., 2:], (1, 1, 0, 0), mode="circular"),
    "crop and pad": lambda x: F.pad(x, (-1, 1)),
    "index_select": lambda x: x.index_select(1, torch.tensor([0, 0, 1])),
    "index": lambda x: x[:, [0, 0, 1]],
    "gather": lambda x: x.gather(1, torch.zeros_like(x, dtype=torch.long)),
    "masked_fill": lambda x: x.masked_fill(x > 1, 0.0),
    "masked_fill_": lambda x: x.clone().masked_fill_(x > 1, 0.0),
    "where": lambda x: torch.where(x > 1, x, 0.0),
    "where, of two": lambda x: torch.where(x > 1, x, x.flip(3)),
    "tril": lambda x: x.tril(),
    "unfold": lambda x: F.unfold(x, 3, padding=1),
    "Tensor.unfold": lambda x: x.unfold(3, 3, 1),
    "narrow": lambda x: x.narrow(1, 0, 2),
    "select": lambda x: x.select(1, 0),
    "chunk": lambda x: x.chunk(3, 1)[2],
    "split": lambda x: x.split([1, 2], 1)[1],
    "unbind": lambda x: x.unbind(1)[0],
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "stack": lambda x: torch.stack([x, x], 1),
    "cat": lambda x: torch.cat([x, x[:, :1]], 1),
    "cat with zeros": lambda x: torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1),
    "movedim": lambda x: x.movedim(1, 3),
    "mT": lambda x: x.mT,
    "ravel": lambda x: x.ravel(),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "clamp": lambda x: x.clamp(-0.5, 0.0),
    "clamp_": lambda x: x.clone().clamp_(min=0.5),
    "maximum": lambda x: torch.maximum(x, x.flip(3)),
    "max": lambda x: x.max(1).values,
    "amax": lambda x: x.amax((2, 3)),
    "sum": lambda x: x.sum(1),
    "cumsum": lambda x: x.cumsum(3),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "double and back": lambda x: x.double().float(),
    "to half": lambda x: (x * 1e-6).half(),
    "pow": lambda x: x**2,
    "neg": lambda x: -x,
    "abs": lambda x: x.abs(),
    "normalize": lambda x: F.normalize(x, dim=1),
    "norm": lambda x: x.norm(dim=1),
    "detach": lambda x: x.detach(),
    "item written": lambda x: _written(x),
    "half written through a view": lambda x: _half_written(x),
    "new tensor written": lambda x: _filled(x),
}


def _written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 0] = 0.0
    return x


def _half_written(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1:].mul_(0.0)
    return x


def _filled(x: Tensor) -> Tensor:
    new = x.new_zeros(x.shape)
    new[:, 1:] = x[:, :-1]
    new.narrow(1, 0, 1).copy_(x[:, 2:])
    return new


@pytest.mark.parametrize("name", CHANGES)
def test_zeros_of_whatever_comes_out_are_counted(name: str) -> None:
    """The reader's products tell: a linear layer, as wide as what it reads."""
    change, x = CHANGES[name], sparse(4, 3, 8, 8)
    torch.manual_seed(1)
    changed = change(x).float().reshape(4, -1)
    linear = nn.Linear(changed.shape[1], 2)
    torch.manual_seed(1)
    rows = meter(Calls(lambda x, linear: linear(change(x).float().reshape(4, -1)), linear), x).layers
    assert rows[-1].input_nonzeros == int((changed.abs() > 2.0**-126).sum())
    assert macs(rows[-1])[1] == 2 * rows[-1].input_nonzeros
    assert all(row.kind != Kind.UNKNOWN for row in rows)


def test_dropout_that_drops_in_evaluation_is_counted() -> None:
    relu, dropped = rows_of(lambda x: F.dropout(F.relu(x), 0.9), X)
    assert dropped.output_nonzeros < relu.output_nonzeros / 2


# --- what a leaf is ------------------------------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Padded(nn.Conv2d):
    """Changes what the class's own forward calls."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(F.pad(input, (2, 2, 2, 2)), weight, bias)


Standardised.__name__ = Standardised.__qualname__ = "Conv2d"


def test_a_class_that_is_only_called_like_a_layer_is_looked_into() -> None:
    conv = Standardised(3, 6, 3)
    with torch.no_grad():
        conv.weight[:, :2] = 0.0
    x = torch.ones(4, 3, 8, 8)
    row = meter(nn.Sequential(conv), x).layers[-1]
    assert (row.name, macs(row)) == ("0:conv2d", (CONV,) * 3)
    assert (row.weight_elements, row.weight_nonzeros, row.bias_elements) == (162, 162, 6)


def test_a_class_that_changes_a_part_of_a_layer_is_looked_into() -> None:
    rows = meter(nn.Sequential(Padded(3, 6, 3)), X).layers
    # every value of the padded image is read, the zeros around it too
    assert (rows[0].op, macs(rows[-1])[0]) == ("pad", 4 * 10 * 10 * 6 * 27)


def test_a_forward_that_was_put_onto_a_layer_is_looked_into() -> None:
    model = network()
    conv = model[0]
    conv.forward = lambda x: F.conv2d(x, conv.weight[:, :, 1:2, 1:2])
    model[3] = nn.Linear(6 * 64, 4)
    assert macs(meter(model, X).layers[1])[0] == 4 * 6 * 64 * 3


def test_a_subclass_that_computes_as_its_parent_is_a_leaf() -> None:
    class Mine(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 6, 3)

    [row] = meter(nn.Sequential(Mine()), X).layers
    assert (row.op, macs(row)) == ("Conv2d", (CONV,) * 3)


def test_a_linear_layer_of_ones_own() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(5, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t()

    x = sparse(4, 8)
    row = meter(nn.Sequential(Linear()), x).layers[-1]
    assert macs(row) == (4 * 5 * 8, 5 * int((x != 0).sum()), int((x[:, :5] != 0).sum()))
    assert (row.kind, row.weight_elements, row.weight_nonzeros) == (Kind.LINEAR, 40, 5)


def masked(conv: nn.Module) -> None:
    prune.custom_from_mask(conv, "weight", torch.arange(162).reshape(6, 3, 3, 3) % 3 == 0)


MADE: dict[str, tuple[Any, int]] = {  # how, and how many weights of 162 are not zero
    "weight_norm": (parametrizations.weight_norm, 162),
    "spectral_norm": (parametrizations.spectral_norm, 162),
    "older weight_norm": (weight_norm, 162),
    "older spectral_norm": (spectral_norm, 162),
    "pruned": (masked, 54),
    "pruned for good": (lambda conv: (masked(conv), prune.remove(conv, "weight")), 54),
    "pruned twice": (lambda conv: (masked(conv), prune.l1_unstructured(conv, "weight", 27)), 27),
    "pruned by channels": (lambda conv: prune.ln_structured(conv, "weight", 2, 2, 0), 4 * 27),
    "pruned, identity": (lambda conv: prune.identity(conv, "weight"), 162),
    "pruned bias": (lambda conv: prune.l1_unstructured(conv, "bias", 3), 162),
    "pruned and normed": (lambda conv: (masked(conv), prune.remove(conv, "weight"), weight_norm(conv)), 54),
    "orthogonal": (parametrizations.orthogonal, 162),
}


@pytest.mark.parametrize("how", MADE)
def test_a_layer_whose_weight_is_made_is_the_same_layer(how: str) -> None:
    model = network()
    make, nonzeros = MADE[how]
    torch.manual_seed(2)
    make(model[0])
    x = torch.ones_like(X)
    model.eval()(x)
    conv = meter(model, x).layers[0]
    assert (conv.name, conv.op, macs(conv)) == ("0", "Conv2d", (CONV, CONV, CONV * nonzeros // 162))
    assert (conv.weight_elements, conv.weight_nonzeros, conv.bias_elements, conv.buffer_elements) == (
        162,
        nonzeros,
        6,
        0,
    )
    assert conv.bias_nonzeros == (3 if how == "pruned bias" else 6)


def test_a_pruned_network_costs_less() -> None:
    model = network()
    hardware = load_hardware("fused_7nm_int8")
    before = estimate(meter(model, X), hardware).energy_uj_per_image
    masked(model[0])
    after = estimate(meter(model, X), hardware)
    assert after.energy_uj_per_image < before
    assert after.stored_weight_bytes is not None


def test_a_lazy_layer_counts_once_it_has_weights() -> None:
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d())
    with pytest.raises(UserError, match=r"^0 \(LazyConv2d\) has no weights yet \(lazy\): call the network once"):
        meter(model, X)
    model(X)
    assert [(row.op, row.macs_valid) for row in meter(model, X).layers] == [("Conv2d", CONV), ("BatchNorm2d", 0)]


def test_an_empty_container_is_nothing() -> None:
    rows = meter(nn.Sequential(nn.Sequential(), nn.Conv2d(3, 6, 3), nn.Sequential(nn.Sequential())), X).layers
    assert [(row.op, row.producers) for row in rows] == [("Conv2d", (-1,))]


# --- what nobody can look into -------------------------------------------------------------------------------------


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return torch.relu(x) * 2.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: torch.jit.trace(network(), X), r"^the network \(TopLevelTracedModule\) is scripted or traced"),
        (lambda: torch.jit.script(network()), r"^the network \(RecursiveScriptModule\) is scripted or traced"),
        (lambda: nn.Sequential(nn.ReLU(), torch.jit.script(network())), r"^1 \(RecursiveScriptModule\) is scripted"),
        (
            lambda: Calls(lambda x, conv: scripted(conv(x)), nn.Conv2d(3, 6, 3)),
            r"^the network computes relu where no",
        ),
    ],
)
def test_scripted_networks_are_refused_by_name(model: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        meter(model(), X)


def test_vmap_is_refused() -> None:
    with pytest.raises(UserError, match=r"^torch\.vmap hides the batch"):
        meter(Calls(lambda x, conv: torch.vmap(conv)(x), nn.Conv2d(3, 6, 3)), X)


LEAVING: dict[str, Callable[[Tensor], Tensor]] = {
    "numpy": lambda x: torch.from_numpy(x.numpy() * 2.0),
    "array": lambda x: torch.as_tensor(np.asarray(x) * 2.0),
    "tolist": lambda x: torch.tensor(x.tolist()),
    "dlpack": torch.from_dlpack,
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("how", LEAVING)
def test_values_that_leave_torch_are_refused(how: str, mixed: bool) -> None:
    def through(x: Tensor, conv: nn.Module, last: nn.Module) -> Tensor:
        y = conv(x)
        back = LEAVING[how](y)
        return last(y + back if mixed else back)

    with pytest.raises(UserError, match=rf"^the network takes values of an image out of torch \(.*{how}"):
        meter(Calls(through, nn.Conv2d(3, 6, 3), nn.ReLU()), X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda y: y.to_sparse().to_dense(), r"^to_sparse returns a sparse_coo tensor"),
        (lambda y: y.flatten(1).to_sparse_csr().to_dense(), r"^to_sparse_csr returns a sparse_csr tensor"),
        (lambda y: torch.nested.as_nested_tensor([*y]).to_padded_tensor(0.0), r" returns a nested tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        meter(Calls(lambda x, conv: function(conv(x)), nn.Conv2d(3, 6, 3)), X)


def test_a_network_that_is_made_of_single_numbers_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the network returns what no call has made of the images"):
        meter(Calls(lambda x, conv: torch.tensor([v.item() for v in conv(x)[:, 0, 0, 0]]), nn.Conv2d(3, 6, 3)), X)


# each takes a number of an image and computes with a tensor that is made of it beside one that is not
NUMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tensor": lambda y, weight: y @ torch.tensor([[y.mean().item()]] * 216),
    "Tensor": lambda y, weight: y @ torch.Tensor([[float(y.mean())]] * 216),
    "from numpy": lambda y, weight: y @ torch.from_numpy(np.full((216, 2), y[0, 0].item(), dtype=np.float32)),
    "full": lambda y, weight: y @ torch.full((216, 2), y[0, 0].item()),
    "new_full": lambda y, weight: y @ y.new_full((216, 2), y.sum().item()),
    "filled": lambda y, weight: y @ torch.empty(216, 2).fill_(y.sum().item()),
    "whole": lambda y, weight: y @ torch.full((216, 2), int(y.sum()), dtype=y.dtype),
    "text": lambda y, weight: y @ torch.full((216, 2), float(f"{y.sum():.3f}")),
    "scaled weight": lambda y, weight: nn.functional.linear(y[:, :27], weight.flatten(1) * y.std().item()),
    "set": lambda y, weight: nn.functional.linear(y[:, :27], weight.flatten(1).clone().fill_(math.sqrt(y.std()))),
}


@pytest.mark.parametrize("how", NUMBERS)
def test_tensors_made_of_a_number_of_an_image_are_refused(how: str) -> None:
    model = Calls(lambda x, conv: NUMBERS[how](conv(x).flatten(1), conv.weight), nn.Conv2d(3, 6, 3))
    with pytest.raises(UserError, match=r"^the network takes a number of an image out of torch \(.* keep it a tensor"):
        meter(model, X)


def test_a_network_may_decide_by_a_number_of_an_image_and_multiply_with_it() -> None:
    def decides(x: Tensor, conv: nn.Module, last: nn.Module) -> Tensor:
        y = conv(x)
        scale = y.abs().max().item()
        weight = torch.ones(6, 216) if scale > 1e9 else last.weight
        return nn.functional.linear((y * (2.0 if bool(y.mean() > 0) else scale)).flatten(1), weight, last.bias)

    model = Calls(decides, nn.Conv2d(3, 6, 3), nn.Linear(216, 4))
    assert [row.macs_dense for row in meter(model, X).layers if row.macs_dense] == [CONV, 4 * 216 * 4]


def test_values_of_parameters_may_leave_torch() -> None:
    model = Calls(lambda x, conv: conv(x) * float(conv.bias.numpy().sum()), nn.Conv2d(3, 6, 3))
    assert [row.op for row in meter(model, X).layers] == ["Conv2d", "mul"]


def test_what_is_compiled_in_a_network_is_run_as_it_was_written() -> None:
    model, expected = network(), meter(network(), X)
    model[0] = torch.compile(model[0], backend="eager")
    model[3].compile(backend="eager")
    model(X)
    found = meter(model, X).layers
    assert [(row.op, row.macs_valid) for row in found] == [(row.op, row.macs_valid) for row in expected.layers]


def test_data_parallel_is_looked_into() -> None:
    assert [row.macs_dense for row in meter(nn.DataParallel(network()), X).layers] == [CONV, 0, 0, 4 * 216 * 4]


def test_a_hook_that_changes_what_a_layer_reads_is_refused() -> None:
    model = network()
    model[3].register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))
    with pytest.raises(UserError, match=r"^a forward pre-hook changes what 3 reads"):
        meter(model, X)


def test_a_hook_that_changes_what_a_layer_returns_is_refused() -> None:
    for hook in (lambda module, args, output: output.relu(), lambda module, args, output: output.mul_(2.0)):
        model = network()
        model[0].register_forward_hook(hook)
        with pytest.raises(UserError, match=r"^a forward hook changes what 0 returns"):
            meter(model, X)


def test_hooks_of_what_is_looked_into_are_counted() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 3)), nn.ReLU())
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2.0,))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))
    model[0].register_forward_hook(lambda module, args, output: output.tanh())
    model.register_forward_hook(lambda module, args, output: output.abs())
    assert [row.op for row in meter(model, X).layers] == ["mul", "add", "Conv2d", "tanh", "ReLU", "abs"]


def test_a_hook_that_only_looks_is_welcome() -> None:
    model, seen = network(), []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0].abs().mean()))
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.abs().mean()))
    assert meter(model, X).layers == meter(network_like(model), X).layers
    assert len(seen) == 2


def network_like(model: nn.Module) -> nn.Module:
    same = network()
    same.load_state_dict(model.state_dict())
    return same


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_is_the_part_that_it_holds(reentrant: bool) -> None:
    model = network()

    def checkpointed(x: Tensor, *layers: nn.Module) -> Tensor:
        part = nn.Sequential(*layers[:2])
        return layers[3](layers[2](checkpoint(part, x, use_reentrant=reentrant)))

    found = meter(Calls(checkpointed, *model), X).layers
    assert [(macs(row), row.output_nonzeros, row.producers) for row in found] == [
        (macs(row), row.output_nonzeros, row.producers) for row in meter(model, X).layers
    ]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2.0


class Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def test_functions_with_a_backward_of_their_own_are_looked_into() -> None:
    rows = rows_of(lambda x, relu: relu(Passed.apply(Doubled.apply(x))), X, nn.ReLU())
    assert [row.op for row in rows if row.kind != Kind.VIEW] == ["mul", "ReLU"]
    assert rows[-1].producers != (-1,)


# --- batches and where they come from ------------------------------------------------------------------------------


def test_batches_as_a_data_loader_gives_them() -> None:
    model = network()
    assert meter(model, (X, torch.zeros(4)), [X, torch.zeros(4)]) == meter(model, X, X)
    with pytest.raises(UserError, match="a batch is a tensor of images, or a tuple that begins with one, not dict"):
        measure(model, [{"image": X}], MeterConfig(batch_size=4))


def test_inside_inference_mode() -> None:
    model = network()
    expected = meter(model, X)
    with torch.inference_mode():
        assert meter(model, X) == expected
        assert meter(model, X.clone()) == expected
        made_here = network_like(model)
        assert meter(made_here, X.clone()).layers == expected.layers


# --- what is of no image -------------------------------------------------------------------------------------------


class Weighted(nn.Module):
    """The sum of two tensors with weights that are rectified (BiFPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([1.0, -1.0]))
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        x = self.conv(x)
        return weights[0] * x + weights[1] * F.relu(x)


def test_what_is_made_of_parameters_alone_is_a_weight() -> None:
    counts = meter(Weighted(), X, X[:2])
    rows = {(row.op, row.kind): row for row in counts.layers}
    assert {op for op, kind in rows if kind == Kind.CONSTANT} == {"relu", "sum", "add", "div", "getitem"}
    assert counts.firing_rate == rows["relu", Kind.RELU].output_nonzeros / (6 * 216)
    products = [row for row in counts.layers if row.op == "mul"]
    assert [(row.input_elements, row.weight_elements, row.weight_nonzeros) for row in products] == [
        (6 * 216, 1, 1),
        (6 * 216, 1, 0),
    ]
    assert [row.output_nonzeros for row in products] == [6 * 216, 0]
    energy = estimate(counts, load_hardware("fused_7nm_int8"))
    assert {layer.name for layer in energy.layers} == {"conv", "relu", "mul", "add"}


def test_a_token_that_is_repeated_for_each_image_is_stored_once() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.ones(1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.token.expand(len(x), -1, -1), self.token.repeat(len(x), 1, 1), x], 1)

    row = meter(Token(), torch.zeros(4, 5, 6)).layers[-1]
    assert (row.op, row.weight_elements, row.input_elements, row.output_nonzeros) == ("cat", 12, 120, 48)


# --- products of two tensors of an image ---------------------------------------------------------------------------


def naive(pairs: Any) -> tuple[int, int, int]:
    products = [(bool(left != 0), bool(right != 0)) for left, right in pairs]
    return len(products), sum(left for left, _ in products), sum(left and right for left, right in products)


def naive_matmul(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """One by one; (…, m, k) x (…, k, n)."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*batch, *a.shape[-2:]).flatten(0, -3), b.expand(*batch, *b.shape[-2:]).flatten(0, -3)
    sizes = (len(a), a.shape[1], a.shape[2], b.shape[2])
    return naive((a[i, m, k], b[i, k, n]) for i, m, k, n in itertools.product(*map(range, sizes)))


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:]


TWO: dict[str, tuple[Any, Any]] = {  # the product, and its operands as (…, m, k) and (…, k, n)
    "matmul": (lambda a, b: torch.matmul(a, b.mT), lambda a, b: (a, b.mT)),
    "@": (lambda a, b: a @ b.mT, lambda a, b: (a, b.mT)),
    "Tensor.matmul": (lambda a, b: a.matmul(b.transpose(-2, -1)), lambda a, b: (a, b.mT)),
    "broadcast": (lambda a, b: a @ b[:, :1].mT, lambda a, b: (a, b[:, :1].mT)),
    "broadcast, fewer dimensions": (lambda a, b: a @ b[0, 0].mT, lambda a, b: (a, b[0, 0].mT[None, None])),
    "bmm": (
        lambda a, b: torch.bmm(a.flatten(0, 1), b.flatten(0, 1).mT),
        lambda a, b: (a.flatten(0, 1), b.flatten(0, 1).mT),
    ),
    "baddbmm": (
        lambda a, b: torch.baddbmm(torch.zeros(1), a.flatten(0, 1), b.flatten(0, 1).mT),
        lambda a, b: (a.flatten(0, 1), b.flatten(0, 1).mT),
    ),
    "mm": (lambda a, b: torch.mm(a[0, 0], b[0, 0].mT), lambda a, b: (a[0, :1], b[0, :1].mT)),
    "mv": (lambda a, b: torch.mv(a[0, 0], b[0, 0, 0]), lambda a, b: (a[0, :1], b[0, :1, :1].mT)),
    "matrix and vector": (lambda a, b: a @ b[0, 0, 0], lambda a, b: (a, b[:1, :1, :1].mT)),
    "vector and matrix": (lambda a, b: a[0, 0, 0] @ b.mT, lambda a, b: (a[:1, :1, :1], b.mT)),
    "einsum": (lambda a, b: torch.einsum("bhqd,bhkd->bhqk", a, b), lambda a, b: (a, b.mT)),
    "einsum, dots": (lambda a, b: torch.einsum("...qd,...kd->...qk", a, b), lambda a, b: (a, b.mT)),
    "einsum, as a list": (lambda a, b: torch.einsum("bhqd,bhkd->bhqk", [a, b]), lambda a, b: (a, b.mT)),
    "einsum, implicit": (lambda a, b: torch.einsum("bhqd,bhkd", a, b[:, :, :, :]), None),
    "linear": (lambda a, b: F.linear(a, b[0, 0]), lambda a, b: (a, b[:1, :1].mT)),
}


@pytest.mark.parametrize("name", TWO)
def test_products_of_two_activations_one_by_one(name: str) -> None:
    x = sparse(3, 4, 5, 6)
    product, operands = TWO[name]
    rows = rows_of(lambda x: product(*halves(x)), x)
    [row] = [row for row in rows if row.macs_dense]
    if operands is None:  # "bhqd,bhkd" without a result: the names that stand once, so b, h and d are summed
        a, b = halves(x)
        assert macs(row) == naive_matmul(
            a.transpose(2, 3).flatten(0, 2).mT[None], b.transpose(2, 3).flatten(0, 2)[None]
        )
    else:
        assert macs(row) == naive_matmul(*operands(*halves(x)))
    assert (row.kind, row.weight_elements, row.macs_dense) == (Kind.LINEAR, 0, row.macs_valid)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> tuple[int, int, int]:
    scores = (q.double() @ k.double().mT / math.sqrt(q.shape[-1])).masked_fill(~allowed, -math.inf)
    return tuple(map(sum, zip(naive_matmul(q, k.mT), naive_matmul(scores.softmax(-1), v), strict=True)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_counts_the_products_of_scores_and_of_values(causal: bool) -> None:
    x = sparse(2, 3, 5, 12)
    q, k, v = x[..., :4], x[..., 4:8], x[..., 8:]
    row = row_of(lambda x: F.scaled_dot_product_attention(*x.split(4, -1), is_causal=causal), x)
    allowed = torch.ones(5, 5, dtype=torch.bool)
    assert macs(row) == naive_attention(q, k, v, allowed.tril() if causal else allowed)
    assert (row.op, row.kind, row.macs_dense) == ("scaled_dot_product_attention", Kind.LINEAR, 2 * 2 * 3 * 5 * 5 * 4)
    assert row.inner_elements == 2 * 3 * 5 * 5


def test_attention_with_a_mask_and_shared_heads() -> None:
    x = sparse(2, 4, 5, 4)
    mask = torch.rand(5, 5) < 0.7
    mask.fill_diagonal_(True)
    row = row_of(lambda x: F.scaled_dot_product_attention(x, x[:, :2], x[:, 2:], mask, enable_gqa=True), x)
    shared = [x[:, :2].repeat_interleave(2, 1), x[:, 2:].repeat_interleave(2, 1)]
    assert macs(row) == naive_attention(x, *shared, mask)


@pytest.mark.parametrize("needs_weights", [False, True])
def test_multi_head_attention_is_its_parts(needs_weights: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    rows = rows_of(lambda x, m: m(x, x, x, need_weights=needs_weights)[0], x, attention)
    # in: 3 x 8 x 8 weights for each of 15 tokens; scores and values: 2 heads of 4, 5 x 5; out: 8 x 8
    assert sum(row.macs_valid for row in rows) == 15 * 3 * 64 + 2 * (3 * 2 * 5 * 5 * 4) + 15 * 64
    assert sum(row.weight_elements for row in rows) == 4 * 64
    assert sum(row.bias_elements for row in rows) == 4 * 8


def test_published_has_never_seen_products_of_functions() -> None:
    model, hardware = Calls(lambda x: x @ x.mT), load_hardware("published")
    x = torch.randn(100, 2, 3)
    with pytest.raises(UserError, match="hardware published never saw the products of matmul: use hardware"):
        estimate(meter(model, x), hardware)
    model = Calls(lambda x, linear: linear(x) @ x.mT, nn.Linear(3, 3))
    left_out = estimate(meter(model, x, ignore_uncounted=True), hardware)
    only = estimate(meter(nn.Sequential(nn.Linear(3, 3)), x), hardware)
    assert left_out.dense_uj_per_image == pytest.approx(only.dense_uj_per_image)


def test_the_price_of_a_product_of_two_activations_by_hand() -> None:
    hardware = load_hardware("fused_7nm_int8")
    x = torch.ones(1, 2, 3)
    counts = meter(Calls(lambda x, a, b: a(x) @ b(x).mT, nn.ReLU(), nn.Hardtanh()), x)
    layer = estimate(counts, hardware).layers[-1]
    one = hardware.operations(0)
    # 12 products; both operands of 6 values are read from the buffer, 4 results written
    products = 12 * (one.multiply_pj + one.accumulate_pj + hardware.register_pj_per_mac)
    assert layer.dense_pj == pytest.approx(products + (6 + 6 + 4) * hardware.bits * hardware.buffer_pj_per_bit)


# --- the other layers ----------------------------------------------------------------------------------------------


def naive_conv1d(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> tuple[int, int, int]:
    images, _, length = x.shape
    outputs, inputs, kernel = weight.shape
    places = range((length + 2 * padding - kernel) // stride + 1)
    pairs = []
    for image, o, place, i, k in itertools.product(range(images), range(outputs), places, range(inputs), range(kernel)):
        at = place * stride - padding + k
        if 0 <= at < length:
            pairs.append((x[image, o // (outputs // groups) * inputs + i, at], weight[o, i, k]))
    return naive(pairs)


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 1, 4)])
def test_products_of_convolutions_in_one_and_three_dimensions(stride: int, padding: int, groups: int) -> None:
    x, weight = sparse(3, 4, 9), sparse(8, 4 // groups, 3)
    expected = naive_conv1d(x, weight, stride, padding, groups)
    one = nn.Conv1d(4, 8, 3, stride, padding, groups=groups)
    three = nn.Conv3d(4, 8, (3, 1, 1), (stride, 1, 1), (padding, 0, 0), groups=groups)
    with torch.no_grad():
        one.weight.copy_(weight)
        three.weight.copy_(weight[..., None, None])

    def as_image(x: Tensor) -> Tensor:
        return x[..., None, None]

    def as_row(x: Tensor) -> Tensor:
        return x[:, :, None]

    found = [
        row_of(lambda x, conv: conv(x), x, one),
        row_of(lambda x, conv: conv(as_image(x)), x, three),
        row_of(lambda x: F.conv1d(x, weight, None, stride, padding, groups=groups), x),
        row_of(
            lambda x: F.conv2d(
                x[:, :, None], weight[:, :, None], stride=(1, stride), padding=(0, padding), groups=groups
            ),
            x,
        ),
        row_of(lambda x: F.conv3d(as_image(x), as_image(weight), None, (stride, 1, 1), (padding, 0, 0), 1, groups), x),
    ]
    assert [macs(row) for row in found] == [expected] * 5
    outputs = (9 + 2 * padding - 3) // stride + 1
    assert {row.macs_dense for row in found} == {3 * 8 * outputs * 4 // groups * 3}
    assert {(row.weight_elements, row.weight_nonzeros) for row in found} == {(weight.numel(), int((weight != 0).sum()))}


def naive_transposed(x: Tensor, weight: Tensor, stride: int, padding: int, extra: int) -> tuple[int, int, int]:
    images, channels, length = x.shape
    _, outputs, kernel = weight.shape
    width = (length - 1) * stride - 2 * padding + kernel + extra
    return naive(
        (x[image, i, at], weight[i, o, k])
        for image, i, at, o, k in itertools.product(*map(range, (images, channels, length, outputs, kernel)))
        if 0 <= at * stride - padding + k < width
    )


@pytest.mark.parametrize(
    ("stride", "padding", "extra", "groups"), [(1, 0, 0, 1), (2, 1, 1, 1), (2, 1, 0, 2), (3, 2, 2, 4)]
)
def test_products_of_transposed_convolutions(stride: int, padding: int, extra: int, groups: int) -> None:
    x, weight = sparse(3, 4, 5), sparse(4, 2, 3)
    expected = naive_transposed(x, weight, stride, padding, extra)
    one = nn.ConvTranspose1d(4, 2 * groups, 3, stride, padding, extra, groups)
    two = nn.ConvTranspose2d(4, 2 * groups, (1, 3), (1, stride), (0, padding), (0, extra), groups)
    with torch.no_grad():
        one.weight.copy_(weight)
        two.weight.copy_(weight[:, :, None])
    found = [
        row_of(lambda x, conv: conv(x), x, one),
        row_of(lambda x, conv: conv(x[:, :, None]), x, two),
        row_of(lambda x: F.conv_transpose1d(x, weight, None, stride, padding, extra, groups), x),
    ]
    assert [macs(row) for row in found] == [expected] * 3
    assert {row.macs_dense for row in found} == {3 * 5 * 4 * 2 * 3}


def test_a_weight_that_depends_on_the_image() -> None:
    x = sparse(1, 2, 5, 5)
    row = row_of(lambda x: F.conv2d(x, x[:, :, :3, :3]), x)
    pairs = [
        (x[0, i, h + a, w + b], x[0, i, a, b])
        for i, h, w, a, b in itertools.product(range(2), range(3), range(3), range(3), range(3))
    ]
    assert (macs(row), row.weight_elements) == (naive(pairs), 0)


def test_normalisation_as_a_function_is_the_module() -> None:
    norm = nn.BatchNorm2d(3)
    arguments = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    module = row_of(lambda x, norm: norm(x), X, norm)
    called = row_of(lambda x: F.batch_norm(x, *arguments), X)
    for name in ("kind", "weight_elements", "weight_nonzeros", "bias_elements", "statistics_elements"):
        assert getattr(module, name) == getattr(called, name)
    assert row_of(lambda x: F.batch_norm(x, None, None, training=True), X).kind == Kind.LAYER_NORM
    layer = row_of(lambda x: F.layer_norm(x, (8,), torch.ones(8), torch.zeros(8)), X)
    assert (layer.kind, layer.weight_elements, layer.bias_elements, layer.bias_nonzeros) == (Kind.LAYER_NORM, 8, 8, 0)
    assert row_of(lambda x: F.group_norm(x, 3), X).kind == Kind.LAYER_NORM
    assert row_of(lambda x, norm: norm(x), X, nn.RMSNorm(8)).kind == Kind.LAYER_NORM
