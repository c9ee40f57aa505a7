"""Tables as LaTeX, in ASCII."""

import re
from collections.abc import Sequence

from eat_runner.report.view import Table

NOTE = "note"
ESCAPES = str.maketrans(
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


def latex(table: Table, caption: str, remarks: Sequence[str] = ()) -> str:
    """A table environment, not wider than the line; what a last column ``note`` says stands below it, numbered."""
    rows = [list(row) for row in table.rows]
    notes: dict[str, int] = {}
    if table.heads[-1].name == NOTE:
        for row in rows:
            row[-1] = f"({notes.setdefault(row[-1], len(notes) + 1)})" if row[-1] else ""
    below = [*(f"({number}) {note}" for note, number in notes.items()), *remarks]
    names = [head.name for head in table.heads]
    lines = [" & ".join(text.translate(ESCAPES) for text in row) + r" \\" for row in (names, *rows)]
    body = "\n".join(lines[1:])
    text = "".join("\n\n" + remark.replace("\n", "\n\n").translate(ESCAPES) for remark in below)
    caption = OWN_NUMBER.sub(lambda found: found[1].upper(), caption)
    return (
        "% \\usepackage{graphicx}\n"
        f"\\begin{{table}}\n\\caption{{{caption.translate(ESCAPES)}}}\n"
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
        f"\\begin{{tabular}}{{{'l' * len(names)}}}\n"
        f"\\hline\n{lines[0]}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}}}\n\n\\scriptsize{text}\n\\end{{table}}\n"
    )
