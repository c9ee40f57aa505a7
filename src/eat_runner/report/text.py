"""A report as a terminal, a file or a pipe can show it: fewer columns where it is narrow, and never half a number."""

import io
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from eat_runner.errors import printable
from eat_runner.progress import console_on
from eat_runner.report.view import Table, Told

WIDTH = 132  # of the lines where there is no terminal
LEAST_NAME = 16  # columns that a long first cell is folded to
PADDING = 2  # columns around each cell
# for encodings that have no such characters
SPELLED = {
    "λ": "lambda",
    "σ": "sigma",
    "±": "+/-",
    "µ": "u",
    "·": "-",
    "–": "-",
    "…": "...",
    "×": "x",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
}


def show(report: Told) -> None:
    """Print it: with colours and as wide as it is to a terminal, as plain text to a file or pipe, nowhere if there is
    no stdout. OSError where who reads has gone."""
    if sys.stdout is None:  # closed by who started us
        return
    if not sys.stdout.isatty():
        print(plain(report, sys.stdout.encoding or "utf-8"), flush=True)
        return
    console = console_on()
    console.print(Group(*_parts(report, console.encoding, console.width)), crop=False)


def plain(report: Told, encoding: str = "utf-8") -> str:
    """The text without colours, its tables as wide as they are."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, highlight=False, legacy_windows=False)
    console.print(Group(*_parts(report, encoding, width=None)), crop=False)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def spelled(text: str, encoding: str) -> str:
    """``text`` in characters that the encoding has; what has no other spelling becomes a question mark."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(character if _has(encoding, character) else SPELLED.get(character, "?") for character in text)
    return text


def _has(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _parts(report: Told, encoding: str, width: int | None) -> Iterable[RenderableType]:
    def line(text: str, style: str = "") -> Text:
        return Text(spelled(text, encoding), style=style)

    for family in report.families:
        yield from _table(family.table, encoding, width)
        for remark in family.remarks:
            yield line(remark, "yellow")
        for fact in family.facts:
            yield line(fact)
        yield Text()
        for table in family.equal:
            yield from _table(table, encoding, width)
            yield Text()
    for fact in report.facts:
        yield line(fact)
    for absent in report.missing:
        yield line(absent, "yellow")
    for path in report.paths:
        shown = spelled(printable(str(path), longest=None), encoding)
        yield Text(f"  {shown}", style="cyan", no_wrap=True, overflow="ignore")


def _table(table: Table, encoding: str, width: int | None) -> Iterable[RenderableType]:
    """width: of the terminal; None: as wide as it is."""
    texts = [[spelled(text, encoding) for text in row] for row in ([head.name for head in table.heads], *table.rows)]
    widths = [max(map(cell_len, column)) + PADDING for column in zip(*texts, strict=True)]
    kept = fitting([head.rank for head in table.heads], widths, width)
    left_out = [texts[0][i] for i in range(len(widths)) if i not in kept]
    needed = sum(widths[i] for i in kept)
    least = needed - widths[0] + min(widths[0], LEAST_NAME + PADDING)
    if table.title:
        yield Text(spelled(table.title, encoding), style="bold")
    if width is not None and least > width:
        yield from _stacked(texts, kept, table.bold, width)
    else:
        yield _grid(texts, kept, table, needed if width is None else min(needed, width))
    for below in filter(
        None, [table.below, f"not shown: {', '.join(left_out)} (see {table.file})" if left_out else ""]
    ):
        yield Text(spelled(below, encoding))


def _grid(texts: list[list[str]], kept: list[int], table: Table, width: int) -> RichTable:
    """Only the first column folds."""
    grid = RichTable(box=None, padding=(0, 1), width=width)
    for i in kept:
        justify = "right" if table.heads[i].right else "left"
        grid.add_column(Text(texts[0][i]), justify=justify, no_wrap=i != kept[0], overflow="fold")
    for number, row in enumerate(texts[1:]):
        grid.add_row(*(Text(row[i]) for i in kept), style="bold" if number in table.bold else "")
    return grid


def _stacked(texts: list[list[str]], kept: list[int], bold: frozenset[int], width: int) -> Iterable[Text]:
    """A line a number, where not even the columns that stay fit beside each other; two where its name does not fit
    beside it. A number is never folded."""
    for number, row in enumerate(texts[1:]):
        yield Text(row[kept[0]], style="bold" if number in bold else "", overflow="fold")
        for i in kept[1:]:
            if row[i]:
                line = f"  {texts[0][i]} {row[i]}".replace("   ", "  ")
                for part in [line] if cell_len(line) <= width else [f"  {texts[0][i]}", f"  {row[i].strip()}"]:
                    yield Text(part, no_wrap=True, overflow="ignore")


def fitting(ranks: Sequence[int], widths: Sequence[int], width: int | None) -> list[int]:
    """Which columns are shown: all, less those of the highest ranks until the others fit with a folded first one."""
    kept = list(range(len(ranks)))
    folded = [min(widths[0], LEAST_NAME + PADDING), *widths[1:]]
    while width is not None and sum(folded[i] for i in kept) > width and any(ranks[i] for i in kept):
        kept.remove(max(kept, key=lambda i: (ranks[i], i)))
    return kept
