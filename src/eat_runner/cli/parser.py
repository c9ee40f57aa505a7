"""What the parsers of all commands have in common: mistakes in one line, and completion in bash, zsh and fish.

A shell completes by argcomplete: at each Tab it calls the command with _ARGCOMPLETE in the environment.
"""

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from eat_runner.config.paths import YAML_SUFFIXES
from eat_runner.errors import UserError

COMMANDS = ("eat-run", "eat-report", "eat-search", "eat-measure", "eat-export")
SHELLS = ("bash", "zsh", "fish")
COMPLETION = ("-sc", "--shell-completion")

Completer = Callable[..., Iterable[str]]
"""Called with ``prefix``, the word as far as it is typed, and more that nobody needs: words that begin so."""


def install(program: str, words: Sequence[str]) -> None:
    """``program -sc WORDS``: print what a shell evaluates to complete all commands. UserError unless the words are
    ``install=`` and one of SHELLS."""
    if [*words] not in [[f"install={shell}"] for shell in SHELLS]:
        raise UserError(f"--shell-completion needs a shell: write {program} -sc install=bash (or zsh, fish)")
    from argcomplete.shell_integration import shellcode

    print(shellcode(COMMANDS, shell=words[0].removeprefix("install=")))


class _Install(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        install(parser.prog, values)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A command's parser. A mistake is a UserError; an argument may have a ``completer``."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)
        self.add_argument(
            *COMPLETION,
            action=_Install,
            nargs="*",
            metavar="install=SHELL",
            completer=lambda **_: [f"install={shell}" for shell in SHELLS],
            help='completion of all commands in bash, zsh or fish: eval "$(%(prog)s -sc install=bash)"',
        )

    def add_argument(self, *names: str, completer: Completer | None = None, **settings: Any) -> argparse.Action:
        action = super().add_argument(*names, **settings)
        if completer is not None:
            setattr(action, "completer", completer)  # noqa: B010  # where argcomplete looks for it
        return action

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")


def answer_shell(parser: Callable[[], Parser]) -> None:
    """Where a shell asks how a word could go on: answer, and end the process. Imports nothing where none does."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser(), always_complete_options=False)


def paths(prefix: str, endings: tuple[str, ...] = ()) -> Iterator[str]:
    """Folders that begin so, and files that also end so; hidden ones where their dot is typed."""
    folder, slash, name = prefix.rpartition("/")
    with suppress(OSError):
        for entry in sorted(os.scandir(os.path.expanduser(folder + slash) or "."), key=lambda entry: entry.name):
            if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
                if entry.is_dir():
                    yield f"{folder}{slash}{entry.name}/"
                elif entry.name.endswith(endings):
                    yield f"{folder}{slash}{entry.name}"


def folders(prefix: str, **_: Any) -> Iterator[str]:
    return paths(prefix)


def yaml_files(prefix: str) -> list[str]:
    """Files of one's own beside the names of built-in ones; folders, too, once their names are begun."""
    return [path for path in paths(prefix, YAML_SUFFIXES) if prefix or not path.endswith("/")]


def price_lists(prefix: str, **_: Any) -> list[str]:
    """Of hardware: built-in names, files of one's own."""
    from eat_runner.energy.hardware import builtin_hardware

    return [*builtin_hardware(), *yaml_files(prefix)]
