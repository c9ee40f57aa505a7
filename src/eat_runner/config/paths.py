"""Where the configuration files are, and their text."""

from pathlib import Path

from eat_runner.errors import UserError

YAML_SUFFIXES = (".yaml", ".yml")
PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of the YAML files: inside the installed package, or the repository's ``conf`` in a checkout."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf"


def read_text(path: Path, kind: str = "configuration") -> str:
    """The text of a file of that kind: UTF-8, with or without a byte order mark. UserError, one
    line, where it cannot be read or has another encoding."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no {kind} file there ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        odd = "UTF-16" if b"\0" in data else f"byte {data[error.start]:#04x} in line {line}"
        raise UserError(f"{path} is no UTF-8 text ({odd}): save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path} is no text (UTF-16): save it as UTF-8")
    return text
