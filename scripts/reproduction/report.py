"""A scale's folder -> Table 1, Table 2, Figures 1 to 3 and the choices as CSV, Markdown, LaTeX, PNG and SVG. No torch.

README.md in the folder is the page that shows all of them.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eat_runner import plots
from eat_runner.claims import report_lock
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, csv_bytes, write_atomically
from reproduction import figures, tables
from reproduction.cells import ABLATION, JPEG_LABEL, NETWORKS, PLAN, RUNS, TABLE1, Plan, read_plan
from reproduction.tables import Outcome, Row

Column = tuple[str, Callable[[Row], str]]


def write(folder: Path) -> str:
    """Write everything that the runs in ``folder`` give; the text that a person is shown. UserError without a plan."""
    plan = read_plan(folder)
    with report_lock(folder):
        found = tables.outcomes(plan, folder, TABLE1)
        page = _Page(folder, plan)
        page.text(f"# The paper's results, reproduced: scale {plan.scale}", f"`{plan.command}`")
        _table1(page, found)
        _table2(page, found)
        for number, network in enumerate(NETWORKS.values(), start=1):
            _layer_figure(page, number, network, [one for one in found if one.cell.network == network])
        _ablation(page, tables.outcomes(plan, folder, ABLATION))
        _choices(page, found)
        _front(page, found)
        _provenance(page)
        page.save()
    return "\n\n".join([*page.shown, f"{page.path} shows all tables and figures"])


class _Page:
    """README.md as it grows, and the files beside it."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self.path = folder / "README.md"
        self.parts: list[str] = []
        self.shown: list[str] = []

    def text(self, *paragraphs: str) -> None:
        self.parts += [paragraph for paragraph in paragraphs if paragraph]

    def table(self, stem: str, title: str, rows: Sequence[Row], columns: Sequence[Column], *remarks: str) -> None:
        """``stem``.csv with every number, .md and .tex as people read them, and the same on the page."""
        caption = f"{title} {self.plan.caption}{self.not_full()}"
        write_atomically(self.folder / f"{stem}.csv", csv_bytes(rows))
        text = "\n\n".join([f"**{caption}**", markdown(rows, columns), *remarks])
        write_atomically(self.folder / f"{stem}.md", text.encode() + b"\n")
        write_atomically(self.folder / f"{stem}.tex", latex(rows, columns, caption, remarks).encode())
        self.text(text)

    def figure(self, stem: str, title: str, figure: Any) -> None:
        plots.save(figure, self.folder / stem)
        self.text(f"![{title}]({stem}.png)", f"**{title}** {self.plan.caption}{self.not_full()}")

    def not_full(self) -> str:
        """The full scale has not been run where it has no plan."""
        there = self.plan.scale == "full" or (self.folder.parent / "full" / PLAN).exists()
        return "" if there else " Scale full, the paper's protocol, was not run here."

    def save(self) -> None:
        write_atomically(self.path, "\n\n".join(self.parts).encode() + b"\n")


# --- the parts of the page -----------------------------------------------------------------------------------------


def _table1(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table1(found)
    rules = (
        "Paper's rule: the lowest energy ratio among the settings with a lambda above 0 whose accuracy on the test set "
        "is within 3 points of ST. Our rule: the same on the validation split, so that the test set chooses nothing; "
        "the numbers shown are on the test set either way. Mean ± standard deviation over seeds. Floor: the ratio with "
        "every activation at zero; no training goes below."
    )
    goal = tables.against_paper(rows) if page.plan.scale == "full" else []
    page.text("## Table 1")
    jpeg = (
        f"{JPEG_LABEL}: all 60,000 images, re-encoded with losses: not bit-identical to CIFAR-10."
        if any(one.cell.dataset == JPEG_LABEL for one in found)
        else ""
    )
    title = "Table 1: accuracy and energy ratio, ours beside the paper's."
    page.table("table1", title, rows, TABLE1_COLUMNS, *filter(None, [rules, jpeg]))
    page.text("\n".join(f"- {line}" for line in goal))
    page.shown += [markdown(rows, TABLE1_COLUMNS), page.plan.caption]


def _table2(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table2(found, page.folder)
    page.text("## Table 2: does the gain survive on other hardware?")
    if not rows:
        page.text("No cell has both ST and a selected EAT yet.")
        return
    plain = tables.does_the_gain_survive(rows)
    remark = "The networks of Table 1, selected under the paper's accounting, at other prices; decrease of the ratio."
    page.table("table2", "Table 2: energy by other hardware.", rows, TABLE2_COLUMNS, remark, _bullets(plain))
    page.shown.append("\n".join(plain))


def _layer_figure(page: _Page, number: int, network: str, found: Sequence[Outcome]) -> None:
    panels = figures.layer_panels(found, load_hardware("published"))
    stem = f"figure{number}"
    page.text(f"## Figure {number}")
    write_atomically(page.folder / f"{stem}.csv", csv_bytes(figures.layer_rows(panels), ["cell"]))
    absent = [f"{one.cell.title}: {one.note or 'no EAT run'}" for one in found if figures.shown_beside_st(one) is None]
    if panels:
        title = f"Figure {number}: firing neurons per layer of {network}, ST and EAT, test split."
        page.figure(stem, title, plots.firing_figure(panels, f"Figure {number} · test split · {page.plan.brief}"))
        page.text(_bullets(f"{p.family}: change in points by kind of layer: {figures.fallen_most(p)}" for p in panels))
    page.text(_bullets(absent))


def _ablation(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.ablation(found)
    page.text("## Figure 3")
    if rows:
        title = "Figure 3: ablation on lambda and sigma, ResNet18, test split."
        drawn = figures.ablation_figure(rows, f"Figure 3 · ResNet18 · test split · {page.plan.brief}")
        page.figure("figure3", title, drawn)
    write_atomically(page.folder / "figure3.csv", csv_bytes(rows, ["dataset"]))
    page.text(_bullets(f"{one.cell.title}: {one.note}" for one in found if one.note))


def _choices(page: _Page, found: Sequence[Outcome]) -> None:
    page.text("## Where the paper is ambiguous")
    trained = tables.choices(page.plan, page.folder)
    if trained:
        size = "" if page.plan.scale == "smoke" else " Always at slim size, whatever the scale."
        page.table("choices", f"Choices of training.{size}", trained, CHOICES_COLUMNS)
    readings = tables.accounting(found)
    if readings:
        page.table("accounting", "Readings of the accounting, same networks.", readings, ACCOUNTING_COLUMNS)


def _front(page: _Page, found: Sequence[Outcome]) -> None:
    """Accuracy against energy of every setting of Table 1's cells, under the names that the cells have here."""
    there = [one for one in found if one.fronts]
    rows = [row | {"dataset": one.cell.dataset} for one in there for row in one.fronts[0].rows()]
    rule = "validation" if any(one.picks["validation"] for one in there) else "paper"
    write_atomically(page.folder / "fronts.csv", csv_bytes(rows, ["dataset", "model"]))
    if there:
        named = [replace(one.fronts[0], family=one.cell.title, selected=one.picks[rule]) for one in there]
        page.text("## Fronts")
        title = f"Accuracy against energy ratio, every lambda; in a ring: {tables.RULES[rule].removeprefix('ours, ')}."
        page.figure("fronts", title, plots.front_figure(named, f"hardware published, batch 100 · {page.plan.brief}"))


def _provenance(page: _Page) -> None:
    """provenance.json: what made the numbers, from the runs' own records."""
    made: dict[str, dict[str, Any]] = {}
    for cell in page.plan.cells:
        for identity in cell.run_ids:
            folder = RunFolder(page.folder / RUNS / cell.name / identity)
            try:
                record = folder.read_record()
            except UserError:
                continue
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
    where = machine.get("accelerator") or f"{machine.get('processor')}, {entry['threads']} threads a run"
    hours = entry["training_s"] / 3600
    return f"{entry['runs']} runs, {hours:.2f} hours of training on {where}; commit {entry['git_commit']}; {versions}"


# --- Markdown and LaTeX --------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    lines = [[name for name, _ in columns], ["---"] * len(columns)]
    lines += [[cell(row).replace("|", "\\|").replace("\n", " ") for _, cell in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
        "µ": r"$\mu$",
        "–": "--",
        "·": r"$\cdot$",
        "≤": r"$\leq$",
    }
)


def latex(rows: Sequence[Row], columns: Sequence[Column], caption: str, remarks: Sequence[str] = ()) -> str:
    """A table environment that needs no package."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(text.translate(LATEX) for text in cells) + r" \\"

    body = "\n".join(line([cell(row) for _, cell in columns]) for row in rows)
    notes = "".join(f"\n\n{remark.translate(LATEX)}" for remark in remarks)
    return (
        f"\\begin{{table}}\n\\caption{{{caption.translate(LATEX)}}}\n"
        f"\\begin{{tabular}}{{{'l' * len(columns)}}}\n\\hline\n{line([name for name, _ in columns])}\n\\hline\n"
        f"{body}\n\\hline\n\\end{{tabular}}{notes}\n\\end{{table}}\n"
    )


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else str(row[key])


def _real(key: str, digits: int) -> Callable[[Row], str]:
    """The mean, with ± its standard deviation where there is one; a dash where there is no number."""

    def cell(row: Row) -> str:
        mean, std = row.get(key), row.get(f"{key}_std")
        if mean is None:
            return "–"
        # + 0.0: no minus sign before a zero
        return f"{round(float(mean), digits) + 0.0:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")

    return cell


def _short(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:g}"


TABLE1_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("", _text("source")),
    ("ST accuracy", _real("st_accuracy", 3)),
    ("EAT accuracy", _real("eat_accuracy", 3)),
    ("ST ratio", _real("st_ratio", 3)),
    ("EAT ratio", _real("eat_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
    ("floor", _real("floor", 3)),
    ("λ", _short("lambda")),
    ("seeds", _short("st_seeds")),
    ("note", lambda row: "" if row["source"] == tables.PAPER else str(row.get("note") or "")),
)
TABLE2_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("rule", _text("rule")),
    ("λ", _short("lambda")),
    ("hardware", _text("hardware")),
    ("ST ratio", _real("st_ratio", 3)),
    ("EAT ratio", _real("eat_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
    ("ST µJ/image", _real("st_uj_per_image", 2)),
    ("EAT µJ/image", _real("eat_uj_per_image", 2)),
)
CHOICES_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("normalisation", _text("normalisation")),
    ("scope", _text("scope")),
    ("crop padding", _text("crop_padding")),
    ("rotation", _text("rotation_degrees")),
    ("λ", _short("lambda")),
    ("seeds", _short("seeds")),
    ("accuracy", _real("accuracy", 3)),
    ("ratio", _real("energy_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
)
ACCOUNTING_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("reading", _text("reading")),
    ("ST ratio", _real("st_ratio", 3)),
    ("EAT ratio", _real("eat_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
