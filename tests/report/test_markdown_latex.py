"""Tables as Markdown and as LaTeX."""

from eat_runner.analysis.columns import X
from eat_runner.analysis.equal_accuracy import equal_accuracy
from eat_runner.analysis.pareto import Axes, fronts
from eat_runner.config.hardware import PublishedHardware
from eat_runner.report.latex import NOTE, latex
from eat_runner.report.markdown import markdown
from eat_runner.report.view import family, number, table_of
from frames import run, table

COLUMNS = {"name": lambda row: row["name"], "x %": lambda row: number(row.get("x"), row.get("x_std"), 2)}


def test_markdown_and_latex() -> None:
    rows = [{"name": "a|b_c", "x": 1.0, "x_std": 0.5}, {"name": "d\ne", "x": -0.001}, {"name": "f"}]
    made = table_of(rows, COLUMNS)
    assert markdown(made) == ("| name | x % |\n| --- | --- |\n| a\\|b_c | 1.00 ± 0.50 |\n| d e | 0.00 |\n| f | – |")
    text = latex(made, "50 % & more")
    assert r"\caption{50 \% \& more}" in text
    assert r"a\textbar{}b\_c & 1.00 $\pm$ 0.50 \\" in text
    assert text.count(r"\hline") == 3


def test_latex_is_plain_text_with_notes_below_and_leaves_the_numbering_to_latex() -> None:
    columns = {
        "name": lambda row: row["name"],
        "size": lambda row: "3 × 3, 10° … ± µλ – ≤ é",
        NOTE: lambda row: row.get("note", ""),
    }
    rows = [{"name": "first", "note": "a long reason"}, {"name": "second", "note": "a long reason"}, {"name": "third"}]
    text = latex(table_of(rows, columns), "Table 2: shape by σ")
    assert text.replace("é", "").isascii()
    assert r"\caption{Shape by $\sigma$}" in text
    assert text.count("(1)") == 3  # at two rows and once below
    assert text.count("a long reason") == 1


def test_methods_at_equal_accuracy() -> None:
    rows = [run(0, 0.95, 0.8), run(0, 0.97, 0.8, 1), run(1, 0.955, 0.4), run(1, 0.955, 0.5, 1)]
    (front,) = fronts(table(*rows), axes=Axes(X["energy"]))
    equal, _ = equal_accuracy(front)
    *_, last = family(front, PublishedHardware(), equal).equal
    assert [line for line in markdown(last).splitlines() if "EAT" in line] == [
        "| EAT | λ 1 | 2 | 0.9550 | 0.9550 | -0.50 | 450.00 | 0.500–0.625 | 43.8 |"
    ]
    text = latex(last, last.title)
    assert text.isascii()
    assert r"E/E\_ST" in text
    assert "0.500--0.625" in text


def test_numbers_have_their_digits_and_no_minus_before_a_zero() -> None:
    assert number(0.12345, 0.00061, 3) == "0.123 ± 0.001"
    assert number(0.5, None, 2) == number(0.5, float("nan"), 2) == "0.50"
    assert number(-0.0001, None, 3) == "0.000"
    assert number(None, None, 3) == number(float("nan"), 0.1, 3) == "–"
