"""Runs on disk -> the rows of the tables: plain data, priced from the runs' counts. No torch."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from eat_runner.analysis.families import label_families
from eat_runner.analysis.pareto import Front, fronts, pareto_table, select
from eat_runner.analysis.repricing import estimate_regrouped, weights_share
from eat_runner.analysis.table import is_priced, read_runs
from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import Counts
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import FINAL, RunFolder
from reproduction.cells import RUNS, Cell, Plan

Row = dict[str, Any]
PAPER_TABLE1 = Path(__file__).resolve().parents[1] / "paper_table1.csv"
PAPER = "paper"
RULES = {"paper": "ours, paper's rule", "validation": "ours, our rule"}
MEASURES = ("st_accuracy", "eat_accuracy", "st_ratio", "eat_ratio", "decrease_percent")


@dataclass
class Outcome:
    """A cell's finished runs. picks: the setting_id that each rule selects among the settings with a lambda above 0;
    None where nothing is within 3 points, or nothing was measured on the split that it looks at. done: runs with a
    result; pending: those that may still get one. note: what is not there, and why."""

    cell: Cell
    fronts: list[Front] = field(default_factory=list[Front])
    picks: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    done: int = 0
    pending: int = 0
    note: str = ""

    @property
    def baseline(self) -> str | None:
        """Standard training (ST), of the first family where there are several."""
        return self.fronts[0].reference if self.fronts else None

    def settings(self) -> list[Row]:
        """Those of all families, by energy ratio."""
        return [row for front in self.fronts for row in front.settings.reset_index().to_dict("records")]

    def setting(self, setting_id: str) -> Row:
        return self.fronts[0].settings.loc[setting_id].to_dict()

    def runs(self, setting_id: str) -> pd.DataFrame:
        return self.fronts[0].runs_of(setting_id)


def outcomes(plan: Plan, folder: Path, kind: str) -> list[Outcome]:
    """The cells of a kind, in the order of the paper's table, priced as the paper does."""
    order = [(row["dataset"], row["network"]) for row in paper_rows()]
    cells = [cell for cell in plan.cells if cell.kind == kind]
    cells.sort(key=lambda cell: order.index((cell.paper_dataset, cell.network)))
    runs = all_runs(folder)
    return [outcome(cell, runs) for cell in cells]


def all_runs(folder: Path) -> pd.DataFrame:
    """Every run of a scale under the paper's accounting."""
    roots = [folder / RUNS] if (folder / RUNS).is_dir() else []
    return read_runs(roots, load_hardware("published"))


def outcome(cell: Cell, every: pd.DataFrame) -> Outcome:
    """every: the scale's runs; those that are not the cell's are left out."""
    if cell.missing and not cell.run_ids:
        return Outcome(cell, note=f"not run: {cell.missing}")
    runs = label_families(every[every["run_id"].isin(cell.run_ids)])
    found = fronts(runs, "paper")
    one = Outcome(cell, found, done=int(is_priced(runs).sum()))
    one.pending = len(cell.run_ids) - int(runs["status"].isin(FINAL).sum())
    if one.baseline is not None:
        one.picks = {rule: select(found[0].runs, one.baseline, rule, reference_too=False) for rule in RULES}
    one.note = _note(one, runs)
    return one


def _note(one: Outcome, runs: pd.DataFrame) -> str:
    """What is not there: runs without a result by status, files that cannot be read, ST, the data set."""
    notes: list[str] = []
    planned = len(one.cell.run_ids)
    if one.done < planned:
        others = Counter(status for status in runs["status"] if status != "finished")
        counts = ", ".join(f"{number} {status}" for status, number in sorted(others.items()))
        notes.append(f"{one.done} of {planned} runs done" + (f" ({counts})" if counts else ""))
    notes += [reason for reason in runs.loc[runs["status"].isin(["finished", "broken"]), "reason"] if reason]
    if one.done and one.baseline is None:
        notes.append("no standard training yet" if one.pending else "no standard training: it diverged")
    if one.cell.missing:
        notes.append(f"the others cannot be run: {one.cell.missing}")
    return "; ".join(notes)


def paper_rows(path: Path = PAPER_TABLE1) -> list[dict[str, str]]:
    """The paper's Table 1 as printed."""
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


# --- Table 1 -------------------------------------------------------------------------------------------------------


def table1(found: Sequence[Outcome]) -> list[Row]:
    """For each cell the paper's row, then ours by the paper's rule and by ours (validation split)."""
    paper = {(row["dataset"], row["network"]): row for row in paper_rows()}
    rows: list[Row] = []
    for one in found:
        printed = paper[one.cell.paper_dataset, one.cell.network]
        head: Row = {"dataset": one.cell.paper_dataset, "network": one.cell.network, "source": PAPER}
        rows.append(head | {key: float(printed[key]) for key in MEASURES} | {"note": printed["source"]})
        rows += [_ours(one, rule) for rule in RULES]
    return rows


def _ours(one: Outcome, rule: str) -> Row:
    row: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "source": RULES[rule]}
    note = one.note
    if one.baseline is not None:
        st, pick = one.setting(one.baseline), one.picks[rule]
        row |= _numbers("st_accuracy", st, "accuracy") | _numbers("st_ratio", st, "energy_ratio")
        row |= {"floor": one.fronts[0].floor, "st_seeds": st["n"]}
        if pick is not None:
            eat = one.setting(pick)
            row |= _numbers("eat_accuracy", eat, "accuracy") | _numbers("eat_ratio", eat, "energy_ratio")
            row |= _numbers("decrease_percent", eat, "energy_decrease_percent")
            row |= {"lambda": eat["lambda"], "sigma": eat["sigma"], "eat_seeds": eat["n"]}
        else:
            note = "; ".join(filter(None, [note, _why_none(one, st, rule)]))
    return row | {"runs_done": one.done, "runs_planned": len(one.cell.run_ids), "note": note}


def _why_none(one: Outcome, st: Row, rule: str) -> str:
    if rule == "validation" and _some(st["accuracy_validation"]) is None:
        return "no validation split"
    if one.pending:
        return ""  # the runs that are not done may be within
    every_seed = "" if one.done == len(one.cell.run_ids) else " with every seed of it"
    return f"no lambda within 3 points of ST{every_seed}"


def _numbers(name: str, setting: Mapping[str, Any], measure: str) -> Row:
    return {name: _some(setting[measure]), f"{name}_std": _some(setting[f"{measure}_std"])}


def _some(value: float) -> float | None:
    return None if value != value else value


def against_paper(rows: Sequence[Row]) -> list[str]:
    """A sentence a cell: is EAT's ratio at or below the paper's, with accuracy at or above it (by the paper's rule)?"""
    lines: list[str] = []
    printed: Row = {}
    for row in rows:
        if row["source"] == PAPER:
            printed = row
        if row["source"] != RULES["paper"] or row.get("eat_ratio") is None:
            continue
        ratio, accuracy = (row[key] - printed[key] for key in ("eat_ratio", "eat_accuracy"))
        reached = "reached" if ratio <= 0 <= accuracy else "not reached"
        lines.append(
            f"{row['dataset']}, {row['network']}: {reached} (EAT ratio {ratio:+.3f}, EAT accuracy {accuracy:+.3f} "
            "against the paper's)"
        )
    return lines


# --- Table 2: other hardware ---------------------------------------------------------------------------------------


def hardware_list() -> dict[str, HardwareConfig]:
    """What Table 2 prices with, and what to call it. From the paper's accounting to a fused accelerator that shares the
    weights as the paper's does, to one that fetches them for every image; then one thing of that one changes at a time,
    the last two together. Eyeriss is another machine."""
    fused = load_hardware("fused_45nm")
    return {
        "published (the paper's accounting)": load_hardware("published"),
        "fused, 45 nm, weights shared by 100 images": replace(fused, weight_reuse=100),
        "fused, 45 nm": fused,
        "fused, 45 nm, no product skipped": replace(fused, skip="none"),
        "fused, 45 nm, int8": load_hardware("fused_45nm_int8"),
        "fused, 7 nm": load_hardware("fused_7nm"),
        "fused, 7 nm, int8": load_hardware("fused_7nm_int8"),
        "Eyeriss, 65 nm": load_hardware("eyeriss_65nm"),
    }


def table2(found: Sequence[Outcome]) -> list[Row]:
    """The networks of Table 1 (selected under the paper's accounting) on other hardware: a row a cell, rule and
    hardware; one row for both rules where they pick the same setting. Where counts cannot be read, one row says so."""
    rows: list[Row] = []
    for one in found:
        for rules, pick in _distinct(one.picks):
            eat = one.setting(pick)
            head: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "rule": rules}
            head |= {"lambda": eat["lambda"], "sigma": eat["sigma"]}
            try:
                counts = _read_counts(one, pick)
            except UserError as error:
                rows.append(head | {"note": str(error)})
                continue
            for label, hardware in hardware_list().items():
                row = head | {"hardware": label, "process_nm": hardware.process_nm} | _gain(*counts, hardware)
                weights = weights_share(next(iter(counts[0].values())), hardware)
                rows.append(row | {"weights_percent": 100 * weights})
    return rows


def _distinct(picks: Mapping[str, str | None]) -> list[tuple[str, str]]:
    """The rules that pick a setting, and the setting."""
    by_setting: dict[str, list[str]] = {}
    for rule, pick in picks.items():
        if pick is not None:
            by_setting.setdefault(pick, []).append(rule)
    return [(" and ".join(rules), pick) for pick, rules in by_setting.items()]


CountsBySeed = dict[int, Counts]


def _read_counts(one: Outcome, pick: str) -> tuple[CountsBySeed, CountsBySeed]:
    """The counts of ST's runs and of the pick's. UserError where a file is missing or damaged."""
    assert one.baseline is not None
    st, eat = (one.runs(setting)[["seed", "folder"]].to_dict("records") for setting in (one.baseline, pick))
    st, eat = ({run["seed"]: RunFolder(run["folder"]).read_counts() for run in runs} for runs in (st, eat))
    return st, eat


def _gain(st: CountsBySeed, eat: CountsBySeed, hardware: HardwareConfig) -> Row:
    """Ratios and energies of both, and the decrease of each seed that both have, as Table 1; means and deviations."""
    priced = [{seed: estimate_regrouped(c, hardware) for seed, c in counts.items()} for counts in (st, eat)]
    before, after = ({seed: report.ratio for seed, report in reports.items()} for reports in priced)
    decreases = [100 * (before[seed] - after[seed]) / before[seed] for seed in after if seed in before]
    row = _spread("st_ratio", before.values()) | _spread("eat_ratio", after.values())
    row |= _spread("decrease_percent", decreases)
    for name, reports in zip(("st", "eat"), priced, strict=True):
        row |= _spread(f"{name}_uj_per_image", [report.energy_uj_per_image for report in reports.values()])
    return row


def _spread(name: str, values: Iterable[float | None]) -> Row:
    """Mean and sample standard deviation (n - 1) of what is there."""
    there = [value for value in values if value is not None]
    return {name: fmean(there) if there else None, f"{name}_std": stdev(there) if len(there) > 1 else None}


def does_the_gain_survive(rows: Sequence[Row]) -> list[str]:
    """Table 2 in sentences, by the paper's rule: the answer, then each hardware on its own."""
    own = [row for row in rows if "paper" in row["rule"] and row.get("decrease_percent") is not None]
    by_hardware: dict[str, list[tuple[float, float | None]]] = {}
    for row in own:
        by_hardware.setdefault(row["hardware"], []).append((row["decrease_percent"], row.get("decrease_percent_std")))
    if not by_hardware:
        return []
    means = {label: fmean(decrease for decrease, _ in cells) for label, cells in by_hardware.items()}
    published, *others = by_hardware
    number = len(by_hardware[published])
    cells = "the one cell that is done" if number == 1 else f"the mean of {number} cells"
    parts = "; ".join(
        f"{verdict} on {', '.join(map(repr, labels))}"
        for verdict in SURVIVES
        if (labels := [label for label in others if _verdict(means[label], means[published]) == verdict])
    )
    verdicts = {label: _against_spread(values) for label, values in by_hardware.items()}
    return [
        f"Does EAT's gain survive beyond the paper's accounting? By that, the energy ratio falls by "
        f"{means[published]:.1f} % in {cells}. On other hardware the same networks save: {parts}.",
        *(
            f"{label}: {means[label]:.1f} %"
            + _of_published(label, published, means)
            + f" ({min(values)[0]:.1f} to {max(values)[0]:.1f}), {verdicts[label]}"
            for label, values in by_hardware.items()
        ),
    ]


# what a hardware's decrease is, by its part of the one by the paper's accounting
SURVIVES = {"as much or more": 0.9, "a part of it": 0.2, "hardly anything": 0.0, "nothing": float("-inf")}


def _verdict(decrease: float, published: float) -> str:
    return next((name for name, least in SURVIVES.items() if decrease > least * abs(published)), "nothing")


def _of_published(label: str, published: str, means: Mapping[str, float]) -> str:
    if label == published or means[published] <= 0:
        return ""
    return f", {means[label] / means[published]:.0%} of that by the paper's accounting"


def _against_spread(cells: Sequence[tuple[float, float | None]]) -> str:
    """In how many cells the decrease is a saving that is larger than its standard deviation over the seeds."""
    if any(std is None for _, std in cells):
        saving = sum(decrease > 0 for decrease, _ in cells)
        return f"above 0 in {saving} of {len(cells)} cells (there are cells of one seed, without a standard deviation)"
    certain = sum(decrease > (std or 0.0) for decrease, std in cells)
    return f"more than its standard deviation in {certain} of {len(cells)} cells"


# --- fronts, ablation, choices -------------------------------------------------------------------------------------


def front_rows(one: Outcome) -> pd.DataFrame:
    """Every setting of a cell of Table 1, with a mark for what each rule selects there."""
    # not by the front's own selection, to which ST itself is a candidate
    rows = pareto_table(one.fronts[:1]).drop(columns="selected").assign(dataset=one.cell.dataset)
    return rows.assign(**{f"selected_{rule}": rows["setting_id"] == pick for rule, pick in one.picks.items()})


def ablation(found: Sequence[Outcome]) -> list[Row]:
    """Figure 3 as numbers: a row a data set, sigma and lambda; standard training (lambda 0) has no sigma."""
    rows: list[Row] = []
    for one in found:
        for setting in sorted(one.settings(), key=lambda s: (_some(s["sigma"]) or 0.0, s["lambda"])):
            row: Row = {"dataset": one.cell.dataset, "network": one.cell.network}
            rows.append(row | {"sigma": _some(setting["sigma"])} | _outcome_of(setting))
    return rows


def choices(found: Sequence[Outcome]) -> list[Row]:
    """What was trained with other readings of the paper: a row a setting of the cells of kind ``choices``."""
    rows = [
        _choice(one.cell, front, setting) for one in found for front in one.fronts for setting in front.settings.index
    ]
    keys = ("study", "network", "weighting", "scope", "crop_padding", "rotation_degrees", "flip", "lambda")
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys])


def _choice(cell: Cell, front: Front, setting_id: str) -> Row:
    setting, run = front.settings.loc[setting_id], front.runs_of(setting_id).iloc[0]
    config = RunFolder(run["folder"]).read_record().config
    dataset, head = config["dataset"], config["model"].get("head", "linear")
    network = cell.network if head == "linear" else f"{cell.network}, {head} head"
    row: Row = {"study": cell.experiment, "dataset": cell.dataset, "network": network}
    row |= {"parameters": run["parameters"], "weighting": setting["weighting"], "scope": setting["scope"]}
    row |= {"crop_padding": dataset["crop_padding"], "rotation_degrees": dataset["rotation_degrees"]}
    return row | {"flip": "yes" if dataset["flip"] else "no"} | _outcome_of(setting)


def _outcome_of(setting: Mapping[str, Any]) -> Row:
    row: Row = {"lambda": setting["lambda"], "seeds": setting["n"]}
    row |= _numbers("accuracy", setting, "accuracy") | _numbers("energy_ratio", setting, "energy_ratio")
    return row | _numbers("decrease_percent", setting, "energy_decrease_percent")


def readings() -> dict[str, HardwareConfig]:
    """Other readings of the paper's accounting that need no training."""
    published = load_hardware("published")
    return {
        "ours: batch 100, in-place inputs as built, statistics once": published,
        "no activation in place": replace(published, inplace="none"),
        "every activation in place": replace(published, inplace="all"),
        "batch norm's statistics ten times": replace(published, bn_statistics_repeats=10),
        "batch 1": replace(published, batch_size=1),
        "batch 10": replace(published, batch_size=10),
        "batch 512": replace(published, batch_size=512),
    }


def accounting(found: Sequence[Outcome]) -> list[Row]:
    """How much each reading of the accounting moves Table 1 (the settings that the paper's rule picks)."""
    rows: list[Row] = []
    for one in found:
        pick = one.picks.get("paper")
        if pick is None:
            continue
        head: Row = {"dataset": one.cell.dataset, "network": one.cell.network}
        try:
            counts = _read_counts(one, pick)
        except UserError as error:
            rows.append(head | {"note": str(error)})
            continue
        rows += [head | {"reading": label} | _gain(*counts, hardware) for label, hardware in readings().items()]
    return rows
