"""Tables of runs made by hand, for tests of what comes after the files."""

from typing import Any

import pandas as pd

from eat_runner.analysis.columns import COLUMNS, DTYPES, EMPTY

UJ = 1000.0  # of a made-up network without zero-skipping


def run(lambda_: float, accuracy: float, ratio: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A finished run's row. In uJ its energy is ``ratio`` of UJ."""
    row = {column.key: EMPTY[column.kind] for column in COLUMNS} | {
        "run_id": f"{lambda_}-{seed}",
        "dataset": "digits",
        "model": "resnet18",
        "network": "resnet18",
        "method": "EAT" if lambda_ else "standard training",
        "penalty": "l0" if lambda_ else "none",
        "lambda": float(lambda_),
        "is_baseline": not lambda_,
        "seed": seed,
        "status": "finished",
        "accuracy": accuracy,
        "accuracy_validation": accuracy,
        "energy_ratio": ratio,
        "energy_ratio_validation": ratio,
        "energy_uj_per_image": UJ * ratio,
        "energy": UJ * ratio,
        "energy_validation": UJ * ratio,
        "dense": UJ,
        "setting_id": f"s{lambda_}",
        "family": "digits · resnet18",
    }
    return row | changes


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    """The rows as ``analysis.table.collate`` has them; keys that are no column of the list become columns of knobs."""
    knobs = {key for row in rows for key in row} - {column.key for column in COLUMNS}
    frame = {c.key: pd.Series([row[c.key] for row in rows], dtype=DTYPES[c.kind]) for c in COLUMNS}
    return pd.DataFrame(
        frame | {key: pd.Series([row.get(key) for row in rows], dtype="object") for key in sorted(knobs)}
    )
