"""Price lists from YAML files: conf/hardware/*.yaml, or anybody's own file with the same keys."""

from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from eat_runner.config.checks import one_of
from eat_runner.config.hardware import SCHEMAS, HardwareConfig, check_complete, needed
from eat_runner.config.paths import YAML_SUFFIXES, conf_dir, read_text
from eat_runner.errors import UserError


def builtin_hardware() -> list[str]:
    """Names of the hardware that comes with the package, sorted."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_hardware(name_or_path: str) -> HardwareConfig:
    """The price list of a built-in name (``published``) or of a YAML file (anything that ends in .yaml or .yml).

    Raises UserError, one line, for a name or file that is not there, a file that is not YAML or has a key twice, an
    unknown or missing ``rule``, an unknown key, a price that is missing, of the wrong type or out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in YAML_SUFFIXES:
        one_of("hardware", name_or_path, [*builtin_hardware(), "a path that ends in .yaml"])
        path = _folder() / f"{name_or_path}.yaml"
    values = _read(path)
    values.pop("defaults", None)  # for Hydra
    written = {*values}
    values.setdefault("name", path.stem)
    one_of(f"{path}: rule", values.get("rule"), SCHEMAS)
    schema = SCHEMAS[values["rule"]]
    try:
        hardware = cast(HardwareConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
        hardware.check()
        check_complete(hardware, written)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_one_line(error, schema)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return hardware


def _folder() -> Path:
    return conf_dir() / "hardware"


def _read(path: Path) -> dict[str, Any]:
    text = read_text(path, "hardware")
    try:
        values = yaml.safe_load(text)
        OmegaConf.create(text)  # refuses a key that stands there twice, of which YAML takes the last
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a hardware file: it must hold keys and values such as rule: fused")
    if "${" in text:  # OmegaConf would look it up, in the environment too
        raise UserError(f"{path}: a hardware file holds values, no ${{...}}: write the value itself")
    return {str(key): value for key, value in values.items()}


def _one_line(error: OmegaConfBaseException, schema: type[Any]) -> str:
    message, key = str(error).splitlines()[0], error.full_key
    if what := needed(schema).get(str(key)):
        message += f": it must be {what}"
    if f"not in '{schema.__name__}'" in message:
        message += f": choose from {', '.join(OmegaConf.structured(schema))}"
    elif key:
        message = f"{key}: {message}"
    return message
