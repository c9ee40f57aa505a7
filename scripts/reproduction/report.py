"""A scale's folder -> Table 1, Table 2, Figures 1 to 3 and the choices as CSV, Markdown, LaTeX, PNG and SVG. No torch.

README.md in the folder is the page that shows all of them.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eat_runner import plots
from eat_runner.claims import report_lock
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder, RunRecord, csv_bytes, write_atomically
from reproduction import figures, tables
from reproduction.cells import ABLATION, CHOICES, CIFAR10_CONTENT, JPEG_LABEL, NETWORKS, RUNS, TABLE1, Plan, read_plan
from reproduction.tables import Outcome, Row

Column = tuple[str, Callable[[Row], str]]
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
        for number, network in enumerate(NETWORKS.values(), start=1):
            _layer_figure(page, number, network, [one for one in found if one.cell.network == network])
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

    def csv(self, stem: str, rows: Sequence[Row]) -> None:
        """``stem``.csv, whose first column is the scale."""
        rows = [{"scale": self.plan.scale} | row for row in rows]
        write_atomically(self.folder / f"{stem}.csv", csv_bytes(rows, ["scale"]))

    def table(
        self, stem: str, kind: str, title: str, rows: Sequence[Row], columns: Sequence[Column], *remarks: str
    ) -> None:
        """``stem``.csv with every number, .md and .tex as people read them, and the same on the page."""
        self.remove(*(() if rows else (f"{stem}.csv", f"{stem}.md", f"{stem}.tex")))
        if not rows:
            return
        if columns[-1] != NOTE and any(row.get("note") for row in rows):
            columns = [*columns, NOTE]
        caption = self.caption(title, kind)
        self.csv(stem, rows)
        text = "\n\n".join([f"**{caption}**", markdown(rows, columns), *remarks])
        write_atomically(self.folder / f"{stem}.md", text.encode() + b"\n")
        write_atomically(self.folder / f"{stem}.tex", latex(rows, columns, caption, remarks).encode())
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
        cells = [cell for cell in read_plan(folder).cells if cell.kind == kind]
    except UserError:
        return 0, 0
    runs = [RunFolder(folder / RUNS / cell.name / identity) for cell in cells for identity in cell.run_ids]
    return sum(_is_finished(run) for run in runs), len(runs)


def _is_finished(run: RunFolder) -> bool:
    with suppress(UserError):  # not there, or damaged
        return run.read_record().status == "finished"
    return False


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
    page.table("table1", TABLE1, title, rows, TABLE1_COLUMNS, *filter(None, [rules, _jpeg_copy(found)]))
    page.text("\n".join(f"- {line}" for line in goal))
    page.shown += [markdown(rows, TABLE1_COLUMNS), page.plan.captions[TABLE1]]


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


def _layer_figure(page: _Page, number: int, network: str, found: Sequence[Outcome]) -> None:
    stem, published = f"figure{number}", load_hardware("published")
    panels: list[plots.LayerPanel] = []
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
    page.text(f"## Figure {number}")
    page.csv(stem, figures.layer_rows(panels))
    if panels:
        title = f"Figure {number}: firing neurons per layer of {network}, ST and EAT, test split."
        drawn = plots.firing_figure(panels, f"Figure {number} · test split · {page.plan.briefs[TABLE1]}")
        page.figure(stem, TABLE1, title, drawn)
        page.text(
            _bullets(
                f"{p.family}, {p.eat_label}: change in points by kind of layer: {figures.fallen_most(p)}"
                for p in panels
            )
        )
    else:
        page.remove(f"{stem}.png", f"{stem}.svg")
    page.text(_bullets(absent))


def _ablation(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.ablation(found)
    page.text("## Figure 3")
    if rows:
        several = any(int(row["seeds"] or 0) > 1 for row in rows)
        title = "Figure 3: ablation on lambda and sigma, ResNet18, test split (the paper looks at 100 random samples)."
        drawn = figures.ablation_figure(rows, f"Figure 3 · ResNet18 · test split · {page.plan.briefs[ABLATION]}")
        page.figure("figure3", ABLATION, title + (f" {STD}" if several else ""), drawn)
    else:
        page.remove("figure3.png", "figure3.svg")
    page.table("figure3", ABLATION, "Figure 3 in numbers.", rows, ABLATION_COLUMNS)
    page.text(_bullets(f"{one.cell.title}: {one.note}" for one in found if one.note))


def _choices(page: _Page, found: Sequence[Outcome]) -> None:
    page.text("## Where the paper is ambiguous")
    cells = [cell for cell in page.plan.cells if cell.kind == CHOICES]
    studied = [tables.outcome(cell, page.folder) for cell in cells]
    title = "Choices of training: other readings of the paper, trained anew."
    rows = tables.choices(studied)
    page.table("choices", CHOICES, title, rows, CHOICES_COLUMNS, STD)
    if rows:
        page.figure(
            "choices", CHOICES, title, figures.choices_figure(rows, f"test split · {page.plan.briefs[CHOICES]}")
        )
    else:
        page.remove("choices.png", "choices.svg")
    page.text(_bullets(f"{one.cell.experiment}: {one.note}" for one in studied if one.note))
    title = "Readings of the accounting: the networks of Table 1 that the paper's rule picks."
    page.table("accounting", TABLE1, title, tables.accounting(found), ACCOUNTING_COLUMNS, STD)


def _front(page: _Page, found: Sequence[Outcome]) -> None:
    """Accuracy against energy of every setting of Table 1's cells, under the names that the cells have here."""
    there = [one for one in found if one.fronts]
    page.csv("fronts", [row for one in there for row in tables.front_rows(one)])
    if not there:
        page.remove("fronts.png", "fronts.svg")
        return
    rule = "validation" if any(one.picks["validation"] for one in there) else "paper"
    named = [replace(one.fronts[0], family=one.cell.title, selected=one.picks[rule]) for one in there]
    name = tables.RULES[rule].removeprefix("ours, ")
    page.text("## Fronts")
    drawn = figures.front_figure(named, name, f"hardware published, batch 100 · {page.plan.briefs[TABLE1]}")
    title = f"Accuracy against energy ratio, every lambda; in a ring what {name} selects."
    page.figure("fronts", TABLE1, title, drawn)


def _provenance(page: _Page) -> None:
    """provenance.json: what made the numbers, from the runs' own records; a run that several cells have counts once."""
    made: dict[str, dict[str, Any]] = {}
    records: dict[str, RunRecord] = {}
    for cell in page.plan.cells:
        for identity in cell.run_ids:
            with suppress(UserError):  # not there, or damaged
                records[identity] = RunFolder(page.folder / RUNS / cell.name / identity).read_record()
    for record in records.values():
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
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\rightarrow$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "°": r"$^{\circ}$",
        "·": r"$\cdot$",
        "λ": r"$\lambda$",
        "σ": r"$\sigma$",
        "µ": r"$\mu$",
        "–": "--",
        "…": r"\ldots{}",
    }
)
OWN_NUMBER = re.compile(r"^Table \d+: (.)")  # LaTeX counts tables itself


def latex(rows: Sequence[Row], columns: Sequence[Column], caption: str, remarks: Sequence[str] = ()) -> str:
    """A table environment, not wider than the line; what a column ``note`` says stands below the table, numbered."""
    names = [name for name, _ in columns]
    cells = [[cell(row) for _, cell in columns] for row in rows]
    notes: dict[str, int] = {}
    if columns[-1] == NOTE:
        for line in cells:
            line[-1] = f"({notes.setdefault(line[-1], len(notes) + 1)})" if line[-1] else ""
    below = [*(f"({number}) {note}" for note, number in notes.items()), *remarks]
    lines = [" & ".join(text.translate(LATEX) for text in line) + r" \\" for line in (names, *cells)]
    body = "\n".join(lines[1:])
    text = "".join("\n\n" + remark.replace("\n", "\n\n").translate(LATEX) for remark in below)
    caption = OWN_NUMBER.sub(lambda found: found[1].upper(), caption)
    return (
        "% \\usepackage{graphicx}\n"
        f"\\begin{{table}}\n\\caption{{{caption.translate(LATEX)}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{'l' * len(columns)}}}\n"
        f"\\hline\n{lines[0]}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}}}\n\n\\scriptsize{text}\n\\end{{table}}\n"
    )


def _text(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else str(row[key])


def _real(key: str, digits: int) -> Callable[[Row], str]:
    """The mean, with ± its standard deviation where there is one; a dash where there is no number. The paper's numbers
    have the paper's two digits."""

    def cell(row: Row) -> str:
        mean, std = row.get(key), row.get(f"{key}_std")
        if mean is None:
            return "–"
        if row.get("source") == tables.PAPER:
            return f"{mean:.2f}"
        # + 0.0: no minus sign before a zero
        return f"{round(float(mean), digits) + 0.0:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")

    return cell


def _short(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row.get(key) is None else f"{row[key]:g}"


def _seeds(row: Row) -> str:
    """How many seeds ST and EAT really have."""
    st, eat = row.get("st_seeds"), row.get("eat_seeds")
    if st is None:
        return ""
    return f"{st}" if eat in {None, st} else f"ST {st}, EAT {eat}"


def _note(row: Row) -> str:
    return "" if row.get("source") == tables.PAPER else str(row.get("note") or "")


NOTE: Column = ("note", _note)
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
    ("σ", _short("sigma")),
    ("seeds", _seeds),
    NOTE,
)
TABLE2_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("rule", _text("rule")),
    ("λ", _short("lambda")),
    ("σ", _short("sigma")),
    ("hardware", _text("hardware")),
    ("ST ratio", _real("st_ratio", 3)),
    ("EAT ratio", _real("eat_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
    ("weights %", _real("weights_percent", 1)),
)
ABLATION_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("σ", _short("sigma")),
    ("λ", _short("lambda")),
    ("seeds", _short("seeds")),
    ("accuracy", _real("accuracy", 3)),
    ("ratio", _real("energy_ratio", 3)),
    ("decrease %", _real("decrease_percent", 2)),
)
CHOICES_COLUMNS: tuple[Column, ...] = (
    ("data set", _text("dataset")),
    ("network", _text("network")),
    ("parameters", _text("parameters")),
    ("weighting", _text("weighting")),
    ("scope", _text("scope")),
    ("crop padding", _text("crop_padding")),
    ("rotation", _text("rotation_degrees")),
    ("flip", _text("flip")),
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
