"""A scale's folder -> Table 1, Table 2, Figures 1 to 3 and the choices as CSV, Markdown, LaTeX, PNG and SVG. No torch.

README.md in the folder is the page that shows all of them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from eat_runner.analysis.layers import LayerPanel
from eat_runner.analysis.makers import in_words, makers
from eat_runner.analysis.table import to_csv
from eat_runner.claims import report_lock
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.report import plots
from eat_runner.report.markdown import markdown
from eat_runner.report.page import Page, bullets
from eat_runner.report.view import Table, number, table_of
from reproduction import cells, figures, tables
from reproduction.cells import ABLATION, CHIP, CHOICES, NETWORKS, TABLE1, Plan, read_plan, run_folder, status_of
from reproduction.tables import Outcome, Row

SOURCE = "Lazzaro et al., ICIAP 2023, arXiv 2307.00368"
FILES = "table1 table2 chip figure1 figure2 figure3 fronts choices accounting".split()


def write(folder: Path) -> str:
    """Write everything that the runs in ``folder`` give; the text that a person is shown. UserError without a plan."""
    plan = read_plan(folder)
    with report_lock(folder):
        found = tables.outcomes(plan, folder, TABLE1)
        page = PaperPage(folder, plan)
        page.text(f"# The paper's results, reproduced: scale {plan.scale}", f"`{plan.command}`")
        shown = [*_table1(page, found), *_table2(page, found)]
        if CHIP in plan.captions:
            _chip(page, tables.outcomes(plan, folder, CHIP))
        for n, network in enumerate(NETWORKS.values(), start=1):
            _layer_figure(page, n, network, [one for one in found if one.cell.network == network])
        if ABLATION in plan.captions:
            _ablation(page, tables.outcomes(plan, folder, ABLATION))
        if CHOICES in plan.captions:
            _choices(page, tables.outcomes(plan, folder, CHOICES))
        title = "Readings of the accounting: the networks of Table 1 that the paper's rule picks."
        page.rows("accounting", TABLE1, title, tables.accounting(found), STD)
        _front(page, [one for one in found if one.fronts])
        made_by = makers(run_folder(folder, identity) for identity in plan.run_ids())
        values = {"command": plan.command, "scale": plan.scale, "made_by": made_by}
        page.file("provenance.json", json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        page.text("## Made by", bullets(map(in_words, made_by)))
        page.save(FILES)
    return "\n\n".join([*shown, f"{folder / page.name} shows all tables and figures"])


class PaperPage(Page):
    """A page whose captions say at which scale the runs were made; the first column of its CSV files does, too."""

    def __init__(self, folder: Path, plan: Plan):
        super().__init__(folder)
        self.plan = plan

    def frame(self, rows: Sequence[Row] | pd.DataFrame) -> pd.DataFrame:
        frame = pd.DataFrame(rows, dtype="object").reset_index(drop=True)
        frame.insert(0, "scale", self.plan.scale)
        return frame

    def csv(self, stem: str, rows: Sequence[Row] | pd.DataFrame) -> None:
        self.file(f"{stem}.csv", to_csv(self.frame(rows)))

    def rows(self, stem: str, kind: str, title: str, rows: Sequence[Row], *remarks: str) -> None:
        """``Page.table`` of the rows' KEYS; nothing without rows."""
        if rows:
            self.table(stem, self.frame(rows), as_table(rows, KEYS[stem]), self.caption(title, kind), remarks)

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
        what = "Scale full" if kind == CHIP else "Scale full, the paper's protocol,"
        if not done:
            return f" {what} was not run here."
        part = f" Of {what[0].lower()}{what[1:]} {done} of {len(planned)} runs are done."
        return "" if done == len(planned) else part


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

CHIP_REMARK = (
    "Decrease: of the energy ratio, against standard training with the same seeds. The int8 prices take the float "
    f"network's zeros for integer ones. {STD}"
)


def _table1(page: PaperPage, found: Sequence[Outcome]) -> list[str]:
    """What a person is shown of it, as of Table 2."""
    rows = tables.table1(found)
    page.text("## Table 1")
    title = f"Table 1: accuracy and energy ratio, ours beside the paper's ({SOURCE}, Table 1)."
    page.rows("table1", TABLE1, title, rows, RULE_REMARK, *jpeg_copy(found))
    page.bullets(tables.against_paper(rows) if page.plan.scale == "full" else [])
    return [markdown(as_table(rows, KEYS["table1"])), page.plan.captions[TABLE1]]


def jpeg_copy(found: Sequence[Outcome]) -> list[str]:
    """What the copy that stands in for CIFAR-10 holds; nothing without one."""
    content = next((one.cell.content for one in found if one.cell.dataset == cells.JPEG_LABEL), "")
    official = "" if content == cells.CIFAR10_CONTENT else f" (CIFAR-10 has {cells.CIFAR10_CONTENT})"
    text = f"{cells.JPEG_LABEL}: {content}{official}; compressed with losses, so not bit-identical to CIFAR-10."
    return [text] if content else []


def _table2(page: PaperPage, found: Sequence[Outcome]) -> list[str]:
    rows = tables.table2(found)
    plain = tables.does_the_gain_survive(rows)
    page.text("## Table 2: does the gain survive on other hardware?")
    page.text("" if rows else "No cell has both ST and a selected EAT yet.")
    title = "Table 2: energy by other hardware."
    page.rows("table2", TABLE1, title, rows, HARDWARE_REMARK, bullets(plain))
    return ["\n".join(plain)]


def _chip(page: PaperPage, found: Sequence[Outcome]) -> None:
    page.text("## Trained for a chip, which the paper does not do")
    title = (
        "The weights that cost most for their size on fused_7nm_int8 pruned away, at the prices of other hardware, too."
    )
    page.rows("chip", CHIP, title, tables.chip(found), CHIP_REMARK)


def _layer_figure(page: PaperPage, n: int, network: str, found: Sequence[Outcome]) -> None:
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
        page.figure(f"figure{n}", drawn, title, page.caption("", TABLE1))
    change = "change in points by kind of layer"
    page.bullets(f"{p.family}, {p.eat_label}: {change}: {figures.fallen_most(p)}" for p in panels)
    page.bullets(absent)


def _ablation(page: PaperPage, found: Sequence[Outcome]) -> None:
    rows = tables.ablation(found)
    page.text("## Figure 3")
    if rows:
        title = "Figure 3: ablation on lambda and sigma, ResNet18, test split (the paper looks at 100 random samples)."
        several = any(row["seeds"] > 1 for row in rows)
        drawn = figures.ablation_figure(rows, f"Figure 3 · ResNet18 · test split · {page.plan.briefs[ABLATION]}")
        page.figure("figure3", drawn, f"{title} {STD}" if several else title, page.caption("", ABLATION))
    page.rows("figure3", ABLATION, "Figure 3 in numbers.", rows)
    page.bullets(f"{one.cell.title}: {one.note}" for one in found if one.note)


def _choices(page: PaperPage, found: Sequence[Outcome]) -> None:
    rows = tables.choices(found)
    page.text("## Where the paper is ambiguous")
    title = "Choices of training: other readings of the paper, trained anew."
    page.rows("choices", CHOICES, title, rows, STD)
    if rows:
        drawn = figures.choices_figure(rows, f"test split · {page.plan.briefs[CHOICES]}")
        page.figure("choices", drawn, title, page.caption("", CHOICES))
    page.bullets(f"{one.cell.experiment}: {one.note}" for one in found if one.note)


def _front(page: PaperPage, found: Sequence[Outcome]) -> None:
    """Accuracy against energy of every setting of Table 1's cells, under the names that the cells have here."""
    page.csv("fronts", pd.concat(map(tables.front_rows, found)) if found else [])
    if found:
        rule = "validation" if any(one.picks.get("validation") for one in found) else "paper"
        name = tables.RULES[rule].removeprefix("ours, ")
        caption = f"hardware published, batch 100 · {page.plan.briefs[TABLE1]}"
        drawn = figures.front_figure([figures.picked(one, rule) for one in found], name, caption)
        page.text("## Fronts")
        title = f"Accuracy against energy ratio, every lambda; in a ring what {name} selects."
        page.figure("fronts", drawn, title, page.caption("", TABLE1))


# --- columns -------------------------------------------------------------------------------------------------------

# the columns that people read: keys of rows
PRUNED = "st_accuracy pruned_accuracy st_uj_per_image pruned_uj_per_image decrease_percent seeds"
RATIOS, OUTCOME = "st_ratio eat_ratio decrease_percent", "lambda seeds accuracy energy_ratio decrease_percent"
KEYS = {
    "table1": f"dataset network source st_accuracy eat_accuracy {RATIOS} floor lambda sigma st_seeds",
    "table2": f"dataset network rule lambda sigma hardware {RATIOS} weights_percent",
    "chip": f"dataset network hardware {PRUNED}",
    "figure3": f"dataset network sigma {OUTCOME}",
    "choices": f"dataset network parameters weighting scope crop_padding rotation_degrees flip {OUTCOME}",
    "accounting": f"dataset network reading {RATIOS}",
}
HEADINGS = {
    "dataset": "data set",
    "source": "",
    "lambda": "λ",
    "sigma": "σ",
    "st_seeds": "seeds",
    "st_uj_per_image": "ST µJ",
    "pruned_uj_per_image": "pruned µJ",
    "energy_ratio": "ratio",
    "rotation_degrees": "rotation",
}
# of numbers, which may have a deviation
OF_THREE_DIGITS = "st_accuracy eat_accuracy pruned_accuracy accuracy st_ratio eat_ratio energy_ratio floor".split()
OF_TWO_DIGITS = "decrease_percent st_uj_per_image pruned_uj_per_image".split()
DIGITS = {**dict.fromkeys(OF_THREE_DIGITS, 3), **dict.fromkeys(OF_TWO_DIGITS, 2), "weights_percent": 1}


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
