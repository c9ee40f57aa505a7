"""history.csv in the run's folder: a row an epoch."""

from dataclasses import asdict

from eat_runner.loggers.base import About, Logger
from eat_runner.train.history import EpochRow


class Csv(Logger):
    """Writes the whole file anew for every row: a reader sees all of a row or none of it."""

    tries_again = True

    def __init__(self, config: object, about: About):
        super().__init__(config, about)
        self.rows = list(about.history)
        if self.rows:  # the process before may have ended between its checkpoint and the row
            self._write()

    def log(self, row: EpochRow) -> None:
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        self.about.folder.write_history([asdict(row) for row in self.rows])
