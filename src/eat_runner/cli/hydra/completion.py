"""How ``key=value`` could go on, for the shells that ask (cli/parser.py). Nothing is composed."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from eat_runner.cli.help import choices, in_folders
from eat_runner.cli.hydra.arguments import LISTS, PATHS, groups
from eat_runner.cli.hydra.compose import key_types
from eat_runner.cli.parser import Completer, Parser, paths, yaml_files
from eat_runner.config import hardware, logger, model, penalty, pruning, root, trainer

BOOLS = ("true", "false")
# what else has names to choose from
VALUES: dict[str, Sequence[str]] = {
    "device": root.DEVICES,
    "selection": root.SELECTIONS,
    "on_error": root.ON_ERROR,
    "model.stem": model.STEMS,
    "model.head": model.HEADS,
    "penalty.scope": penalty.SCOPES,
    "penalty.weighting": penalty.WEIGHTINGS,
    "hardware.inplace": hardware.INPLACE,
    "hardware.format": hardware.FORMATS,
    "hardware.skip": hardware.SKIPS,
    "trainer.lr_schedule": trainer.LR_SCHEDULES,
    "trainer.precision": trainer.PRECISIONS,
    "trainer.compile": trainer.COMPILE,
    "pruning.ranking": pruning.RANKINGS,
    "pruning.structure": pruning.STRUCTURES,
    "loggers.wandb.mode": logger.WANDB_MODES,
}


class OverridesParser(Parser):
    """Options, and ``key=value`` among them. For completion alone: Hydra has a parser of its own.

    own: keys that the command has beside those of the configuration, with their values. refused: keys that it does not
    take.
    """

    def __init__(self, program: str, own: Mapping[str, Sequence[str]], refused: Container[str] = ()):
        super().__init__(prog=program)
        self.add_argument("overrides", nargs="*", completer=overrides(own, refused))

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Without what is set already, which argparse would only take where it stands together."""
        return super().parse_known_args([word for word in args if "=" not in word], namespace)


def overrides(own: Mapping[str, Sequence[str]], refused: Container[str]) -> Completer:
    """Completes keys level by level and, behind ``=``, values, each of a list."""

    def complete(prefix: str, **_: Any) -> Iterable[str]:
        key, equals, text = prefix.partition("=")
        if not equals:
            chosen = {*groups(), *LISTS, *key_types()}
            return _keys(prefix, {*own, *(key for key in chosen if key.partition(".")[0] not in refused)})
        last = max(text.rfind(","), text.rfind("[")) + 1
        values = own[key] if key in own else _values(key, text[last:])
        return [f"{key}={text[:last]}{value}" for value in values]

    return complete


def _keys(prefix: str, known: Iterable[str]) -> Iterable[str]:
    """As far as their next dot, or with ``=`` at their end."""
    begun = [key for key in known if key.startswith(prefix)]
    found = sorted({key[: key.find(".", len(prefix)) + 1] or f"{key}=" for key in begun})
    if len(found) == 1 and found[0].endswith("."):  # behind which a shell would set a space
        return _keys(found[0], begun)
    return found


def _values(key: str, text: str) -> Iterable[str]:
    if key in PATHS:
        return paths(text, ("",) if key == "init" else ())
    if key in groups():
        return [*choices(key), *in_folders(key), *yaml_files(text)]
    if key in LISTS:
        return choices(key)
    return BOOLS if key_types().get(key) == "bool" else VALUES.get(key, ())
