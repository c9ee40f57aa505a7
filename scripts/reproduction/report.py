"""A scale's folder -> Table 1, Table 2, Figures 1 to 3 and the choices as CSV, Markdown, LaTeX, PNG and SVG. No torch.

README.md in the folder is the page that shows all of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.table import to_csv
from eat_runner.claims import report_lock
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunRecord, write_atomically
from eat_runner.report import plots
from eat_runner.report.latex import latex
from eat_runner.report.markdown import markdown
from eat_runner.report.view import number, table_of
from reproduction import figures, tables
from reproduction.cells import (
    ABLATION,
    CHOICES,
    CIFAR10_CONTENT,
    JPEG_LABEL,
    NETWORKS,
    TABLE1,
    Plan,
    read_plan,
    run_folder,
)
from reproduction.tables import Outcome, Row

Columns = Mapping[str, Callable[[Mapping[str, Any]], str]]
SOURCE = "Lazzaro et al., ICIAP 2023, arXiv 2307.00368"


def write(folder: Path) -> str:
    """Write everything that the runs in ``folder`` give; the text that a person is shown. UserError without a plan."""
    plan = read_plan(folder)
    with report_lock(folder):
        found = tables.outcomes(plan, folder, TABLE1)
        page = _Page(folder, plan)
        page.text(f"# The paper's results, reproduced: scale {plan.scale}", f"`{plan.command}`")
        _table1(page, found)
        _table2(page, found)
        for n, network in enumerate(NETWORKS.values(), start=1):
            _layer_figure(page, n, network, [one for one in found if one.cell.network == network])
        _ablation(page, tables.outcomes(plan, folder, ABLATION))
        _choices(page, found)
        _front(page, found)
        _provenance(page)
        page.save()
    return "\n\n".join([*page.shown, f"{page.path} shows all tables and figures"])


class _Page:
    """README.md as it grows, and the files beside it. Files of an earlier report that has rows this one lacks go."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self.path = folder / "README.md"
        self.parts: list[str] = []
        self.shown: list[str] = []

    def text(self, *paragraphs: str) -> None:
        self.parts += [paragraph for paragraph in paragraphs if paragraph]

    def csv(self, stem: str, rows: Sequence[Row] | pd.DataFrame) -> None:
        """``stem``.csv, whose first column is the scale."""
        frame = pd.DataFrame(rows, dtype="object").reset_index(drop=True)
        frame.insert(0, "scale", self.plan.scale)
        write_atomically(self.folder / f"{stem}.csv", to_csv(frame))

    def table(self, stem: str, kind: str, title: str, rows: Sequence[Row], columns: Columns, *remarks: str) -> None:
        """``stem``.csv with every number, .md and .tex as people read them, and the same on the page."""
        self.remove(*(() if rows else (f"{stem}.csv", f"{stem}.md", f"{stem}.tex")))
        if not rows:
            return
        if any(row.get("note") for row in rows):
            columns = {**columns, "note": _note}
        caption, table = self.caption(title, kind), table_of(rows, columns)
        self.csv(stem, rows)
        text = "\n\n".join([f"**{caption}**", markdown(table), *remarks])
        write_atomically(self.folder / f"{stem}.md", text.encode() + b"\n")
        write_atomically(self.folder / f"{stem}.tex", latex(table, caption, remarks).encode())
        self.text(text)

    def figure(self, stem: str, kind: str, title: str, figure: Figure) -> None:
        plots.save(figure, self.folder / stem)
        self.text(f"![{title}]({stem}.png)", f"**{title}** {self.caption('', kind)}")

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def caption(self, title: str, kind: str) -> str:
        return f"{title} {self.plan.captions[kind]}{self.full_scale(kind)}".strip()

    def full_scale(self, kind: str) -> str:
        """What there is of the full scale, where this is another one."""
        if self.plan.scale == "full" or kind == CHOICES:
            return ""
        done, planned = finished_runs(self.folder.parent / "full", kind)
        if not done:
            return " Scale full, the paper's protocol, was not run here."
        return "" if done == planned else f" Of scale full, the paper's protocol, {done} of {planned} runs are done."

    def save(self) -> None:
        write_atomically(self.path, "\n\n".join(self.parts).encode() + b"\n")


def finished_runs(folder: Path, kind: str) -> tuple[int, int]:
    """How many runs of a kind of experiment a scale's plan has finished, and how many it has; 0 of 0 without one."""
    try:
        plan = read_plan(folder)
    except UserError:
        return 0, 0
    records = [record for cell in plan.cells if cell.kind == kind for record in _records(folder, cell.run_ids)]
    planned = sum(len(cell.run_ids) for cell in plan.cells if cell.kind == kind)
    return sum(record.status == "finished" for record in records), planned


def _records(folder: Path, run_ids: Iterable[str]) -> Iterable[RunRecord]:
    for identity in run_ids:
        with suppress(UserError):  # not there, or damaged
            yield run_folder(folder, identity).read_record()


# --- the parts of the page -----------------------------------------------------------------------------------------

STD = "± is the sample standard deviation over seeds (n - 1)."


def _table1(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table1(found)
    rules = (
        "Paper's rule: the lowest energy ratio among the settings with a lambda above 0 whose accuracy on the test set "
        "is within 3 points of ST. Our rule: the same on the validation split, so that the test set chooses nothing; "
        "the numbers shown are on the test set either way. Either rule compares the same seeds: a setting that lacks "
        f"one of ST's is not selected. Mean over seeds; {STD} Floor: the ratio with every activation at zero; no "
        "training goes below. The paper's numbers have its two digits."
    )
    goal = tables.against_paper(rows) if page.plan.scale == "full" else []
    page.text("## Table 1")
    title = f"Table 1: accuracy and energy ratio, ours beside the paper's ({SOURCE}, Table 1)."
    columns = {**TABLE1_COLUMNS, "note": _note}
    page.table("table1", TABLE1, title, rows, columns, *filter(None, [rules, _jpeg_copy(found)]))
    page.text(_bullets(goal))
    page.shown += [markdown(table_of(rows, columns)), page.plan.captions[TABLE1]]


def _jpeg_copy(found: Sequence[Outcome]) -> str:
    content = next((one.cell.content for one in found if one.cell.dataset == JPEG_LABEL), None)
    if content is None:
        return ""
    there = content or "how many images there are was not looked at"
    official = "" if content == CIFAR10_CONTENT else f" (CIFAR-10 has {CIFAR10_CONTENT})"
    return f"{JPEG_LABEL}: {there}{official}; compressed with losses, so not bit-identical to CIFAR-10."


def _table2(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table2(found)
    page.text("## Table 2: does the gain survive on other hardware?")
    if not rows:
        page.text("No cell has both ST and a selected EAT yet.")
    plain = tables.does_the_gain_survive(rows)
    remark = (
        "The networks of Table 1, selected under the paper's accounting, at other prices. Fused: batch norm and ReLU "
        "cost nothing, products with a zero are skipped exactly, tensors are stored compressed, and the weights are "
        "fetched for every image, unless the row says otherwise: the rows below fused, 45 nm change one thing each, "
        "7 nm with int8 two; Eyeriss is another machine. Weights: their part of the energy without zero-skipping, "
        f"which depends on the network's shapes alone. {STD} Energies in µJ are in table2.csv."
    )
    page.table("table2", TABLE1, "Table 2: energy by other hardware.", rows, TABLE2_COLUMNS, remark, _bullets(plain))
    page.shown.append("\n".join(plain))


def _layer_figure(page: _Page, n: int, network: str, found: Sequence[Outcome]) -> None:
    stem, published = f"figure{n}", load_hardware("published")
    panels: list[LayerPanel] = []
    absent: list[str] = []
    for one in found:
        try:
            panel = figures.layer_panel(one, published)
        except UserError as error:
            absent.append(f"{one.cell.title}: {error}")
            continue
        if panel is None:
            absent.append(f"{one.cell.title}: {one.note or 'no EAT run'}")
        else:
            panels.append(panel)
    page.text(f"## Figure {n}")
    page.csv(stem, figures.layer_rows(panels))
    if panels:
        title = f"Figure {n}: firing neurons per layer of {network}, ST and EAT, test split."
        drawn = plots.firing_figure(panels, f"Figure {n} · test split · {page.plan.briefs[TABLE1]}")
        page.figure(stem, TABLE1, title, drawn)
        change = "change in points by kind of layer"
        page.text(_bullets(f"{p.family}, {p.eat_label}: {change}: {figures.fallen_most(p)}" for p in panels))
    else:
        page.remove(f"{stem}.png", f"{stem}.svg")
    page.text(_bullets(absent))


def _ablation(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.ablation(found)
    page.text("## Figure 3")
    if rows:
        several = any(row["seeds"] > 1 for row in rows)
        title = "Figure 3: ablation on lambda and sigma, ResNet18, test split (the paper looks at 100 random samples)."
        drawn = figures.ablation_figure(rows, f"Figure 3 · ResNet18 · test split · {page.plan.briefs[ABLATION]}")
        page.figure("figure3", ABLATION, title + (f" {STD}" if several else ""), drawn)
    else:
        page.remove("figure3.png", "figure3.svg")
    page.table("figure3", ABLATION, "Figure 3 in numbers.", rows, ABLATION_COLUMNS)
    page.text(_bullets(f"{one.cell.title}: {one.note}" for one in found if one.note))


def _choices(page: _Page, found: Sequence[Outcome]) -> None:
    page.text("## Where the paper is ambiguous")
    runs = tables.all_runs(page.folder)
    studied = [tables.outcome(cell, runs) for cell in page.plan.cells if cell.kind == CHOICES]
    title = "Choices of training: other readings of the paper, trained anew."
    rows = tables.choices(studied)
    page.table("choices", CHOICES, title, rows, CHOICES_COLUMNS, STD)
    if rows:
        drawn = figures.choices_figure(rows, f"test split · {page.plan.briefs[CHOICES]}")
        page.figure("choices", CHOICES, title, drawn)
    else:
        page.remove("choices.png", "choices.svg")
    page.text(_bullets(f"{one.cell.experiment}: {one.note}" for one in studied if one.note))
    title = "Readings of the accounting: the networks of Table 1 that the paper's rule picks."
    page.table("accounting", TABLE1, title, tables.accounting(found), ACCOUNTING_COLUMNS, STD)


def _front(page: _Page, found: Sequence[Outcome]) -> None:
    """Accuracy against energy of every setting of Table 1's cells, under the names that the cells have here."""
    there = [one for one in found if one.fronts]
    page.csv("fronts", pd.concat([tables.front_rows(one) for one in there]) if there else [])
    if not there:
        page.remove("fronts.png", "fronts.svg")
        return
    rule = "validation" if any(one.picks.get("validation") for one in there) else "paper"
    name = tables.RULES[rule].removeprefix("ours, ")
    page.text("## Fronts")
    drawn = figures.front_figure(
        [figures.picked(one, rule) for one in there],
        name,
        f"hardware published, batch 100 · {page.plan.briefs[TABLE1]}",
    )
    title = f"Accuracy against energy ratio, every lambda; in a ring what {name} selects."
    page.figure("fronts", TABLE1, title, drawn)


def _provenance(page: _Page) -> None:
    """provenance.json: what made the numbers, from the runs' own records; a run that several cells have counts once."""
    made: dict[str, dict[str, Any]] = {}
    for record in _records(page.folder, dict.fromkeys(i for cell in page.plan.cells for i in cell.run_ids)):
        by = {"git_commit": record.git_commit, "versions": record.versions, "machine": record.machine}
        by |= {"device": record.device, "threads": record.threads}
        entry = made.setdefault(json.dumps(by, sort_keys=True), by | {"runs": 0, "training_s": 0.0})
        entry["runs"] += 1
        entry["training_s"] += sum(seconds or 0.0 for seconds in record.timings.values())
    makers = [made[key] for key in sorted(made)]
    values = {"command": page.plan.command, "scale": page.plan.scale, "made_by": makers}
    text = json.dumps(values, indent=1, ensure_ascii=False)
    write_atomically(page.folder / "provenance.json", text.encode() + b"\n")
    page.text("## Made by", _bullets(_maker(entry) for entry in makers))


def _maker(entry: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items() if version)
    machine = entry["machine"]
    where = (
        machine.get("accelerator")
        or f"{machine.get('processor')}, {entry['threads']} thread{'s' * (entry['threads'] > 1)} a run"
    )
    hours = entry["training_s"] / 3600
    return f"{entry['runs']} runs, {hours:.2f} hours of training on {where}; commit {entry['git_commit']}; {versions}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# --- columns -------------------------------------------------------------------------------------------------------


def _text(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else str(row[key])


def _real(key: str, digits: int) -> Callable[[Mapping[str, Any]], str]:
    """``view.number``, but the paper's numbers have the paper's two digits."""

    def cell(row: Mapping[str, Any]) -> str:
        return number(row.get(key), row.get(f"{key}_std"), 2 if row.get("source") == tables.PAPER else digits)

    return cell


def _short(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:g}"


def _seeds(row: Mapping[str, Any]) -> str:
    """How many seeds ST and EAT really have."""
    st, eat = row.get("st_seeds"), row.get("eat_seeds")
    if st is None:
        return ""
    return f"{st}" if eat in {None, st} else f"ST {st}, EAT {eat}"


def _note(row: Mapping[str, Any]) -> str:
    return "" if row.get("source") == tables.PAPER else str(row.get("note") or "")


_CELL: Columns = {"data set": _text("dataset"), "network": _text("network")}
_SETTING: Columns = {"λ": _short("lambda"), "σ": _short("sigma")}
_RATIOS: Columns = {
    "ST ratio": _real("st_ratio", 3),
    "EAT ratio": _real("eat_ratio", 3),
    "decrease %": _real("decrease_percent", 2),
}
_OUTCOME: Columns = {
    "seeds": _short("seeds"),
    "accuracy": _real("accuracy", 3),
    "ratio": _real("energy_ratio", 3),
    "decrease %": _real("decrease_percent", 2),
}
TABLE1_COLUMNS: Columns = {
    **_CELL,
    "": _text("source"),
    "ST accuracy": _real("st_accuracy", 3),
    "EAT accuracy": _real("eat_accuracy", 3),
    **_RATIOS,
    "floor": _real("floor", 3),
    **_SETTING,
    "seeds": _seeds,
}
TABLE2_COLUMNS: Columns = {
    **_CELL,
    "rule": _text("rule"),
    **_SETTING,
    "hardware": _text("hardware"),
    **_RATIOS,
    "weights %": _real("weights_percent", 1),
}
ABLATION_COLUMNS: Columns = {**_CELL, "σ": _short("sigma"), "λ": _short("lambda"), **_OUTCOME}
CHOICES_COLUMNS: Columns = {
    **_CELL,
    "parameters": _text("parameters"),
    "weighting": _text("weighting"),
    "scope": _text("scope"),
    "crop padding": _text("crop_padding"),
    "rotation": _text("rotation_degrees"),
    "flip": _text("flip"),
    "λ": _short("lambda"),
    **_OUTCOME,
}
ACCOUNTING_COLUMNS: Columns = {**_CELL, "reading": _text("reading"), **_RATIOS}
