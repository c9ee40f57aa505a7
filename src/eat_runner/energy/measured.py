"""A network that was measured: what is needed beside its counts to show them layer by layer. No torch."""

from dataclasses import dataclass, field, replace

from eat_runner.energy.counts import BatchCounts, Counts, LayerCounts


@dataclass(frozen=True, kw_only=True)
class Measured:
    """network: as somebody asked for it. op: its class. parameters: elements of all of them, each once.
    channels, image_size, classes: of the images that it takes and of its answer. weights, images: where they come from;
    None: random. counts: of one split. shapes: by call, of what it returns for one image. modules: classes of the
    modules that the calls lie in, by path. messages: what a person should know.
    """

    network: str
    op: str
    parameters: int
    channels: int
    image_size: int
    classes: int
    weights: str | None
    images: str | None
    counts: Counts
    shapes: dict[int, tuple[int, ...]]
    modules: dict[str, str]
    messages: tuple[str, ...] = field(default=())

    @property
    def random(self) -> str:
        """What of it is random, in words; empty where its zeros are real."""
        parts = [name for name, source in (("weights", self.weights), ("input", self.images)) if source is None]
        return " and ".join(f"random {part}" for part in parts)


def without_zeros(counts: Counts) -> Counts:
    """The counts of the same network if nothing in it were zero."""

    def dense(row: LayerCounts) -> LayerCounts:
        return replace(
            row,
            input_nonzeros=row.input_elements,
            output_nonzeros=row.output_elements,
            weight_nonzeros=row.weight_elements,
            bias_nonzeros=row.bias_elements,
            statistics_nonzeros=row.statistics_elements,
            buffer_nonzeros=row.buffer_elements,
            macs_input_nonzero=row.macs_valid,
            macs_both_nonzero=row.macs_valid,
        )

    def dense_batch(batch: BatchCounts) -> BatchCounts:
        return replace(
            batch,
            input_nonzeros=batch.input_elements,
            input_nonzeros_as_built=batch.input_elements,
            input_nonzeros_all=batch.input_elements,
            output_nonzeros=batch.output_elements,
            parameter_nonzeros=batch.parameter_elements,
            statistics_nonzeros=batch.statistics_elements,
        )

    return replace(counts, layers=[*map(dense, counts.layers)], batches=[*map(dense_batch, counts.batches)])
