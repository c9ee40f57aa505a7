"""A run on disk: what was done, what came out, and the counts that every price list works from. No torch.

Files are written whole (temporary file, fsync, rename), so a reader sees the old file or the new one. A record carries
a checksum of itself, of counts, predictions and weights; what does not match is refused in one line that names the
file.
"""

import csv
import errno
import gzip
import hashlib
import io
import json
import os
import secrets
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from eat_runner.energy.counts import OPTIONAL, BatchCounts, Counts, LayerCounts, from_row, to_rows
from eat_runner.errors import UserError, one_line

FORMAT = 1
# stopped: ended early by a search, which is done with it; the same command goes on from its checkpoint
STATUSES = ("running", "finished", "diverged", "failed", "interrupted", "stopped")
# A diverged run is deterministic: repeating it would diverge again.
FINAL = frozenset({"finished", "diverged"})
# what the file systems of some networks say that cannot sync a folder
NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP})

LONGEST_HEAD = 10_000  # characters in the first line of a count file
PREDICTIONS_HEAD = "split,label,predicted\n"

# keys of a record's configuration that older versions called otherwise, by group
RENAMED = {
    "penalty": {"normalisation": "weighting"},
    "meter": {"batch": "batch_size"},
    "hardware": {"batch": "batch_size"},
}

Scalar = str | int | float | bool | None


def write_atomically(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path`` so that no reader and no power cut ever sees a part of it.

    Raises OSError (disk full, folder read-only or gone); the file that was there before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # "No space left on device" alone helps nobody
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the operating system can sync a folder."""
    with suppress(PermissionError, NotImplementedError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)


@dataclass(kw_only=True)
class RunRecord:
    """What record.json holds. Times are in seconds, energies in uJ per image, accuracies and rates in [0, 1].

    config: the resolved configuration under the command line's names. baseline_id: shared by a run and the standard
    training it is compared with. determinants: what the run id is a hash of. firing_rate: non-zeros / elements over the
    activation outputs on the validation split; firing_rate_test: on the test split.
    budget: where the run had one: hardware, limit, limit_uj (None where prices are relative), share and met by the
    validation split (the test split where none was cut), as shares of the dense energy of the network as it was built.
    energy: hardware name -> split -> ratio, floor, energy_uj_per_image, dense_uj_per_image, as priced when the run
    ended (reports price the counts again). uncounted: operations that the meter has no rule for.
    files: SHA-256 of counts, predictions and weights; written by RunFolder.write_record.
    threads: of a process; world_size: processes that trained together (torchrun).
    init_hash: SHA-256 of the weights that it began with. parent: run_id and that checksum, where a run's were taken.
    changes: what methods did to the network, the parent's first: {"method": group, "choice": name, …}. A training that
    follows may move what a parent's method has made, such as weights that its pruning had made zero.
    """

    run_id: str
    status: str = "running"
    reason: str = ""
    format: int = FORMAT
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    baseline_id: str = ""
    determinants: dict[str, Any] = field(default_factory=dict[str, Any])
    data_fingerprint: str = ""
    init_hash: str | None = None
    parent: dict[str, str] | None = None
    changes: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    versions: dict[str, str | None] = field(default_factory=dict[str, str | None])
    machine: dict[str, Any] = field(default_factory=dict[str, Any])
    git_commit: str | None = None
    device: str = ""
    threads: int = 1
    world_size: int = 1
    timings: dict[str, float | None] = field(default_factory=dict[str, float | None])
    epochs_done: int = 0
    parameters: int = 0
    accuracy: dict[str, float | None] = field(default_factory=dict[str, float | None])
    loss: dict[str, float | None] = field(default_factory=dict[str, float | None])
    firing_rate: float | None = None
    firing_rate_test: float | None = None
    energy: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict[str, dict[str, dict[str, Any]]])
    budget: dict[str, Any] | None = None
    uncounted: list[str] = field(default_factory=list[str])
    meter: dict[str, Any] = field(default_factory=dict[str, Any])
    preprocessing: dict[str, Any] = field(default_factory=dict[str, Any])
    messages: list[str] = field(default_factory=list[str])
    files: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def final(self) -> bool:
        """True where repeating the run would change nothing: it is finished, or it diverged."""
        return self.status in FINAL


class RunFolder:
    """The files of one run. Reading raises UserError, one line that names the file; writing raises OSError."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.record = self.path / "record.json"
        self.history = self.path / "history.csv"
        self.layers = self.path / "layers.csv"
        self.batches = self.path / "batches.csv"
        self.predictions = self.path / "predictions.csv.gz"
        self.checkpoint = self.path / "checkpoint.pt"
        self.weights = self.path / "model.safetensors"
        self.traceback = self.path / "traceback.txt"
        self.lock = self.path / ".lock"

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _sync_folder(self.path.parent)

    def is_final(self) -> bool:
        """True if record.json says finished or diverged; False without a record. UserError where it is damaged."""
        return self.record.exists() and self.read_record().final

    def remove_leftovers(self) -> None:
        """Delete temporary files of a killed writer. Only for the process that holds the run's claim."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def write_config(self, values: Mapping[str, Any]) -> None:
        write_atomically(self.config, yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True).encode())

    def write_record(self, record: RunRecord) -> None:
        """Write record.json with a checksum, and with those of the counts, predictions and weights that are there."""
        files = (self.layers, self.batches, self.predictions, self.weights)
        record.files = {path.name: file_hash(path) for path in files if path.exists()}
        values = _finite(asdict(record))
        text = json.dumps(values | {"checksum": _checksum(values)}, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(self.record, text.encode(errors="backslashreplace") + b"\n")

    def read_record(self) -> RunRecord:
        """The record. UserError: missing, truncated, not JSON, of a newer format, damaged, or a key of another type."""
        data = _read(self.record)
        try:
            values = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.record} is damaged (not JSON): delete it to repeat the run") from error
        if not isinstance(values, dict):
            raise UserError(f"{self.record} is damaged (not a JSON object): delete it to repeat the run")
        return _record_from(values, self.record)

    def read_own_record(self, run_id: str) -> RunRecord | None:
        """The record, None without one. UserError also where it is another run's, as in a folder that was copied."""
        if not self.record.exists():
            return None
        record = self.read_record()
        if record.run_id != run_id:
            other = one_line(record.run_id)
            raise UserError(f"{self.record} is the record of another run, {other}: delete it to do this one")
        return record

    def check_finished(self, use: str) -> RunRecord:
        """The record. UserError for a run that is not finished, and so cannot be used as wanted (``exported``)."""
        record = self.read_record()
        if record.status != "finished":
            raise UserError(f"{self.path} is {record.status}: only a finished run can be {use}")
        return record

    def check_weights(self) -> None:
        """UserError where the weights are not those that the record was written for; older records do not say."""
        expected = self.read_record().files.get(self.weights.name)
        if expected and self.weights.exists() and file_hash(self.weights) != expected:
            raise UserError(f"{self.weights} is damaged: it is not the file that record.json was written for")

    def write_history(self, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """A row an epoch, a column for every key of the rows in the order in which they first come."""
        write_atomically(self.history, csv_bytes(rows))

    def read_history(self) -> list[dict[str, float | None]]:
        """The epochs' numbers; None where a cell is empty."""
        try:
            return [
                {key: float(cell) if cell else None for key, cell in row.items()} for row in self._rows(self.history)
            ]
        except ValueError as error:
            raise UserError(f"{self.history} is damaged: {error}") from error

    def write_counts(self, counts: Counts) -> None:
        """layers.csv and batches.csv. The record's meter and uncounted keys hold the rest of ``counts``."""
        write_atomically(self.layers, csv_bytes(to_rows(counts.layers)))
        write_atomically(self.batches, csv_bytes(to_rows(counts.batches)))

    def read_counts(self, record: RunRecord | None = None, *, layers: bool = True) -> Counts:
        """The counts; ``record`` (this run's) saves reading it again. ``layers=False`` leaves layers.csv unread, for
        rules whose totals do without it, unless it has columns that no rule may overlook (widths of values).

        UserError: a file is missing or not the one that the record was written for.
        """
        record = record or self.read_record()
        layers = layers or self._has_widths()
        try:
            return Counts(
                layers=[from_row(LayerCounts, row) for row in self._rows(self.layers, record)] if layers else [],
                batches=[from_row(BatchCounts, row) for row in self._rows(self.batches, record)],
                batch_size=int(record.meter["batch_size"]),
                threshold=float(record.meter["threshold"]),
                uncounted=tuple(record.uncounted),
                ignore_uncounted=bool(record.meter.get("ignore_uncounted", False)),
            )
        except (KeyError, ValueError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.path}: the counts are damaged ({type(error).__name__}: {error})") from error

    def write_predictions(self, answers: Mapping[str, tuple[Iterable[int], Iterable[int]]]) -> None:
        """predictions.csv.gz: split, label and predicted class of each image, in the order of its split, and no time:
        the same answers are the same bytes. answers: split -> (labels, predicted)."""
        lines = [
            f"{split},{label},{predicted}\n"
            for split, (labels, classes) in answers.items()
            for label, predicted in zip(labels, classes, strict=True)
        ]
        write_atomically(self.predictions, gzip.compress("".join([PREDICTIONS_HEAD, *lines]).encode(), mtime=0))

    def predictions_bytes(self) -> bytes | None:
        """predictions.csv.gz as it lies there; None where the record was written without one, as by earlier versions.
        UserError: it is missing, or not the one that the record was written for."""
        record = self.read_record()
        if self.predictions.name not in record.files:
            return None
        return self._checked(self.predictions, record)

    def _has_widths(self) -> bool:
        try:
            with self.layers.open(encoding="utf-8", errors="replace") as file:
                columns = file.readline(LONGEST_HEAD).strip().split(",")
        except OSError:
            return False  # who needs the file will say so
        return not set(OPTIONAL).isdisjoint(columns)

    def _rows(self, path: Path, record: RunRecord | None = None) -> Iterable[dict[str, str]]:
        data = _read(path) if record is None else self._checked(path, record)
        reader = csv.reader(io.StringIO(data.decode(errors="replace"), newline=""), strict=True)
        try:
            columns = next(reader, [])
            for cells in reader:
                if len(cells) != len(columns):
                    raise UserError(f"{path} is damaged: line {reader.line_num} has another number of cells")
                yield dict(zip(columns, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def _checked(self, path: Path, record: RunRecord) -> bytes:
        data, expected = _read(path), record.files.get(path.name, "")
        if expected not in {"", _sha256(data)}:
            data = data.replace(b"\r\n", b"\n")  # a checkout or an archive may have put other line ends into a table
            if expected != _sha256(data):
                raise UserError(f"{path} is damaged: it is not the file that record.json was written for")
        return data


def csv_bytes(rows: Sequence[Mapping[str, Scalar]], columns: Sequence[str] = ()) -> bytes:
    """Rows as CSV (UTF-8, \\n). Floats keep every bit (repr), None is an empty cell.

    columns: those that come first, in this order; the others follow as the rows bring them.
    """
    columns = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksum(values: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def _finite(value: Any) -> Any:
    """``value`` as JSON can hold it: what is not finite becomes None, tuples become lists."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _record_from(values: dict[str, Any], path: Path) -> RunRecord:
    version = values.get("format")
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path} is damaged: it has no format number")
    if version > FORMAT:
        raise UserError(f"{path} has format {version}, this version reads {FORMAT}: install a newer eat-runner")
    checksum = values.pop("checksum", None)
    if checksum != _checksum(values):
        raise UserError(f"{path} is damaged (its checksum does not match): delete it to repeat the run")
    for key, hint in _HINTS.items():
        if key in values and not fits(values[key], hint):
            raise UserError(f"{path}: {key} is of another type than a record's {key}")
    if "run_id" not in values or values.get("status") not in STATUSES:
        raise UserError(f"{path}: a record needs a run_id and a status among {', '.join(STATUSES)}")
    record = RunRecord(**{f.name: values[f.name] for f in fields(RunRecord) if f.name in values})
    for group, names in RENAMED.items():
        if group in record.config:
            record.config[group] = _under_todays_names(record.config[group], names)
    record.meter = _under_todays_names(record.meter, RENAMED["meter"])
    return record


def _under_todays_names(values: Any, names: Mapping[str, str]) -> Any:
    """A group of a configuration with its keys as they are called today; what is no group stays."""
    return {names.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values


_HINTS: dict[str, Any] = get_type_hints(RunRecord)


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of an annotated type; a whole number is a float too, a mapping a dataclass."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in {Union, types.UnionType}:
        return any(fits(value, choice) for choice in arguments)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        return isinstance(value, dict) and all(key in hints and fits(item, hints[key]) for key, item in value.items())
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)
