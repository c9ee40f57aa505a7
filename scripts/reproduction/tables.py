"""Runs on disk -> the rows of the tables: plain data, priced from the runs' counts. No torch."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from eat_runner.config.hardware import FusedHardware, HardwareConfig, PublishedHardware
from eat_runner.energy.counts import BatchCounts, Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.pareto import Front, Setting, fronts, select
from eat_runner.records import RunFolder, Scalar
from eat_runner.sweep import Run, collate_runs
from reproduction.cells import CHOICES, RUNS, Cell, Plan

Row = dict[str, Scalar]
PAPER_TABLE1 = Path(__file__).resolve().parents[1] / "paper_table1.csv"
PAPER = "paper"
RULES = {"paper": "ours, paper's rule", "validation": "ours, our rule"}
MEASURES = ("st_accuracy", "eat_accuracy", "st_ratio", "eat_ratio", "decrease_percent")


@dataclass
class Outcome:
    """A cell's finished runs. settings: of all families, by energy ratio. baseline: standard training (ST). picks: what
    each rule selects among the settings with a lambda above 0; None where nothing is within 3 points, or nothing was
    measured on the split that it looks at. note: what is not there, and why."""

    cell: Cell
    fronts: list[Front] = field(default_factory=list[Front])
    baseline: Setting | None = None
    picks: dict[str, Setting | None] = field(default_factory=dict[str, Setting | None])
    done: int = 0
    note: str = ""

    @property
    def settings(self) -> list[Setting]:
        return [setting for front in self.fronts for setting in front.settings]

    @property
    def floor(self) -> float | None:
        return self.fronts[0].floor if self.fronts else None


def outcomes(plan: Plan, folder: Path, kind: str) -> list[Outcome]:
    """The cells of a kind, in the order of the paper's table, priced as the paper does."""
    order = [(row["dataset"], row["network"]) for row in paper_rows()]
    cells = [cell for cell in plan.cells if cell.kind == kind]
    cells.sort(key=lambda cell: order.index((cell.paper_dataset, cell.network)))
    return [outcome(cell, folder) for cell in cells]


def outcome(cell: Cell, folder: Path) -> Outcome:
    if cell.missing:
        return Outcome(cell, note=f"not run: {cell.missing}")
    try:
        runs = planned_runs(cell, folder, load_hardware("published"))
    except UserError as error:
        return Outcome(cell, note=str(error))
    finished = [run for run in runs if run.priced]
    if not finished:
        return Outcome(cell, note=f"0 of {len(cell.run_ids)} runs done")
    found = fronts(finished, "paper")
    baseline = found[0].baseline
    penalised = [setting for setting in found[0].settings if not setting.is_baseline]
    picks = {rule: None if baseline is None else select(penalised, baseline, rule) for rule in RULES}
    return Outcome(cell, found, baseline, picks, len(finished), _note(cell, runs, baseline))


def planned_runs(cell: Cell, folder: Path, hardware: HardwareConfig) -> list[Run]:
    """The runs of the plan that are on disk; others in the same folder, of an older plan, are left out."""
    runs = folder / RUNS / cell.name
    if not any((runs / identity / "record.json").exists() for identity in cell.run_ids):
        return []
    return [run for run in collate_runs(runs, hardware) if run.run_id in cell.run_ids]


def _note(cell: Cell, runs: Sequence[Run], baseline: Setting | None) -> str:
    notes: list[str] = []
    done = sum(run.priced for run in runs)
    if done < len(cell.run_ids):
        others = sorted({run.status for run in runs if run.status != "finished"})
        notes.append(f"{done} of {len(cell.run_ids)} runs done" + (f" ({', '.join(others)})" if others else ""))
    if baseline is None:
        notes.append("no standard training yet")
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
    head: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "source": RULES[rule]}
    numbers: Row = {}
    note = one.note
    if one.baseline is not None:
        numbers |= _numbers("st_accuracy", one.baseline, "accuracy") | _numbers(
            "st_ratio", one.baseline, "energy_ratio"
        )
        numbers |= {"floor": one.floor, "st_seeds": one.baseline.n}
        pick = one.picks[rule]
        if pick is not None:
            numbers |= _numbers("eat_accuracy", pick, "accuracy") | _numbers("eat_ratio", pick, "energy_ratio")
            numbers |= _numbers("decrease_percent", pick, "energy_decrease_percent")
            numbers |= {"lambda": pick.lambda_, "sigma": pick.runs[0].sigma, "eat_seeds": pick.n}
        else:
            note = "; ".join(filter(None, [note, _why_none(one, one.baseline, rule)]))
    return head | numbers | {"runs_done": one.done, "runs_planned": len(one.cell.run_ids), "note": note}


def _why_none(one: Outcome, baseline: Setting, rule: str) -> str:
    if one.done < len(one.cell.run_ids):
        return ""  # the runs that are not done may be within
    if rule == "validation" and baseline.mean("accuracy_validation") is None:
        return "no validation split"
    return "no lambda within 3 points of ST"


def _numbers(name: str, setting: Setting, measure: str) -> Row:
    return {name: setting.mean(measure), f"{name}_std": setting.std(measure)}


def against_paper(rows: Sequence[Row]) -> list[str]:
    """A sentence a cell: is EAT's ratio at or below the paper's, with accuracy at or above it (by the paper's rule)?"""
    lines: list[str] = []
    printed: Row = {}
    for row in rows:
        if row["source"] == PAPER:
            printed = row
        if row["source"] != RULES["paper"] or row.get("eat_ratio") is None:
            continue
        ratio, accuracy = _difference(row, printed, "eat_ratio"), _difference(row, printed, "eat_accuracy")
        reached = "reached" if ratio <= 0 <= accuracy else "not reached"
        lines.append(
            f"{row['dataset']}, {row['network']}: {reached} (EAT ratio {ratio:+.3f}, EAT accuracy {accuracy:+.3f} "
            "against the paper's)"
        )
    return lines


def _difference(row: Row, printed: Row, key: str) -> float:
    ours, theirs = row[key], printed[key]
    assert isinstance(ours, float)
    assert isinstance(theirs, float)
    return ours - theirs


# --- Table 2: other hardware ---------------------------------------------------------------------------------------


def hardware_list() -> dict[str, HardwareConfig]:
    """What Table 2 prices with, and what to call it: one thing changes at a time."""
    fused = load_hardware("fused_45nm")
    assert isinstance(fused, FusedHardware)
    return {
        "published (the paper's accounting)": load_hardware("published"),
        "fused, 45 nm": fused,
        "fused, 45 nm, only zero inputs skipped": replace(fused, skip="input"),
        "fused, 45 nm, weights shared by 100 images": replace(fused, weight_reuse=100),
        "fused, 45 nm, int8": load_hardware("fused_45nm_int8"),
        "fused, 7 nm": load_hardware("fused_7nm"),
        "fused, 7 nm, int8": load_hardware("fused_7nm_int8"),
        "Eyeriss, 65 nm": load_hardware("eyeriss_65nm"),
    }


def table2(found: Sequence[Outcome], folder: Path) -> list[Row]:
    """The networks of Table 1 (selected under the paper's accounting) on other hardware: a row a cell, rule and
    hardware; one row for both rules where they pick the same setting."""
    rows: list[Row] = []
    for one in found:
        if one.baseline is None or not any(one.picks.values()):
            continue
        for label, hardware in hardware_list().items():
            priced = {run.run_id: run for run in planned_runs(one.cell, folder, hardware)}
            standard = _repriced(one.baseline, priced)
            for rules, pick in _distinct(one.picks):
                head: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "rule": rules}
                head |= {"lambda": pick.lambda_, "hardware": label, "process_nm": hardware.process_nm}
                rows.append(head | _gain(standard, _repriced(pick, priced)))
    return rows


def _distinct(picks: Mapping[str, Setting | None]) -> Iterable[tuple[str, Setting]]:
    by_setting: dict[str, list[str]] = {}
    for rule, pick in picks.items():
        if pick is not None:
            by_setting.setdefault(pick.setting_id, []).append(rule)
    for rules in by_setting.values():
        pick = picks[rules[0]]
        assert pick is not None
        yield " and ".join(rules), pick


def _repriced(setting: Setting, priced: Mapping[str, Run]) -> Setting:
    return Setting([priced[run.run_id] for run in setting.runs])


def _gain(standard: Setting, pick: Setting) -> Row:
    row = _numbers("st_ratio", standard, "energy_ratio") | _numbers("eat_ratio", pick, "energy_ratio")
    row |= _numbers("decrease_percent", pick, "energy_decrease_percent")
    row |= {"st_uj_per_image": standard.mean("energy_uj_per_image")}
    return row | {"eat_uj_per_image": pick.mean("energy_uj_per_image")}


def does_the_gain_survive(rows: Sequence[Row]) -> list[str]:
    """Table 2 in sentences, by the paper's rule: the answer, then each hardware's mean decrease over the cells."""
    decreases = {label: _decreases(rows, label) for label in dict.fromkeys(str(row["hardware"]) for row in rows)}
    decreases = {label: values for label, values in decreases.items() if values}
    if not decreases:
        return []
    published, *others = decreases
    paper_mean = fmean(decreases[published])
    lost = [label for label in others if min(decreases[label]) <= 0]
    kept = "every cell still saves energy" if not lost else f"not every cell saves energy on: {'; '.join(lost)}"
    answer = f"Of its {paper_mean:.1f} % decrease: {kept}." if paper_mean > 0 else "There is none in the mean."
    lines = [f"Does EAT's gain survive beyond the paper's accounting? {answer}"]
    for label, values in decreases.items():
        mean, positive = fmean(values), sum(value > 0 for value in values)
        share = f", {mean / paper_mean:.0%} of that by the paper's accounting" if paper_mean > 0 < mean else ""
        share = "" if label == published else share
        span = f"{min(values):.1f} to {max(values):.1f}; {positive} of {len(values)} cells save"
        lines.append(f"{label}: {mean:.1f} % ({span}){share}")
    return lines


def _decreases(rows: Sequence[Row], label: str) -> list[float]:
    own = [row for row in rows if row["hardware"] == label and "paper" in str(row["rule"])]
    return [float(value) for row in own if (value := row["decrease_percent"]) is not None]


# --- layers, ablation, choices -------------------------------------------------------------------------------------


def ablation(found: Sequence[Outcome]) -> list[Row]:
    """Figure 3 as numbers: a row a data set, sigma and lambda; standard training (lambda 0) has no sigma."""
    rows: list[Row] = []
    for one in found:
        for setting in sorted(one.settings, key=lambda s: (s.runs[0].sigma or 0.0, s.lambda_)):
            row: Row = {"dataset": one.cell.dataset, "network": one.cell.network}
            row |= {"sigma": setting.runs[0].sigma, "lambda": setting.lambda_, "seeds": setting.n}
            row |= _numbers("accuracy", setting, "accuracy") | _numbers("energy_ratio", setting, "energy_ratio")
            rows.append(row | _numbers("decrease_percent", setting, "energy_decrease_percent"))
    return rows


def choices(plan: Plan, folder: Path) -> list[Row]:
    """What was trained with other readings of the paper: a row a setting of the cells of kind ``choices``."""
    rows: list[Row] = []
    for cell in (cell for cell in plan.cells if cell.kind == CHOICES):
        for setting in outcome(cell, folder).settings:
            first = setting.runs[0]
            dataset = RunFolder(first.folder).read_record().config["dataset"]
            row: Row = {"study": cell.experiment, "dataset": cell.dataset, "network": cell.network}
            row |= {"normalisation": first.normalisation, "scope": first.scope}
            row |= {"crop_padding": dataset["crop_padding"], "rotation_degrees": dataset["rotation_degrees"]}
            row |= {"lambda": setting.lambda_, "seeds": setting.n}
            row |= _numbers("accuracy", setting, "accuracy") | _numbers("energy_ratio", setting, "energy_ratio")
            rows.append(row | _numbers("decrease_percent", setting, "energy_decrease_percent"))
    keys = ("study", "normalisation", "scope", "crop_padding", "rotation_degrees", "lambda")
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys])


def readings() -> dict[str, PublishedHardware]:
    """Other readings of the paper's accounting that need no training."""
    published = load_hardware("published")
    assert isinstance(published, PublishedHardware)
    return {
        "as the code the paper builds on: batch 100, in-place inputs as built": published,
        "no activation in place": replace(published, inplace="none"),
        "every activation in place": replace(published, inplace="all"),
        "batch norm's statistics ten times": replace(published, bn_statistics_repeats=10),
        "batch 1": replace(published, batch=1),
        "batch 10": replace(published, batch=10),
        "batch 512": replace(published, batch=512),
    }


def accounting(found: Sequence[Outcome]) -> list[Row]:
    """How much each reading of the accounting moves Table 1 (the settings that the paper's rule picks)."""
    rows: list[Row] = []
    for one in found:
        pick = one.picks.get("paper")
        if one.baseline is None or pick is None:
            continue
        counts = {run.run_id: RunFolder(run.folder).read_counts() for run in (*one.baseline.runs, *pick.runs)}
        for label, hardware in readings().items():
            ratio = {i: estimate(in_batches_of(c, hardware.batch), hardware, "test").ratio for i, c in counts.items()}
            st, eat = ({run.seed: ratio[run.run_id] for run in s.runs} for s in (one.baseline, pick))
            # of each seed, as Table 1
            decreases = [100 * (st[seed] - eat[seed]) / st[seed] for seed in eat if seed in st]
            row: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "reading": label}
            row |= {"st_ratio": fmean(st.values()), "eat_ratio": fmean(eat.values())}
            rows.append(row | {"decrease_percent": fmean(decreases) if decreases else None})
    return rows


def in_batches_of(counts: Counts, batch: int) -> Counts:
    """The counts as if metered in batches of another size: activations add up over images, and parameters are charged
    once a batch. A batch's ratio is then the mean over the smaller ones with the same density; rounded to integers."""

    def regroup(row: BatchCounts) -> BatchCounts:
        batches = row.images / batch
        return replace(
            row,
            parameter_elements=round(row.parameter_elements * batches),
            parameter_nonzeros=round(row.parameter_nonzeros * batches),
            statistics_elements=round(row.statistics_elements * batches),
            statistics_nonzeros=round(row.statistics_nonzeros * batches),
        )

    if batch == counts.batch:
        return counts
    return replace(counts, batch=batch, batches=[regroup(row) for row in counts.batches if not row.is_floor])
