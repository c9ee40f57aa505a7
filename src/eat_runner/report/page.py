"""A page of Markdown with tables and figures, and the files beside it: a table as CSV, Markdown and LaTeX, a figure as
PNG and SVG. No torch."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from eat_runner.analysis.table import to_csv
from eat_runner.records import write_atomically
from eat_runner.report import plots
from eat_runner.report.latex import latex
from eat_runner.report.markdown import markdown
from eat_runner.report.view import Table

SUFFIXES = ("csv", "md", "tex", "png", "svg")


class Page:
    """README.md in ``folder`` as it grows. written: names of the files beside it."""

    name = "README.md"

    def __init__(self, folder: Path):
        self.folder = folder
        self.parts: list[str] = []
        self.written: set[str] = set()

    def text(self, *paragraphs: str) -> None:
        self.parts += filter(None, paragraphs)

    def bullets(self, lines: Iterable[str]) -> None:
        self.text(bullets(lines))

    def file(self, name: str, text: str | bytes) -> None:
        write_atomically(self.folder / name, text if isinstance(text, bytes) else text.encode())
        self.written.add(name)

    def table(self, stem: str, frame: pd.DataFrame, table: Table, caption: str, remarks: Sequence[str] = ()) -> None:
        """``stem``.csv with every number of the frame, .md and .tex with the table as people read it, which comes onto
        the page, too."""
        text = "\n\n".join([f"**{caption}**", markdown(table), *remarks])
        self.file(f"{stem}.csv", to_csv(frame))
        self.file(f"{stem}.md", f"{text}\n")
        self.file(f"{stem}.tex", latex(table, caption, remarks))
        self.text(text)

    def figure(self, stem: str, figure: Figure, title: str, caption: str) -> None:
        self.written |= {path.name for path in plots.save(figure, self.folder / stem)}
        self.text(f"![{title}]({stem}.png)", f"**{title}** {caption}")

    def save(self, stems: Iterable[str]) -> None:
        """Write the page; files of these stems that an earlier page had, and this one lacks, go."""
        write_atomically(self.folder / self.name, ("\n\n".join(self.parts) + "\n").encode())
        for name in {f"{stem}.{suffix}" for stem in stems for suffix in SUFFIXES} - self.written:
            (self.folder / name).unlink(missing_ok=True)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
