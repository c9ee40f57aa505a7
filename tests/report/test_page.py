"""A page of Markdown, and the files beside it."""

import pandas as pd
from matplotlib.figure import Figure

from eat_runner.report.page import Page
from eat_runner.report.view import Head, Table


def test_a_table_is_on_the_page_and_in_three_files(tmp_path):
    page = Page(tmp_path)
    page.text("# Title", "", "`command`")
    frame, table = pd.DataFrame({"ratio": [0.123456]}), Table([Head("ratio")], [["0.123"]])
    page.table("numbers", frame, table, "50 % of it.", ["± means nothing."])
    page.save(["numbers"])
    shown = "**50 % of it.**\n\n| ratio |\n| --- |\n| 0.123 |\n\n± means nothing.\n"
    assert (tmp_path / "README.md").read_text() == f"# Title\n\n`command`\n\n{shown}"
    assert (tmp_path / "numbers.md").read_text() == shown
    assert (tmp_path / "numbers.csv").read_text() == "ratio\n0.123456\n"
    assert r"50 \% of it." in (tmp_path / "numbers.tex").read_text()


def test_a_figure_is_shown_and_its_files_are_there(tmp_path):
    page = Page(tmp_path)
    page.figure("front", Figure(), "A front.", "Of one seed.")
    page.bullets(["one", "two"])
    page.save(["front"])
    assert (
        tmp_path / "README.md"
    ).read_text() == "![A front.](front.png)\n\n**A front.** Of one seed.\n\n- one\n- two\n"
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "front.png", "front.svg"}


def test_files_of_an_earlier_page_that_this_one_lacks_go(tmp_path):
    for name in ("old.csv", "old.png", "kept.csv", "other.md"):
        (tmp_path / name).touch()
    page = Page(tmp_path)
    page.file("kept.csv", "a\n1\n")
    page.save(["old", "kept"])
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "kept.csv", "other.md"}
