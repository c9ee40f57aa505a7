"""The config group ``path``: a front from one standard training, every next point trained from the one before it."""

from dataclasses import dataclass, field

from eat_runner.config.checks import above, between
from eat_runner.errors import UserError

# what grows along a path -> the key that has it, and whether more of it is more
STRENGTHS = {"lambda": ("lambda", True), "density": ("pruning.density", False), "budget": ("budget", False)}


@dataclass(kw_only=True, slots=True)
class PathConfig:
    """A path begins with standard training (lambda 0, no method), an ordinary run. Each next run starts from the
    network of the one before it, at the next strength, and is an ordinary run with that parent (``init``).

    name: what grows, a key of STRENGTHS; ``default``: no path. over: its values, in any order; they are taken from
    weak to strong. epochs, lr: of every training but the first, in place of the trainer's.
    """

    name: str = "default"
    over: list[float] = field(default_factory=list[float])
    epochs: int = 4
    lr: float = 0.05

    @property
    def is_chosen(self) -> bool:
        return self.name in STRENGTHS

    @property
    def key(self) -> str:
        """Of what grows."""
        return STRENGTHS[self.name][0]

    @property
    def strengths(self) -> list[float]:
        """From weak to strong, each once, without standard training's lambda 0."""
        return sorted(
            {value for value in self.over if (self.key, value) != ("lambda", 0)}, reverse=not STRENGTHS[self.name][1]
        )

    def check(self) -> None:
        between("path.epochs", self.epochs, 1, 100_000)
        above("path.lr", self.lr, 0.0)
        if self.is_chosen and not self.strengths:
            example = "0.5,1,2" if self.name == "lambda" else "0.4,0.2,0.1"
            raise UserError(f"path={self.name} has no strengths: write {self.key}={example} in a sweep (-m)")
