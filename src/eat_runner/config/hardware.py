"""The config group ``hardware``: price lists. Every price has its unit in its name and a line in ``source``.

A schema for each rule of energy/rules/, under the rule's name in SCHEMAS. A key that comes when there are runs already
is marked ``later``: they keep their ids (config/identity.py). Nobody asks which schema a hardware has: what
all have is in HardwareConfig, everything else is the rule's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any, ClassVar, Protocol, cast

from eat_runner.config.checks import above, at_least, between, one_of
from eat_runner.errors import UserError

INPLACE = ("as_built", "all", "none")
FORMATS = ("auto", "bitmask", "run_length", "dense")
SKIPS = ("input", "both", "none")
RUN_BITS = 5  # run-length coding of zeros as in Eyeriss (JSSC 2017): a 5-bit run before each value
MAX_RANGES = 6  # 64 price lists
PUBLISHED_BITS = 32  # of every value, in the published simulator
# what a file has to say (``check_complete``), and whether it may be 0
NEEDED, MAY_BE_0 = {"needed": "> 0"}, {"needed": ">= 0"}


class HardwareConfig(Protocol):
    """What every hardware has, a dataclass of its rule's schema.

    rule: the key of RULES that prices counts with it. batch_size, threshold: what the counts must have been metered
    with (batch_size None: with any). relative: its prices are relative to one multiply-accumulate, so only ratios mean
    something. ranges: by key of a price, [low, high], what its source says it may be (``corners``); they determine no
    result.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def process_nm(self) -> int: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def threshold(self) -> float: ...
    @property
    def relative(self) -> bool: ...
    @property
    def skips_zeros(self) -> bool:
        """Whether a zero costs less than another value: if not, there are no marginal prices to train with."""
        ...

    @property
    def note(self) -> str: ...
    @property
    def source(self) -> dict[str, str]: ...
    @property
    def ranges(self) -> dict[str, Any]: ...

    def check(self) -> None:
        """Raise UserError where a value is out of range."""
        ...

    def check_bits(self, bits: int) -> None:
        """Raise UserError where layers whose weights have so many bits have no price. 0: the hardware's own width."""
        ...


@dataclass(kw_only=True, slots=True)
class PublishedHardware:
    """The accounting of the paper's simulator (Shumailov et al., Sponge Examples, EuroS&P 2021).

    dram_pj_per_value: one 32-bit value to or from DRAM. multiply_pj: one computation.
    inplace: whose activation inputs are counted after they were overwritten: of modules built in place (as_built), of
    all, of none.
    bn_statistics_repeats: how often batch norm's running statistics are charged beyond once as buffers.
    batch_size, threshold: what the counts must have been metered with.
    """

    name: str = "published"
    rule: str = "published"
    process_nm: int = 45
    dram_pj_per_value: float = field(default=1950.0, metadata=NEEDED)
    multiply_pj: float = field(default=3.7, metadata=NEEDED)
    inplace: str = "as_built"
    bn_statistics_repeats: int = 1
    batch_size: int = 100
    threshold: float = 2.0**-126
    note: str = ""
    source: dict[str, str] = field(default_factory=dict[str, str])
    ranges: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def relative(self) -> bool:
        """Its prices are in pJ."""
        return False

    @property
    def skips_zeros(self) -> bool:
        return True

    def check(self) -> None:
        one_of("hardware.rule", self.rule, ["published"])
        at_least("hardware.dram_pj_per_value", self.dram_pj_per_value, 0)
        at_least("hardware.multiply_pj", self.multiply_pj, 0)
        one_of("hardware.inplace", self.inplace, INPLACE)
        at_least("hardware.bn_statistics_repeats", self.bn_statistics_repeats, 0)
        if self.dram_pj_per_value + self.multiply_pj <= 0:
            raise UserError("hardware: at least one price must be above 0")
        _check_ranges(self)

    def check_bits(self, bits: int) -> None:
        if bits not in (0, PUBLISHED_BITS):
            raise UserError(
                f"hardware {self.name} prices {PUBLISHED_BITS}-bit values, not {bits} bits: use hardware with rule: "
                "fused, such as hardware=fused_45nm_int8"
            )


@dataclass(kw_only=True, slots=True)
class OperationPrices:
    """Of one operation: a multiplication, adding its product to a sum, any other addition."""

    multiply_pj: float
    accumulate_pj: float
    add_pj: float


@dataclass(kw_only=True, slots=True)
class FusedHardware:
    """An accelerator that folds batch norm and activation into the layer before and stores tensors compressed.

    bits, accumulator_bits: width of values and of sums. input_bits: width of the input image in DRAM.
    buffer_bits: size of the on-chip buffer; a tensor lives there when it fits dense, else in DRAM.
    register_pj_per_mac: register traffic of one multiply-accumulate. activation_pj: one activation other than ReLU.
    weight_reuse: images that share one fetch of the weights. weight_buffer_bits: size of an on-chip memory for weights;
    a network whose weights fit there as they are stored, biases included, is fetched once, and its weights cost the
    buffer's price alone; 0: there is none.
    format: how tensors are stored. run_bits: widths of a run of zeros that run lengths may be coded with, of which each
    tensor takes the best. skip: which MACs are left out: those with a zero input, those with either operand zero, none.
    relative: prices are relative to one MAC, so only ratios mean something.
    mac_pj_by_bits: prices of operations of layers whose weights have another width, by that width. A layer in a width
    without prices is refused.
    note: what the energies are and are not. float_note: the same of counts of a network of floating-point values alone.
    """

    name: str = "fused"
    rule: str = "fused"
    process_nm: int = 45
    bits: int = field(default=32, metadata=NEEDED)
    input_bits: int = 8
    buffer_bits: int = field(default=8_388_608, metadata=MAY_BE_0)
    buffer_pj_per_bit: float = field(default=0.0, metadata=NEEDED)
    dram_pj_per_bit: float = field(default=0.0, metadata=NEEDED)
    multiply_pj: float = field(default=0.0, metadata=NEEDED)
    accumulate_pj: float = field(default=0.0, metadata=MAY_BE_0)
    add_pj: float = field(default=0.0, metadata=MAY_BE_0)
    mac_pj_by_bits: dict[int, OperationPrices] = field(
        default_factory=dict[int, OperationPrices], metadata={"later": True}
    )
    register_pj_per_mac: float = field(default=0.0, metadata=MAY_BE_0)
    activation_pj: float = field(default=0.0, metadata=MAY_BE_0)
    weight_reuse: int = 1
    weight_buffer_bits: int = field(default=0, metadata={"later": True})
    format: str = "auto"
    run_bits: list[int] = field(default_factory=lambda: [RUN_BITS], metadata={"later": True})
    skip: str = "both"
    relative: bool = False
    batch_size: int | None = None
    threshold: float = 2.0**-126
    note: str = ""
    float_note: str = field(default="", metadata={"later": True})
    source: dict[str, str] = field(default_factory=dict[str, str])
    ranges: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        read: Mapping[Any, Any] = self.mac_pj_by_bits  # from JSON: texts as keys, plain values
        self.mac_pj_by_bits = {
            int(bits): OperationPrices(**prices) if isinstance(prices, dict) else prices
            for bits, prices in read.items()
        }

    @property
    def skips_zeros(self) -> bool:
        return self.format != "dense" or self.skip != "none"

    def check(self) -> None:
        one_of("hardware.rule", self.rule, ["fused"])
        above("hardware.bits", self.bits, 0)
        above("hardware.input_bits", self.input_bits, 0)
        at_least("hardware.buffer_bits", self.buffer_bits, 0)
        prices = ("buffer_pj_per_bit", "dram_pj_per_bit", "multiply_pj", "accumulate_pj", "add_pj")
        for key in (*prices, "register_pj_per_mac", "activation_pj"):
            at_least(f"hardware.{key}", getattr(self, key), 0)
        if self.multiply_pj + self.accumulate_pj + self.dram_pj_per_bit <= 0:
            raise UserError("hardware: at least one price must be above 0")
        above("hardware.weight_reuse", self.weight_reuse, 0)
        at_least("hardware.weight_buffer_bits", self.weight_buffer_bits, 0)
        one_of("hardware.format", self.format, FORMATS)
        one_of("hardware.skip", self.skip, SKIPS)
        if not self.run_bits or len(set(self.run_bits)) < len(self.run_bits):
            raise UserError(f"hardware.run_bits={self.run_bits} must be a list of widths, each of them once: [5]")
        for bits in self.run_bits:
            between("hardware.run_bits", bits, 1, 32)
        self._check_widths()
        _check_ranges(self)

    def _check_widths(self) -> None:
        for bits, prices in self.mac_pj_by_bits.items():
            above("hardware.mac_pj_by_bits: bits", bits, 0)
            if bits == self.bits:
                raise UserError(
                    f"hardware.mac_pj_by_bits.{bits}: {bits} bits is the hardware's own width: change "
                    "hardware.multiply_pj, hardware.accumulate_pj, hardware.add_pj instead"
                )
            for key, price in asdict(prices).items():
                at_least(f"hardware.mac_pj_by_bits.{bits}.{key}", price, 0)

    def check_bits(self, bits: int) -> None:
        known = [self.bits, *self.mac_pj_by_bits]
        if bits not in (0, *known):
            raise UserError(
                f"hardware {self.name} has no price for layers of {bits}-bit weights: choose one of "
                f"{', '.join(map(str, known))} bits, or add hardware.mac_pj_by_bits.{bits}"
            )

    def operations(self, bits: int) -> OperationPrices:
        """What a layer's operations cost whose weights have so many bits, 0: the hardware's own. Raises UserError where
        they have no prices."""
        self.check_bits(bits)
        own = OperationPrices(multiply_pj=self.multiply_pj, accumulate_pj=self.accumulate_pj, add_pj=self.add_pj)
        return self.mac_pj_by_bits.get(bits, own)


def _check_ranges(hardware: HardwareConfig) -> None:
    prices = {key: value for key, value in asdict(hardware).items() if "_pj" in key and isinstance(value, int | float)}
    for key, ends in hardware.ranges.items():
        one_of("hardware.ranges", key, prices)
        if not isinstance(ends, list) or [type(end) in (int, float) for end in cast(list[Any], ends)] != [True, True]:
            raise UserError(f"hardware.ranges.{key}={ends} must be two prices, [low, high]")
        at_least(f"hardware.ranges.{key}: low", ends[0], 0)
        at_least(f"hardware.ranges.{key}: high", ends[1], ends[0])
        if not ends[0] <= prices[key] <= ends[1]:
            raise UserError(
                f"hardware.{key}={prices[key]:g} is not in its range, hardware.ranges.{key}=[{ends[0]:g},{ends[1]:g}]: "
                "change both"
            )
    if len(hardware.ranges) > MAX_RANGES:
        raise UserError(f"hardware.ranges has {len(hardware.ranges)} prices: at most {MAX_RANGES} can be ranges")


def needed(schema: type[HardwareConfig]) -> dict[str, str]:
    """The keys that a file of this schema has to have, and what each must hold: no price is taken that nobody wrote."""
    return {
        f.name: f"a {'finite number' if f.type in (float, 'float') else 'whole number'} {f.metadata['needed']}"
        for f in fields(cast(Any, schema))
        if "needed" in f.metadata
    }


def check_complete(hardware: HardwareConfig, written: Iterable[str]) -> None:
    """UserError, by name, for what a price list has to say and does not. written: the keys that its file has."""
    for key, what in needed(type(hardware)).items():
        if key not in written:
            raise UserError(f"{key} is missing: it must be {what}")
        if getattr(hardware, key) == 0 and what.endswith("> 0"):
            raise UserError(f"{key}=0 is out of range: it must be {what}")


def corners(hardware: HardwareConfig) -> list[HardwareConfig]:
    """The hardware at every combination of the ends of its ranges, low ends first; nothing without ranges."""
    at_ends = [dict(zip(hardware.ranges, prices, strict=True)) for prices in product(*hardware.ranges.values())]
    return [cast(HardwareConfig, replace(cast(Any, hardware), **prices)) for prices in at_ends if prices]


SCHEMAS: dict[str, type[HardwareConfig]] = {
    "published": PublishedHardware,
    "fused": FusedHardware,
}
