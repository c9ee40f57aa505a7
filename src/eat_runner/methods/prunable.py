"""What pruning can take: the layers of a network, the batch norm behind each, and all that goes with a channel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.counts import Counts, Kind, LayerCounts
from eat_runner.errors import UserError, one_line
from eat_runner.taps import has_made_weight

# what a channel passes on its way to those that read it; a ReLU of zero is zero, and what reads it is zero anyway
PASSED = frozenset({Kind.BATCH_NORM, Kind.RELU, Kind.ACTIVATION, Kind.MAX_POOL, Kind.AVG_POOL, Kind.VIEW})
VIEWS = frozenset({"flatten", "Flatten", "Dropout", "dropout", "Dropout2d", "Identity"})  # keep channels in order
WEIGHTED = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(eq=False)
class Layer:
    """norm: the batch norm behind it, with its path, if nobody else reads its output. readers: by path, the layers that
    read its channels, where channels go as one. passed: the calls between, its own first."""

    name: str
    module: nn.Conv2d | nn.Linear
    norm: tuple[str, nn.BatchNorm1d | nn.BatchNorm2d] | None
    readers: dict[str, nn.Conv2d | nn.Linear] = field(default_factory=dict[str, nn.Conv2d | nn.Linear])
    passed: tuple[int, ...] = ()

    @property
    def weight(self) -> Tensor:
        return self.module.weight

    def magnitudes(self) -> Tensor:
        """Of the weights with the batch norm folded in: before it, their scale means nothing."""
        magnitudes = self.weight.detach().abs()
        if self.norm is None or self.norm[1].running_var is None:
            return magnitudes
        norm = self.norm[1]
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().abs()
        return magnitudes * scale.view(-1, *[1] * (magnitudes.dim() - 1))

    def channels(self, mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Everything that goes with the channels that ``mask`` (outputs,) leaves out, each with its mask."""
        norm = self.norm[1] if self.norm is not None and self.norm[1].affine else None
        yield self.weight, mask.view(-1, *[1] * (self.weight.dim() - 1))
        for vector in (self.module.bias, norm and norm.weight, norm and norm.bias):
            if vector is not None:
                yield vector, mask
        for reader in self.readers.values():
            each = reader.weight.shape[1] // len(mask)  # inputs of a linear layer behind a flattened channel
            yield reader.weight, mask.repeat_interleave(each).view(1, -1, *[1] * (reader.weight.dim() - 2))


def prunable(model: nn.Module, counts: Counts, settings: PruningConfig) -> list[Layer]:
    """The layers that are pruned, in the order of their calls. counts: of a look at the network. UserError if there
    are none."""
    rows = {row.call: row for row in counts.layers}
    modules: dict[str, nn.Module] = dict(model.named_modules())
    found: dict[str, Layer] = {}
    for row in counts.layers:
        module = modules.get(row.name)
        if row.kind in {Kind.CONV, Kind.LINEAR} and isinstance(module, WEIGHTED):
            if has_made_weight(module):
                raise UserError(
                    f"pruning: {one_line(row.name)} ({row.op}) makes its weight anew for each call, so no zero would "
                    "stay: take the parametrisation or mask off (torch.nn.utils), or leave pruning out"
                )
            reader = rows[row.consumers[0]] if len(row.consumers) == 1 else None
            behind = modules.get(reader.name) if reader is not None and reader.kind == Kind.BATCH_NORM else None
            norm = (reader.name, behind) if reader is not None and isinstance(behind, NORMS) else None
            readers, passed = _readers(row, rows, modules) if settings.by_channel else ({}, ())
            found.setdefault(row.name, Layer(row.name, module, norm, readers, passed))
    layers = list(found.values())
    kept = layers[0 if settings.first_layer else 1 : None if settings.last_layer else -1]
    if not kept:
        raise UserError(
            "pruning: only the first and the last layer have weights: set pruning.first_layer=true or "
            "pruning.last_layer=true"
        )
    if not settings.by_channel:
        return kept
    if not (whole := [layer for layer in kept if layer.readers]):
        raise UserError(
            "pruning of channels: there is none that only convolutions and linear layers read: use "
            "pruning.structure=element without pruning.channels"
        )
    return whole


def _readers(
    row: LayerCounts, rows: Mapping[int, LayerCounts], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, nn.Conv2d | nn.Linear], tuple[int, ...]]:
    """The layers that read the row's channels, if all who do are layers whose inputs are these channels, and the calls
    between, the row's own first; else none. Not of a layer with groups, or one that is called several times."""
    calls = [other.name for other in rows.values()]
    readers: dict[str, nn.Conv2d | nn.Linear] = {}
    waiting, passed = [row], list[int]()
    while waiting:
        made = waiting.pop()
        passed.append(made.call)
        if not made.consumers or made.groups > 1 or calls.count(row.name) > 1:
            return {}, ()
        for reader in (rows[call] for call in made.consumers):
            module = modules.get(reader.name)
            if reader.kind in PASSED and len(reader.producers) == 1:
                if reader.kind == Kind.VIEW and reader.op not in VIEWS:
                    return {}, ()
                waiting.append(reader)
            elif isinstance(module, WEIGHTED) and reader.groups <= 1 and calls.count(reader.name) == 1:
                readers[reader.name] = module
            else:
                return {}, ()
    return readers, tuple(passed)
