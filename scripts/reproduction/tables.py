"""Runs on disk -> the rows of the tables: plain data, priced from the runs' counts. No torch."""

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
# a table's names of a setting's measures
OF_ST = {"st_accuracy": "accuracy", "st_ratio": "energy_ratio"}
OF_EAT = {"eat_accuracy": "accuracy", "eat_ratio": "energy_ratio", "decrease_percent": "energy_decrease_percent"}
OF_PRUNED = {"pruned_accuracy": "accuracy"}
OF_ANY = {"accuracy": "accuracy", "energy_ratio": "energy_ratio", "decrease_percent": "energy_decrease_percent"}


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

    @property
    def head(self) -> Row:
        return {"dataset": self.cell.dataset, "network": self.cell.network}

    def setting(self, setting_id: str) -> Row:
        return self.fronts[0].settings.loc[setting_id].to_dict()


def outcomes(plan: Plan, folder: Path, kind: str) -> list[Outcome]:
    """The cells of a kind, in the order of the paper's table, priced as the paper does."""
    runs, order = all_runs(folder), list(paper_rows())
    cells = [cell for cell in plan.cells if cell.kind == kind]
    return [outcome(c, runs) for c in sorted(cells, key=lambda c: order.index((c.paper_dataset, c.network)))]


def all_runs(folder: Path) -> pd.DataFrame:
    """Every run of a scale under the paper's accounting."""
    roots = [folder / RUNS] if (folder / RUNS).is_dir() else []
    return read_runs(roots, load_hardware("published"))


def outcome(cell: Cell, every: pd.DataFrame) -> Outcome:
    """every: the scale's runs; those that are not the cell's are left out."""
    if cell.missing and not cell.run_ids:
        return Outcome(cell, note=f"not run: {cell.missing}")
    runs = label_families(every[every["run_id"].isin(cell.run_ids)])
    one = Outcome(cell, fronts(runs, "paper"), done=int(is_priced(runs).sum()))
    one.pending = len(cell.run_ids) - int(runs["status"].isin(FINAL).sum())
    if one.baseline is not None:
        one.picks = {rule: select(one.fronts[0].runs, one.baseline, rule, reference_too=False) for rule in RULES}
    one.note = "; ".join(_notes(one, runs))
    return one


def _notes(one: Outcome, runs: pd.DataFrame) -> Iterable[str]:
    """What is not there: runs without a result by status, files that cannot be read, ST, the data set."""
    if one.done < len(one.cell.run_ids):
        others = runs.loc[runs["status"] != "finished", "status"].value_counts().sort_index()
        counts = ", ".join(f"{number} {status}" for status, number in others.items())
        yield f"{one.done} of {len(one.cell.run_ids)} runs done" + (f" ({counts})" if counts else "")
    yield from filter(None, runs.loc[runs["status"].isin(["finished", "broken"]), "reason"])
    if one.done and one.baseline is None:
        yield "no standard training yet" if one.pending else "no standard training: it diverged"
    if one.cell.missing:
        yield f"the others cannot be run: {one.cell.missing}"


def _measures(setting: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    """Mean and deviation over seeds of a setting's measures; None where there is none."""
    found = {f"{name}{std}": setting[f"{key}{std}"] for name, key in names.items() for std in ("", "_std")}
    return {name: None if value != value else value for name, value in found.items()}


# --- Table 1 -------------------------------------------------------------------------------------------------------


def paper_rows() -> dict[tuple[str, str], Row]:
    """The paper's Table 1 as printed, by data set and network."""
    printed = pd.read_csv(PAPER_TABLE1, dtype="object").astype(dict.fromkeys((*OF_ST, *OF_EAT), float))
    printed = printed.rename(columns={"source": "note"})
    printed.insert(2, "source", PAPER)
    return {(row["dataset"], row["network"]): row for row in printed.to_dict("records")}


def table1(found: Sequence[Outcome]) -> list[Row]:
    """For each cell the paper's row, then ours by the paper's rule and by ours (validation split)."""
    rows: list[Row] = []
    for one in found:
        rows += [paper_rows()[one.cell.paper_dataset, one.cell.network], *(_ours(one, rule) for rule in RULES)]
    return rows


def _ours(one: Outcome, rule: str) -> Row:
    row, notes = one.head | {"source": RULES[rule]}, [one.note]
    if one.baseline is not None:
        st, pick = one.setting(one.baseline), one.picks[rule]
        row |= _measures(st, OF_ST) | {"floor": one.fronts[0].floor, "st_seeds": st["n"]}
        if pick is not None:
            eat = one.setting(pick)
            row |= _measures(eat, OF_EAT) | {"lambda": eat["lambda"], "sigma": eat["sigma"], "eat_seeds": eat["n"]}
        elif rule == "validation" and pd.isna(st["accuracy_validation"]):
            notes.append("no validation split")
        elif not one.pending:  # the runs that are not done may be within
            every_seed = "" if one.done == len(one.cell.run_ids) else " with every seed of it"
            notes.append(f"no lambda within 3 points of ST{every_seed}")
    done = {"runs_done": one.done, "runs_planned": len(one.cell.run_ids)}
    return row | done | {"note": "; ".join(filter(None, notes))}


def against_paper(rows: Sequence[Row]) -> list[str]:
    """A sentence a cell: is EAT's ratio at or below the paper's, with accuracy at or above it (by the paper's rule)?"""
    lines: list[str] = []
    printed, ours = ([row for row in rows if row["source"] == source] for source in (PAPER, RULES["paper"]))
    for paper, row in zip(printed, ours, strict=True):
        if row.get("eat_ratio") is not None:
            ratio, accuracy = (row[key] - paper[key] for key in ("eat_ratio", "eat_accuracy"))
            reached = "reached" if ratio <= 0 <= accuracy else "not reached"
            differences = f"EAT ratio {ratio:+.3f}, EAT accuracy {accuracy:+.3f} against the paper's"
            lines.append(f"{row['dataset']}, {row['network']}: {reached} ({differences})")
    return lines


# --- other prices: Table 2, and other readings of the accounting ---------------------------------------------------

_PUBLISHED, _FUSED = load_hardware("published"), load_hardware("fused_45nm")
# From the paper's accounting to a fused accelerator that shares the weights as the paper's does, to one that fetches
# them for every image; then one thing of that one changes at a time, the last two together. Eyeriss is another machine.
HARDWARE = {
    "published (the paper's accounting)": _PUBLISHED,
    "fused, 45 nm, weights shared by 100 images": replace(_FUSED, weight_reuse=100),
    "fused, 45 nm": _FUSED,
    "fused, 45 nm, no product skipped": replace(_FUSED, skip="none"),
    "fused, 45 nm, int8": load_hardware("fused_45nm_int8"),
    "fused, 7 nm": load_hardware("fused_7nm"),
    "fused, 7 nm, int8": load_hardware("fused_7nm_int8"),
    "Eyeriss, 65 nm": load_hardware("eyeriss_65nm"),
}
# readings of the paper's accounting that need no training
READINGS = {
    "ours: batch 100, in-place inputs as built, statistics once": _PUBLISHED,
    "no activation in place": replace(_PUBLISHED, inplace="none"),
    "every activation in place": replace(_PUBLISHED, inplace="all"),
    "batch norm's statistics ten times": replace(_PUBLISHED, bn_statistics_repeats=10),
    **{f"batch {size}": replace(_PUBLISHED, batch_size=size) for size in (1, 10, 512)},
}


def table2(found: Sequence[Outcome]) -> list[Row]:
    """The networks of Table 1 (selected under the paper's accounting) on other hardware."""
    return _repriced(found, "hardware", HARDWARE, RULES)


def accounting(found: Sequence[Outcome]) -> list[Row]:
    """How much each reading of the accounting moves Table 1 (the settings that the paper's rule picks)."""
    rows = _repriced(found, "reading", READINGS, ["paper"])
    return _without(rows, "rule", "lambda", "sigma", "process_nm", "weights_percent")


def _without(rows: Sequence[Row], *keys: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def _repriced(
    found: Sequence[Outcome], what: str, prices: Mapping[str, HardwareConfig], rules: Iterable[str]
) -> list[Row]:
    """A row a cell, rule and price list; one row for the rules that pick the same setting. Where counts cannot be read,
    one row says so. what: the key of the price lists' names."""
    rows: list[Row] = []
    for one in found:
        for pick in dict.fromkeys(filter(None, map(one.picks.get, rules))):
            setting, by = one.setting(pick), " and ".join(rule for rule in rules if one.picks[rule] == pick)
            head = one.head | {"rule": by, "lambda": setting["lambda"], "sigma": setting["sigma"]}
            rows += _by_price(one, pick, head, what, prices)
    return rows


def _by_price(one: Outcome, pick: str, head: Row, what: str, prices: Mapping[str, HardwareConfig]) -> list[Row]:
    """A setting beside standard training, a row a price list."""
    try:
        before, after = _counts(one, one.baseline), _counts(one, pick)
    except UserError as error:
        return [head | {"note": str(error)}]
    labelled = {label: {what: label, "process_nm": hardware.process_nm} for label, hardware in prices.items()}
    return [head | labelled[label] | _gain(before, after, hardware) for label, hardware in prices.items()]


def chip(found: Sequence[Outcome]) -> list[Row]:
    """What was trained for a chip beside standard training: a row a cell and hardware; one where there is nothing yet,
    or counts cannot be read."""
    rows: list[Row] = []
    for one in found:
        head, pruned = one.head, None
        if one.baseline is not None:
            others = one.fronts[0].settings.index.difference([one.baseline])
            pruned = next(iter(others), None)
            head = head | _measures(one.setting(one.baseline), {"st_accuracy": "accuracy"})
        if pruned is None:
            rows.append(head | {"note": one.note})
            continue
        head = head | _measures(one.setting(pruned), OF_PRUNED) | {"seeds": one.setting(pruned)["n"], "note": one.note}
        priced = _by_price(one, pruned, head, "hardware", HARDWARE)
        rows += [{key.replace("eat_", "pruned_"): value for key, value in row.items()} for row in priced]
    return rows


def _counts(one: Outcome, setting_id: str | None) -> dict[int, Counts]:
    """The counts of a setting's runs, by seed. UserError where a file is missing or damaged."""
    runs = one.fronts[0].runs.set_index("seed").query("setting_id == @setting_id")
    return {seed: RunFolder(folder).read_counts() for seed, folder in runs["folder"].items()}


def _gain(before: Mapping[int, Counts], after: Mapping[int, Counts], hardware: HardwareConfig) -> Row:
    """Ratios and energies of ST and EAT, and the decrease of each seed that both have, as Table 1: means and sample
    deviations (n - 1) of what is there."""
    st, eat = (
        pd.DataFrame({seed: estimate_regrouped(c, hardware).summary() for seed, c in counts.items()}).T
        for counts in (before, after)
    )
    measured = {
        "st_ratio": st["ratio"],
        "eat_ratio": eat["ratio"],
        "decrease_percent": 100 * (st["ratio"] - eat["ratio"]) / st["ratio"],
        "st_uj_per_image": st["energy_uj_per_image"],
        "eat_uj_per_image": eat["energy_uj_per_image"],
    }
    row: Row = {}
    for name, values in measured.items():
        there = values.dropna().tolist()
        row |= {name: fmean(there) if there else None, f"{name}_std": stdev(there) if len(there) > 1 else None}
    return row | {"weights_percent": 100 * weights_share(next(iter(before.values())), hardware)}


# what a hardware's decrease is, by its part of the one by the paper's accounting
SURVIVES = {"as much or more": 0.9, "a part of it": 0.2, "hardly anything": 0.0, "nothing": float("-inf")}
ANSWER = (
    "Does EAT's gain survive beyond the paper's accounting? By that, the energy ratio falls by {:.1f} % in {}. On "
    "other hardware the same networks save: {}."
)
OF_ONE_SEED = "above 0 in {above} of {n} cells (there are cells of one seed, without a standard deviation)"
CERTAIN = "more than its standard deviation in {certain} of {n} cells"


def does_the_gain_survive(rows: Sequence[Row]) -> list[str]:
    """Table 2 in sentences, by the paper's rule: the answer, then each hardware on its own, and in how many cells the
    decrease is a saving that is larger than its standard deviation over the seeds."""
    own = pd.DataFrame([row for row in rows if "paper" in row["rule"] and row.get("decrease_percent") is not None])
    if own.empty:
        return []
    decrease, std = own["decrease_percent"], own["decrease_percent_std"].astype(float)
    own = own.assign(above=decrease > 0, certain=decrease > std, lonely=std.isna()).groupby("hardware", sort=False)
    cells = own.agg({"above": "sum", "certain": "sum", "lonely": "any"})
    cells = cells.join(own["decrease_percent"].agg(mean=fmean, least="min", most="max", n="size")).reset_index()
    first, *others = cells.to_dict("records")
    lines: list[str] = []
    by_verdict: dict[str, list[str]] = {verdict: [] for verdict in SURVIVES}
    for cell in (first, *others):
        verdict = next((name for name, part in SURVIVES.items() if cell["mean"] > part * abs(first["mean"])), "nothing")
        by_verdict[verdict] += [repr(cell["hardware"])] if cell is not first else []
        known = cell is not first and first["mean"] > 0
        part = f", {cell['mean'] / first['mean']:.0%} of that by the paper's accounting" if known else ""
        certainty = (OF_ONE_SEED if cell["lonely"] else CERTAIN).format(**cell)
        span = "{hardware}: {mean:.1f} %{part} ({least:.1f} to {most:.1f})".format(part=part, **cell)
        lines.append(f"{span}, {certainty}")
    where = "the one cell that is done" if first["n"] == 1 else f"the mean of {first['n']} cells"
    parts = "; ".join(f"{verdict} on {', '.join(labels)}" for verdict, labels in by_verdict.items() if labels)
    return [ANSWER.format(first["mean"], where, parts), *lines]


# --- fronts, ablation, choices -------------------------------------------------------------------------------------


def front_rows(one: Outcome) -> pd.DataFrame:
    """Every setting of a cell of Table 1, with a mark for what each rule selects there."""
    # not by the front's own selection, to which ST itself is a candidate
    rows = pareto_table(one.fronts[:1]).drop(columns="selected").assign(dataset=one.cell.dataset)
    return rows.assign(**{f"selected_{rule}": rows["setting_id"] == pick for rule, pick in one.picks.items()})


CHOSEN = ("weighting", "scope", "crop_padding", "rotation_degrees", "flip")


def ablation(found: Sequence[Outcome]) -> list[Row]:
    """Figure 3 as numbers: a row a data set, sigma and lambda; standard training (lambda 0) has no sigma."""
    return _without(_settings(found), "study", "parameters", *CHOSEN)


def choices(found: Sequence[Outcome]) -> list[Row]:
    """What was trained with other readings of the paper: a row a setting of the cells of kind ``choices``."""
    keys = ("study", "network", *CHOSEN, "lambda")
    return sorted(_without(_settings(found), "sigma"), key=lambda row: [str(row[key]) for key in keys])


def _settings(found: Sequence[Outcome]) -> list[Row]:
    """A row a setting, of each cell by sigma and lambda."""
    rows: list[Row] = []
    for one in (one for one in found if one.fronts):
        runs = pd.concat([front.runs for front in one.fronts]).drop_duplicates("setting_id").set_index("setting_id")
        settings = pd.concat([front.settings for front in one.fronts]).join(runs[["parameters", "folder"]])
        for setting in settings.sort_values(["sigma", "lambda"], na_position="first").to_dict("records"):
            config = RunFolder(setting["folder"]).read_record().config
            head, images = config["model"].get("head", "linear"), config["dataset"]
            network = one.cell.network if head == "linear" else f"{one.cell.network}, {head} head"
            row: Row = {"study": one.cell.experiment, "dataset": one.cell.dataset, "network": network}
            row |= {key: setting[key] for key in ("parameters", "weighting", "scope")}
            row |= {key: images[key] for key in ("crop_padding", "rotation_degrees")}
            row |= {"flip": "yes" if images["flip"] else "no"}
            row |= {"sigma": None if pd.isna(setting["sigma"]) else setting["sigma"]}
            rows.append(row | {"lambda": setting["lambda"], "seeds": setting["n"]} | _measures(setting, OF_ANY))
    return rows
