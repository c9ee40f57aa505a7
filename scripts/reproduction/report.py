"""A scale's folder -> Table 1, Table 2, Figures 1 to 3 and the choices as CSV, Markdown, LaTeX, PNG and SVG. No torch.

README.md in the folder is the page that shows all of them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.table import to_csv
from eat_runner.claims import report_lock
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import write_atomically
from eat_runner.report import plots
from eat_runner.report.latex import latex
from eat_runner.report.markdown import markdown
from eat_runner.report.view import Table, number, table_of
from reproduction import cells, figures, tables
from reproduction.cells import ABLATION, CHOICES, NETWORKS, TABLE1, Plan, read_plan, run_folder, status_of
from reproduction.tables import Outcome, Row

SOURCE = "Lazzaro et al., ICIAP 2023, arXiv 2307.00368"
FILES = "table1 table2 figure1 figure2 figure3 fronts choices accounting".split()
SUFFIXES = ("csv", "md", "tex", "png", "svg")


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
        _choices(page, tables.outcomes(plan, folder, CHOICES))
        title = "Readings of the accounting: the networks of Table 1 that the paper's rule picks."
        page.table("accounting", TABLE1, title, tables.accounting(found), ACCOUNTING_KEYS, STD)
        _front(page, [one for one in found if one.fronts])
        _provenance(page)
        page.save()
    return "\n\n".join([*page.shown, f"{folder / page.name} shows all tables and figures"])


class _Page:
    """README.md as it grows, and the files beside it."""

    name = "README.md"

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self.parts: list[str] = []
        self.shown: list[str] = []
        self.written: set[str] = set()

    def text(self, *paragraphs: str) -> None:
        self.parts += filter(None, paragraphs)

    def write(self, name: str, text: str | bytes) -> None:
        write_atomically(self.folder / name, text if isinstance(text, bytes) else text.encode())
        self.written.add(name)

    def csv(self, stem: str, rows: Sequence[Row] | pd.DataFrame) -> None:
        """``stem``.csv, whose first column is the scale."""
        frame = pd.DataFrame(rows, dtype="object").reset_index(drop=True)
        frame.insert(0, "scale", self.plan.scale)
        self.write(f"{stem}.csv", to_csv(frame))

    def table(self, stem: str, kind: str, title: str, rows: Sequence[Row], keys: str, *remarks: str) -> None:
        """``stem``.csv with every number, .md and .tex as people read them, and the same on the page."""
        if rows:
            caption, table = self.caption(title, kind), as_table(rows, keys)
            text = "\n\n".join([f"**{caption}**", markdown(table), *remarks])
            self.csv(stem, rows)
            self.write(f"{stem}.md", f"{text}\n")
            self.write(f"{stem}.tex", latex(table, caption, remarks))
            self.text(text)

    def figure(self, stem: str, kind: str, title: str, figure: Figure) -> None:
        self.written |= {path.name for path in plots.save(figure, self.folder / stem)}
        self.text(f"![{title}]({stem}.png)", f"**{title}** {self.caption('', kind)}")

    def caption(self, title: str, kind: str) -> str:
        return f"{title} {self.plan.captions[kind]}{self.full_scale(kind)}".strip()

    def full_scale(self, kind: str) -> str:
        """What there is of the full scale, where this is another one."""
        if self.plan.scale == "full" or kind == CHOICES:
            return ""
        full, planned = self.folder.parent / "full", list[str]()
        with suppress(UserError):  # there is no such plan
            planned = read_plan(full).run_ids(kind)
        done = sum(status_of(full, identity) == "finished" for identity in planned)
        if not done:
            return " Scale full, the paper's protocol, was not run here."
        part = f" Of scale full, the paper's protocol, {done} of {len(planned)} runs are done."
        return "" if done == len(planned) else part

    def save(self) -> None:
        """The page itself; files of an earlier report that has rows this one lacks go."""
        self.write(self.name, "\n\n".join(self.parts) + "\n")
        for name in {f"{stem}.{suffix}" for stem in FILES for suffix in SUFFIXES} - self.written:
            (self.folder / name).unlink(missing_ok=True)


# --- the parts of the page -----------------------------------------------------------------------------------------

STD = "± is the sample standard deviation over seeds (n - 1)."
RULE_REMARK = (
    "Paper's rule: the lowest energy ratio among the settings with a lambda above 0 whose accuracy on the test set "
    "is within 3 points of ST. Our rule: the same on the validation split, so that the test set chooses nothing; "
    "the numbers shown are on the test set either way. Either rule compares the same seeds: a setting that lacks "
    f"one of ST's is not selected. Mean over seeds; {STD} Floor: the ratio with every activation at zero; no "
    "training goes below. The paper's numbers have its two digits."
)
HARDWARE_REMARK = (
    "The networks of Table 1, selected under the paper's accounting, at other prices. Fused: batch norm and ReLU "
    "cost nothing, products with a zero are skipped exactly, tensors are stored compressed, and the weights are "
    "fetched for every image, unless the row says otherwise: the rows below fused, 45 nm change one thing each, "
    "7 nm with int8 two; Eyeriss is another machine. Weights: their part of the energy without zero-skipping, "
    f"which depends on the network's shapes alone. {STD} Energies in µJ are in table2.csv."
)


def _table1(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table1(found)
    page.text("## Table 1")
    title = f"Table 1: accuracy and energy ratio, ours beside the paper's ({SOURCE}, Table 1)."
    page.table("table1", TABLE1, title, rows, TABLE1_KEYS, RULE_REMARK, *jpeg_copy(found))
    page.text(_bullets(tables.against_paper(rows) if page.plan.scale == "full" else []))
    page.shown += [markdown(as_table(rows, TABLE1_KEYS)), page.plan.captions[TABLE1]]


def jpeg_copy(found: Sequence[Outcome]) -> list[str]:
    """What the copy that stands in for CIFAR-10 holds; nothing without one."""
    content = next((one.cell.content for one in found if one.cell.dataset == cells.JPEG_LABEL), "")
    official = "" if content == cells.CIFAR10_CONTENT else f" (CIFAR-10 has {cells.CIFAR10_CONTENT})"
    text = f"{cells.JPEG_LABEL}: {content}{official}; compressed with losses, so not bit-identical to CIFAR-10."
    return [text] if content else []


def _table2(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.table2(found)
    plain = tables.does_the_gain_survive(rows)
    page.text("## Table 2: does the gain survive on other hardware?")
    page.text("" if rows else "No cell has both ST and a selected EAT yet.")
    title = "Table 2: energy by other hardware."
    page.table("table2", TABLE1, title, rows, TABLE2_KEYS, HARDWARE_REMARK, _bullets(plain))
    page.shown.append("\n".join(plain))


def _layer_figure(page: _Page, n: int, network: str, found: Sequence[Outcome]) -> None:
    panels: list[LayerPanel] = []
    absent: list[str] = []
    for one in found:
        try:
            panels.append(figures.layer_panel(one, load_hardware("published")))
        except UserError as error:
            absent.append(f"{one.cell.title}: {error}")
    page.text(f"## Figure {n}")
    page.csv(f"figure{n}", figures.layer_rows(panels))
    if panels:
        title = f"Figure {n}: firing neurons per layer of {network}, ST and EAT, test split."
        drawn = plots.firing_figure(panels, f"Figure {n} · test split · {page.plan.briefs[TABLE1]}")
        page.figure(f"figure{n}", TABLE1, title, drawn)
    change = "change in points by kind of layer"
    page.text(_bullets(f"{p.family}, {p.eat_label}: {change}: {figures.fallen_most(p)}" for p in panels))
    page.text(_bullets(absent))


def _ablation(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.ablation(found)
    page.text("## Figure 3")
    if rows:
        title = "Figure 3: ablation on lambda and sigma, ResNet18, test split (the paper looks at 100 random samples)."
        several = any(row["seeds"] > 1 for row in rows)
        drawn = figures.ablation_figure(rows, f"Figure 3 · ResNet18 · test split · {page.plan.briefs[ABLATION]}")
        page.figure("figure3", ABLATION, f"{title} {STD}" if several else title, drawn)
    page.table("figure3", ABLATION, "Figure 3 in numbers.", rows, ABLATION_KEYS)
    page.text(_bullets(f"{one.cell.title}: {one.note}" for one in found if one.note))


def _choices(page: _Page, found: Sequence[Outcome]) -> None:
    rows = tables.choices(found)
    page.text("## Where the paper is ambiguous")
    title = "Choices of training: other readings of the paper, trained anew."
    page.table("choices", CHOICES, title, rows, CHOICES_KEYS, STD)
    if rows:
        drawn = figures.choices_figure(rows, f"test split · {page.plan.briefs[CHOICES]}")
        page.figure("choices", CHOICES, title, drawn)
    page.text(_bullets(f"{one.cell.experiment}: {one.note}" for one in found if one.note))


def _front(page: _Page, found: Sequence[Outcome]) -> None:
    """Accuracy against energy of every setting of Table 1's cells, under the names that the cells have here."""
    page.csv("fronts", pd.concat(map(tables.front_rows, found)) if found else [])
    if found:
        rule = "validation" if any(one.picks.get("validation") for one in found) else "paper"
        name = tables.RULES[rule].removeprefix("ours, ")
        caption = f"hardware published, batch 100 · {page.plan.briefs[TABLE1]}"
        drawn = figures.front_figure([figures.picked(one, rule) for one in found], name, caption)
        page.text("## Fronts")
        title = f"Accuracy against energy ratio, every lambda; in a ring what {name} selects."
        page.figure("fronts", TABLE1, title, drawn)


def _provenance(page: _Page) -> None:
    """provenance.json: what made the numbers, from the runs' own records; a run that several cells have counts once."""
    made: dict[str, dict[str, Any]] = {}
    for identity in page.plan.run_ids():
        with suppress(UserError):  # not there, or damaged
            record = run_folder(page.folder, identity).read_record()
            by = {key: getattr(record, key) for key in ("git_commit", "versions", "machine", "device", "threads")}
            entry = made.setdefault(json.dumps(by, sort_keys=True), by | {"runs": 0, "training_s": 0.0})
            entry["runs"] += 1
            entry["training_s"] += sum(seconds or 0.0 for seconds in record.timings.values())
    makers = [made[key] for key in sorted(made)]
    values = {"command": page.plan.command, "scale": page.plan.scale, "made_by": makers}
    page.write("provenance.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    page.text("## Made by", _bullets(map(_maker, makers)))


def _maker(entry: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in entry["versions"].items() if version)
    threads = f"{entry['threads']} thread{'s' * (entry['threads'] > 1)} a run"
    where = entry["machine"].get("accelerator") or f"{entry['machine'].get('processor')}, {threads}"
    hours = entry["training_s"] / 3600
    return f"{entry['runs']} runs, {hours:.2f} hours of training on {where}; commit {entry['git_commit']}; {versions}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


# --- columns -------------------------------------------------------------------------------------------------------

# the columns that people read: keys of rows
RATIOS, OUTCOME = "st_ratio eat_ratio decrease_percent", "lambda seeds accuracy energy_ratio decrease_percent"
TABLE1_KEYS = f"dataset network source st_accuracy eat_accuracy {RATIOS} floor lambda sigma st_seeds"
TABLE2_KEYS = f"dataset network rule lambda sigma hardware {RATIOS} weights_percent"
ABLATION_KEYS = f"dataset network sigma {OUTCOME}"
CHOICES_KEYS = f"dataset network parameters weighting scope crop_padding rotation_degrees flip {OUTCOME}"
ACCOUNTING_KEYS = f"dataset network reading {RATIOS}"
HEADINGS = {
    "dataset": "data set",
    "source": "",
    "lambda": "λ",
    "sigma": "σ",
    "st_seeds": "seeds",
    "energy_ratio": "ratio",
    "rotation_degrees": "rotation",
}
# of numbers, which may have a deviation
OF_THREE_DIGITS = "st_accuracy eat_accuracy accuracy st_ratio eat_ratio energy_ratio floor".split()
DIGITS = {**dict.fromkeys(OF_THREE_DIGITS, 3), "decrease_percent": 2, "weights_percent": 1}


def heading(key: str) -> str:
    """What a column is called: ``EAT ratio``, ``decrease %``, ``λ``."""
    words = key.replace("_percent", " %").replace("_", " ")
    return HEADINGS.get(key, re.sub("^(st|eat) ", lambda found: found[0].upper(), words))


def as_table(rows: Sequence[Row], keys: str) -> Table:
    """These columns of the rows, and what there is to note."""
    noted = [*keys.split(), *(["note"] if any(row.get("note") for row in rows) else [])]
    return table_of(rows, {heading(key): partial(cell, key) for key in noted})


def cell(key: str, row: Mapping[str, Any]) -> str:
    """The text of a row's value; the paper's numbers have the paper's two digits, and nothing to note."""
    value, is_paper = row.get(key), row.get("source") == tables.PAPER
    if key in DIGITS:
        return number(value, row.get(f"{key}_std"), 2 if is_paper else DIGITS[key])
    if value is None or (key == "note" and is_paper):
        return ""
    if key == "st_seeds" and row.get("eat_seeds", value) != value:
        return f"ST {value}, EAT {row['eat_seeds']}"
    return f"{value:g}" if key in {"lambda", "sigma"} else str(value)
