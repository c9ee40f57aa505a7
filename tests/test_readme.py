"""The README's numbers are those of the result files that it names."""

import csv
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results" / "gtsrb-slim"


def setting_rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {f"{float(row['lambda']):g}": row for row in csv.DictReader(file)}


def percent(row: dict[str, str], key: str) -> str:
    return f"{100 * float(row[key]):.1f}"


def test_the_gtsrb_table_is_that_of_the_result_files():
    number = r"([\d.]+)"
    rows = re.findall(rf"^\| {number} \| {number} ± {number} " + rf"\| {number} " * 4 + r"\|$", README, re.M)
    published = setting_rows(RESULTS / "pareto.csv")
    fused = {name: setting_rows(RESULTS / name / "pareto.csv") for name in ("fused_45nm", "fused_7nm_int8")}
    assert [row[0] for row in rows] == sorted(published, key=float)
    for lambda_, accuracy, deviation, ratio, *decreases in rows:
        row = published[lambda_]
        assert (accuracy, deviation) == (percent(row, "accuracy"), percent(row, "accuracy_std"))
        assert ratio == f"{float(row['energy_ratio']):.3f}"
        found = [row, fused["fused_45nm"][lambda_], fused["fused_7nm_int8"][lambda_]]
        for decrease, priced in zip(decreases, found, strict=True):
            assert float(decrease) == pytest.approx(float(priced["energy_decrease_percent"]), abs=0.051)


PATH_PRICES = ("published", "fused_45nm_shared100")


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_the_table_of_methods_is_that_of_the_result_files(page: str):
    number = r"(-?[\d.]+)"
    line = rf"^\|[^|]+\| (\d) \| {number} \| (?:{number} \[{number}, {number}\])? ?\| {number} \| {number} \|$"
    shown = re.findall(line, (ROOT / page).read_text(), re.M)
    with (ROOT / "results" / "methods" / "fused_7nm_int8" / "equal_accuracy.csv").open(newline="") as file:
        rows = {f"{float(r['energy_uj_per_image']):.2f}": r for r in csv.DictReader(file) if r["allowance"] == "1"}
    assert len(shown) >= 5
    for seeds, accuracy, below, low, high, uj, decrease in shown:
        row = rows[uj]
        assert seeds == row["n"]
        assert accuracy == f"{100 * float(row['accuracy']):.2f}"
        assert decrease == percent(row, "energy_decrease")
        if below:
            keys = ("accuracy_difference", "accuracy_difference_high", "accuracy_difference_low")
            assert [below, low, high] == [f"{-100 * float(row[key]):.2f}" for key in keys]
        else:
            assert row["method"] == "standard training"


def test_the_table_of_price_lists_is_that_of_the_result_files():
    results = ROOT / "results" / "methods"
    cells = r"([\d.–]+)"
    line = rf"^\| `(\w+)` \| [^|]+ \| {cells} \| {cells} \| {cells} \| {cells} \|$"
    shown = re.findall(line, (results / "README.md").read_text(), re.M)
    assert len(shown) == 8
    for name, *figures in shown:
        with (results / name / "equal_accuracy.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["allowance"] == "1" and row["energy_decrease"]]
        decreases = {row["method"]: percent(row, "energy_decrease") for row in rows}
        methods = ("pruning=magnitude", "dense narrow networks", "EAT")
        best = max(decreases.values(), key=float)
        assert figures == [best, *(decreases.get(method, "–") for method in methods)]


def test_the_tables_of_paths_are_those_of_the_result_files():
    results = ROOT / "results" / "paths"
    text, methods = (results / "README.md").read_text(), " ".join((ROOT / "docs" / "methods.md").read_text().split())
    tables = [list(csv.DictReader((results / f"compared_{name}.csv").open())) for name in PATH_PRICES]
    shown = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M)
    keys = {"points": 0, "epochs": 0, "epochs_share": 2, "hypervolume_share": 3, "energy_0": 3, "energy_1": 3}
    assert shown == [tuple(f"{float(row[key]):.{digits}f}" for key, digits in keys.items()) for row in tables[0]]
    others = [f"{float(row['hypervolume_share']):.3f}" for row in tables[1][1:]]
    assert f"the shares are {' and '.join(others)}." in text
    short, wide = ([f"{float(row[key]):.2f}" for key in ("hypervolume_share", "epochs_share")] for row in tables[0][1:])
    assert f"came to {wide[0]} of the hypervolume" in methods
    assert f"for {wide[1]} of their epochs" in methods
    assert f"to {short[0]} for {short[1]}." in methods


def test_what_the_papers_network_reached_is_what_the_result_files_say():
    with (ROOT / "results" / "reproduction" / "paper-short" / "table1.csv").open(newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["source"] == "ours, our rule" and row["eat_ratio"]]
    assert (row["network"], row["lambda"]) == ("VGG16", "1.0")
    said = f"{arrow(row, 'accuracy', 3)} at a ratio of {arrow(row, 'ratio', 3)} with lambda 1"
    assert said in " ".join(README.split())
    docs = " ".join((ROOT / "docs" / "reproduction.md").read_text().split())
    assert f"{percent(row, 'st_accuracy')} % at a ratio of {float(row['st_ratio']):.3f}" in docs
    assert f"{percent(row, 'eat_accuracy')} % at {float(row['eat_ratio']):.3f}: " in docs
    assert f"{float(row['decrease_percent']):.1f} % less, at no loss" in docs
    with (ROOT / "results" / "reproduction" / "paper-short" / "table2.csv").open(newline="") as file:
        decrease = {row["hardware"]: f"{float(row['decrease_percent']):.1f} %" for row in csv.DictReader(file)}
    shared, fetched, int8 = (
        decrease[name] for name in ("fused, 45 nm, weights shared by 100 images", "fused, 45 nm", "fused, 7 nm, int8")
    )
    assert (
        f"{shared} where a hundred images share the weights, {fetched} where each fetches them, {int8} at 7 nm" in docs
    )


def test_what_bf16_costs_is_what_the_result_file_says():
    rows = list(csv.DictReader((ROOT / "results" / "precision" / "summary.csv").open(newline="")))
    found = {(float(row["lambda"]), "bf16" in row["family"], int(row["seed"])): row for row in rows}
    text = (ROOT / "results" / "precision" / "README.md").read_text()
    shown = re.findall(r"^\| ([01]) \| (.+) \|$", text, re.M)
    assert len(shown) == 2
    for lambda_, cells in shown:
        expected: list[str] = []
        for key, factor, digits in (("accuracy", 100, 2), ("energy_ratio", 1, 4)):
            single, half = (
                [factor * float(found[float(lambda_), bf16, seed][key]) for seed in range(10)] for bf16 in (False, True)
            )
            differences = [b - a for a, b in zip(single, half, strict=True)]
            groups = (single, half, differences)
            expected += [f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}" for values in groups]
        assert cells.split(" | ") == expected


def test_table_1_is_that_of_the_result_files():
    with (ROOT / "results" / "reproduction" / "slim" / "table1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paper = [row for row in rows if row["source"] == "paper"]
    ours = [row for row in rows if row["source"] == "ours, our rule"]
    shown = [
        line.strip("| ").split(" | ") for line in README.splitlines() if re.match(r"\| [^|]+ \| (ResNet|VGG)", line)
    ]
    assert [cells[:2] for cells in shown] == [[row["dataset"], row["network"]] for row in ours]
    for cells, theirs, row in zip(shown, paper, ours, strict=True):
        assert [cells[2], cells[3]] == [arrow(theirs, key, 2) for key in ("accuracy", "ratio")]
        assert float(cells[4]) == pytest.approx(float(theirs["decrease_percent"]), abs=0.051)
        if not row["eat_ratio"]:
            assert cells[5:] == ["not run", "–", "–", "–"]
            continue
        decrease = f"{float(row['decrease_percent']):.1f} ± {float(row['decrease_percent_std']):.1f}"
        expected = [arrow(row, key, 3, spread=True) for key in ("accuracy", "ratio")]
        expected += [decrease, f"{float(row['lambda']):g}"]
        assert cells[5:] == expected


def arrow(row: dict[str, str], key: str, digits: int, spread: bool = False) -> str:
    def number(name: str) -> str:
        return f"{float(row[name]):.{digits}f}" + (f" ± {float(row[f'{name}_std']):.{digits}f}" if spread else "")

    return f"{number(f'st_{key}')} → {number(f'eat_{key}')}"


def test_every_file_that_the_readme_links_to_is_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
