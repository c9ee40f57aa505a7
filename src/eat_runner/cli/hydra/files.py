"""Configuration files as Hydra's loader gets them: UTF-8, with or without a byte order mark."""

import io
import os
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from eat_runner.config.paths import read_text

HEADER = 512  # characters that may say where a file's keys belong


def read_config(path: Path) -> tuple[Any, dict[str, str | None]]:
    """What a YAML file holds, and its header (``# @package _global_``). UserError where it cannot be read."""
    with _Named(read_text(path), path) as file:
        header = ConfigSource._get_header_dict(file.read(HEADER))  # pyright: ignore[reportPrivateUsage]
        file.seek(0)
        return OmegaConf.load(file), header


class _Named(io.StringIO):
    """A text that says in errors which file it comes from."""

    def __init__(self, text: str, path: Path):
        super().__init__(text)
        self.name = str(path)


class Files(FileConfigSource):
    """A folder of configuration files."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
        if not os.path.exists(path):
            raise ConfigLoadError(f"Config not found : {path}")
        config, header = read_config(Path(path))
        return ConfigResult(config=config, path=f"{self.scheme()}://{self.path}", provider=self.provider, header=header)
