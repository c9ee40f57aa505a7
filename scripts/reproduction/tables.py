"""Runs on disk -> the rows of the tables: plain data, priced from the runs' counts. No torch."""

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev

from eat_runner.config.hardware import HardwareConfig
from eat_runner.energy.counts import BatchCounts, Counts
from eat_runner.energy.estimate import estimate
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.pareto import Front, Setting, fronts, select
from eat_runner.records import FINAL, RunFolder, Scalar
from eat_runner.sweep import Run, collate_runs
from reproduction.cells import RUNS, Cell, Plan

Row = dict[str, Scalar]
PAPER_TABLE1 = Path(__file__).resolve().parents[1] / "paper_table1.csv"
PAPER = "paper"
RULES = {"paper": "ours, paper's rule", "validation": "ours, our rule"}
MEASURES = ("st_accuracy", "eat_accuracy", "st_ratio", "eat_ratio", "decrease_percent")


@dataclass
class Outcome:
    """A cell's finished runs. settings: of all families, by energy ratio. baseline: standard training (ST). picks: what
    each rule selects among the settings with a lambda above 0; None where nothing is within 3 points, or nothing was
    measured on the split that it looks at. done: runs with a result; pending: those that may still get one. note: what
    is not there, and why."""

    cell: Cell
    fronts: list[Front] = field(default_factory=list[Front])
    baseline: Setting | None = None
    picks: dict[str, Setting | None] = field(default_factory=dict[str, Setting | None])
    done: int = 0
    pending: int = 0
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
    if cell.missing and not cell.run_ids:
        return Outcome(cell, note=f"not run: {cell.missing}")
    try:
        runs = planned_runs(cell, folder, load_hardware("published"))
    except UserError as error:
        return Outcome(cell, note=str(error))
    finished = [run for run in runs if run.priced]
    final = sum(run.status in FINAL for run in runs)
    found = fronts(finished, "paper")
    baseline = found[0].baseline if found else None
    penalised = [setting for setting in found[0].settings if not setting.is_baseline] if found else []
    picks = {rule: None if baseline is None else select(penalised, baseline, rule) for rule in RULES}
    one = Outcome(cell, found, baseline, picks, len(finished), len(cell.run_ids) - final)
    one.note = _note(one, runs)
    return one


def planned_runs(cell: Cell, folder: Path, hardware: HardwareConfig) -> list[Run]:
    """The runs of the plan that are on disk; others in the same folder, of an older plan, are left out."""
    runs = folder / RUNS / cell.name
    if not any((runs / identity / "record.json").exists() for identity in cell.run_ids):
        return []
    return [run for run in collate_runs(runs, hardware) if run.run_id in cell.run_ids]


def _note(one: Outcome, runs: Sequence[Run]) -> str:
    """What is not there: runs without a result by status, files that cannot be read, ST, the data set."""
    notes: list[str] = []
    planned = len(one.cell.run_ids)
    if one.done < planned:
        others = Counter(run.status for run in runs if run.status != "finished")
        counts = ", ".join(f"{number} {status}" for status, number in sorted(others.items()))
        notes.append(f"{one.done} of {planned} runs done" + (f" ({counts})" if counts else ""))
    notes += [run.reason for run in runs if run.status in {"finished", "broken"} and run.reason]
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
    if rule == "validation" and baseline.mean("accuracy_validation") is None:
        return "no validation split"
    if one.pending:
        return ""  # the runs that are not done may be within
    every_seed = "" if one.done == len(one.cell.run_ids) else " with every seed of it"
    return f"no lambda within 3 points of ST{every_seed}"


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
            assert one.baseline is not None
            head: Row = {"dataset": one.cell.dataset, "network": one.cell.network, "rule": rules}
            head |= {"lambda": pick.lambda_, "sigma": pick.runs[0].sigma}
            try:
                counts = _read_counts(one.baseline, pick)
            except UserError as error:
                rows.append(head | {"note": str(error)})
                continue
            network = counts[one.baseline.runs[0].run_id]
            for label, hardware in hardware_list().items():
                row = head | {"hardware": label, "process_nm": hardware.process_nm}
                row |= _gain(one.baseline, pick, counts, hardware)
                rows.append(row | {"weights_percent": 100 * weights_share(network, hardware)})
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


def _read_counts(*settings: Setting) -> dict[str, Counts]:
    """The counts of the settings' runs, by run id. UserError where a file is missing or damaged."""
    return {run.run_id: RunFolder(run.folder).read_counts() for setting in settings for run in setting.runs}


def _gain(standard: Setting, pick: Setting, counts: Mapping[str, Counts], hardware: HardwareConfig) -> Row:
    """Ratios and energies of both, and the decrease of each seed that both have, as Table 1; means and deviations."""
    reports = {run: estimate(in_batches_of(c, hardware.batch), hardware, "test") for run, c in counts.items()}
    st, eat = ({run.seed: reports[run.run_id] for run in setting.runs} for setting in (standard, pick))
    decreases = [100 * (st[seed].ratio - eat[seed].ratio) / st[seed].ratio for seed in eat if seed in st]
    row = _spread("st_ratio", [report.ratio for report in st.values()])
    row |= _spread("eat_ratio", [report.ratio for report in eat.values()])
    row |= _spread("decrease_percent", decreases)
    row |= _spread("st_uj_per_image", [report.energy_uj_per_image for report in st.values()])
    return row | _spread("eat_uj_per_image", [report.energy_uj_per_image for report in eat.values()])


def _spread(name: str, values: Iterable[float | None]) -> Row:
    """Mean and sample standard deviation (n - 1) of what is there."""
    there = [value for value in values if value is not None]
    return {name: fmean(there) if there else None, f"{name}_std": stdev(there) if len(there) > 1 else None}


def weights_share(counts: Counts, hardware: HardwareConfig) -> float:
    """Which part of the energy without zero-skipping goes into fetching parameters: what is saved if there are none.
    It depends on the network's shapes alone."""
    bare = replace(
        counts,
        layers=[replace(row, **dict.fromkeys(_PARAMETERS_OF_LAYER, 0)) for row in counts.layers],
        batches=[replace(row, **dict.fromkeys(_PARAMETERS_OF_BATCH, 0)) for row in counts.batches],
    )
    whole, without = (
        sum(layer.dense_pj for layer in estimate(in_batches_of(c, hardware.batch), hardware, "test").layers)
        for c in (counts, bare)
    )
    return 1 - without / whole


_PARAMETERS_OF_LAYER = [
    f"{part}_{what}" for part in ("weight", "bias", "statistics", "buffer") for what in ("elements", "nonzeros")
]
_PARAMETERS_OF_BATCH = [f"{part}_{what}" for part in ("parameter", "statistics") for what in ("elements", "nonzeros")]


def does_the_gain_survive(rows: Sequence[Row]) -> list[str]:
    """Table 2 in sentences, by the paper's rule: the answer, then each hardware on its own."""
    own = [row for row in rows if "paper" in str(row["rule"]) and row.get("decrease_percent") is not None]
    by_hardware: dict[str, list[tuple[float, float | None]]] = {}
    for row in own:
        decrease, std = row["decrease_percent"], row.get("decrease_percent_std")
        assert isinstance(decrease, float)
        by_hardware.setdefault(str(row["hardware"]), []).append((decrease, std if isinstance(std, float) else None))
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


# --- layers, ablation, choices -------------------------------------------------------------------------------------


def front_rows(one: Outcome) -> list[Row]:
    """Every setting of a cell of Table 1, with a mark for what each rule selects there."""
    rows: list[Row] = []
    for setting, row in zip(one.fronts[0].settings, one.fronts[0].rows(), strict=True):
        del row["selected"]  # by the front's own selection, to which ST itself is a candidate
        marks: Row = {f"selected_{rule}": setting is pick for rule, pick in one.picks.items()}
        rows.append(row | {"dataset": one.cell.dataset} | marks)
    return rows


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


def choices(found: Sequence[Outcome]) -> list[Row]:
    """What was trained with other readings of the paper: a row a setting of the cells of kind ``choices``."""
    rows: list[Row] = []
    for one in found:
        cell = one.cell
        for setting in one.settings:
            first = setting.runs[0]
            config = RunFolder(first.folder).read_record().config
            dataset, head = config["dataset"], config["model"].get("head", "linear")
            network = cell.network if head == "linear" else f"{cell.network}, {head} head"
            row: Row = {"study": cell.experiment, "dataset": cell.dataset, "network": network}
            row |= {"parameters": first.parameters}
            row |= {"weighting": first.weighting, "scope": first.scope}
            row |= {"crop_padding": dataset["crop_padding"], "rotation_degrees": dataset["rotation_degrees"]}
            row |= {"flip": "yes" if dataset["flip"] else "no"}
            row |= {"lambda": setting.lambda_, "seeds": setting.n}
            row |= _numbers("accuracy", setting, "accuracy") | _numbers("energy_ratio", setting, "energy_ratio")
            rows.append(row | _numbers("decrease_percent", setting, "energy_decrease_percent"))
    keys = ("study", "network", "weighting", "scope", "crop_padding", "rotation_degrees", "flip", "lambda")
    return sorted(rows, key=lambda row: [str(row[key]) for key in keys])


def readings() -> dict[str, HardwareConfig]:
    """Other readings of the paper's accounting that need no training."""
    published = load_hardware("published")
    return {
        "ours: batch 100, in-place inputs as built, statistics once": published,
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
        head: Row = {"dataset": one.cell.dataset, "network": one.cell.network}
        try:
            counts = _read_counts(one.baseline, pick)
        except UserError as error:
            rows.append(head | {"note": str(error)})
            continue
        for label, hardware in readings().items():
            rows.append(head | {"reading": label} | _gain(one.baseline, pick, counts, hardware))
    return rows


def in_batches_of(counts: Counts, batch: int | None) -> Counts:
    """The counts as if metered in batches of another size: activations add up over images, and parameters are charged
    once a batch. A batch's ratio is then the mean over the smaller ones with the same density; rounded to integers.
    None: as they were metered."""

    def regroup(row: BatchCounts) -> BatchCounts:
        batches = row.images / size
        return replace(
            row,
            parameter_elements=round(row.parameter_elements * batches),
            parameter_nonzeros=round(row.parameter_nonzeros * batches),
            statistics_elements=round(row.statistics_elements * batches),
            statistics_nonzeros=round(row.statistics_nonzeros * batches),
        )

    size = batch or counts.batch
    if size == counts.batch:
        return counts
    return replace(counts, batch=size, batches=[regroup(row) for row in counts.batches if not row.is_floor])
