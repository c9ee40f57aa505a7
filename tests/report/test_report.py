"""eat-report, from folders to files and lines, as a person calls it."""

import csv
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import run_folders
from eat_runner.analysis.columns import X
from eat_runner.analysis.pareto import Axes
from eat_runner.cli.errors import one_line_errors
from eat_runner.cli.report import command
from eat_runner.config.dataset import DatasetConfig
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.config.pruning import PruningConfig
from eat_runner.energy.counts import Kind
from eat_runner.energy.hardware import load_hardware
from eat_runner.errors import UserError
from eat_runner.records import RunFolder
from eat_runner.report import write_report
from eat_runner.report.text import plain
from run_folders import config, write_run, write_sweep

PUBLISHED = PublishedHardware()
FILES = [
    "layer_comparison.csv",
    "layers_energy.png",
    "layers_energy.svg",
    "layers_firing.png",
    "layers_firing.svg",
    "pareto.csv",
    "pareto.png",
    "pareto.svg",
    "summary.csv",
]
ROOT = Path(__file__).parents[2]


WIDTHS = "bits: 32\nbuffer_bits: 8388608\nregister_pj_per_mac: 0\nactivation_pj: 0\n"  # of a hardware file


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of lambda 0, 1 and 3, of which 1 and 3 lose 0.4 and 2.6 points: within three; a failed run."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    write_sweep(folder, (0, 1, 3), (0, 1))
    write_run(folder, config(9.0), status="failed", reason="RuntimeError: [red]out of memory[/red]")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that make a front but no comparison of layers."""
    folder = tmp_path_factory.mktemp("results") / "small"
    write_sweep(folder, (1,), (0, 1))
    return folder


def test_the_whole_report(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command([str(sweep), "--output", str(tmp_path)])
    text = capsys.readouterr().out
    assert written(tmp_path) == FILES
    summary = rows(tmp_path / "summary.csv")
    assert [(row["lambda"], row["seed"], row["status"]) for row in summary] == [
        *((str(lambda_), str(seed), "finished") for lambda_ in (0.0, 1.0, 3.0) for seed in (0, 1)),
        ("9.0", "0", "failed"),
    ]
    assert (tmp_path / summary[0]["folder"]).resolve() == (sweep / summary[0]["run_id"]).resolve()
    settings = rows(tmp_path / "pareto.csv")
    assert [(row["lambda"], row["n"], row["selected"]) for row in settings] == [
        ("3.0", "2", "True"),
        ("1.0", "2", "False"),
        ("0.0", "2", "False"),
    ]
    lines = text.splitlines()
    (chosen,) = [line for line in lines if "selected" in line and "λ 3" in line]
    mean = float(settings[0]["accuracy"])
    assert f"{mean:.4f} ± " in chosen
    assert f"{float(settings[0]['energy_ratio']):.4f} ± " in chosen
    assert f"{float(settings[0]['energy_floor']):.3f}" in chosen
    assert "1 of 7 runs are not in the front: 1 failed" in text
    assert "failed (RuntimeError: [red]out of memory[/red])" in text
    assert "metered in batches of 100" in text
    assert str(tmp_path / "pareto.svg") in text
    assert not [line for line in lines if line != line.rstrip()]


def test_the_same_runs_give_the_same_bytes(sweep: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_report(sweep, PUBLISHED, output=tmp_path / name)
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_report_goes_into_the_folder_and_is_no_run(tmp_path: Path) -> None:
    write_sweep(tmp_path, (1,), (0, 1))
    first = write_report(tmp_path, PUBLISHED)
    assert "summary.csv" in written(tmp_path)
    assert len(write_report(tmp_path, PUBLISHED).runs) == len(first.runs) == 2


def test_layer_comparison_is_of_the_baseline_and_the_selected_setting(sweep: Path, tmp_path: Path) -> None:
    write_report(sweep, PUBLISHED, output=tmp_path)
    layers = rows(tmp_path / "layer_comparison.csv")
    assert len(layers) == 25
    relu = next(row for row in layers if row["name"] == "layer1.0.relu")
    # 0.55 / (1 + 0.9 lambda) + 0.004 for seed 1, rounded down to whole neurons
    assert float(relu["firing_rate_st"]) == pytest.approx(0.552, abs=1e-5)
    assert float(relu["firing_rate_eat"]) == pytest.approx(0.55 / 3.7 + 0.002, abs=1e-5)
    assert float(relu["energy_pj_eat"]) < float(relu["energy_pj_st"])


def test_other_hardware_prices_the_same_runs_again(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"rule: fused\n{WIDTHS}process_nm: 45\ndram_pj_per_bit: 20.0\nbuffer_pj_per_bit: 1.0\nmultiply_pj: 3.7\n"
        "accumulate_pj: 0.9\nadd_pj: 0.9\nsource: {dram_pj_per_bit: a test}\n"
    )
    command([str(sweep), "--hardware", str(tmp_path / "mine.yaml"), "--output", str(tmp_path / "out")])
    (_, *_, row) = rows(tmp_path / "out" / "pareto.csv")
    assert row["hardware"] == "mine"
    assert row["energy_floor"] == ""
    published = write_report(sweep, PUBLISHED, output=tmp_path / "published").fronts[0].settings.iloc[-1]
    assert float(row["energy_ratio"]) != pytest.approx(published["energy_ratio"], rel=1e-3)


def prune(folder: RunFolder) -> None:
    """A tenth of the weights is left, and of the products with them."""
    counts = folder.read_counts()
    layers = [
        replace(r, weight_nonzeros=r.weight_elements // 10, macs_both_nonzero=r.macs_both_nonzero // 10)
        if r.kind in {Kind.CONV, Kind.LINEAR}
        else r
        for r in counts.layers
    ]
    folder.write_counts(replace(counts, layers=layers))
    folder.write_record(folder.read_record())


ON_CHIP = (
    f"rule: fused\n{WIDTHS}accumulate_pj: 0\nadd_pj: 0\nbuffer_pj_per_bit: 1.0\n"
    "dram_pj_per_bit: 20.0\nmultiply_pj: 3.7\nformat: bitmask\n"
    "weight_buffer_bits: 500000\nsource: {multiply_pj: a test}\n"
)


def test_where_weights_stay_on_chip_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_sweep(tmp_path / "runs", (0, 1, 2), (0, 1))
    for folder in runs[2:5]:  # both seeds of lambda 1, one of lambda 2
        prune(folder)
    (tmp_path / "chip.yaml").write_text(ON_CHIP)
    command([str(tmp_path / "runs"), "--hardware", str(tmp_path / "chip.yaml"), "--output", str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert [line.split("weights on chip")[1] for line in text.splitlines() if "weights on chip" in line] == [
        "",
        " (1 of 2 seeds)",
    ]
    assert "weights stay on chip in 1 of 3 settings" in text
    summary = rows(tmp_path / "out" / "summary.csv")
    assert [float(row["weights_on_chip"]) for row in summary] == [0, 0, 1, 1, 1, 0]
    # 32 bits: 8 x 2304 weights of convolutions, 8 x 16 folded biases, 10240 + 10 of the classifier; of the pruned ones
    # the convolutions take 230 values and a mask, the classifier 1024
    dense = 8 * 2304 + 8 * 16 + 10250
    pruned = 8 * (230 * 32 + 2304) + 8 * 16 * 32 + (1024 * 32 + 10240) + 10 * 32
    assert dense * 32 > 500_000 > pruned
    assert [float(row["stored_weight_bytes"]) for row in summary] == [
        *[dense * 4] * 2,
        *[pruned / 8] * 3,
        dense * 4,
    ]
    # the first two blocks' outputs, 563.2 and 520.96 of 1024 values of an image; the image itself takes 1024 bytes
    assert float(summary[0]["peak_activation_bytes"]) == pytest.approx(((563.2 + 520.96) * 32 + 2 * 1024) / 8)
    settings = {row["lambda"]: row for row in rows(tmp_path / "out" / "pareto.csv")}
    assert [float(settings[lambda_]["weights_on_chip"]) for lambda_ in ("0.0", "1.0", "2.0")] == [0, 1, 0.5]


def test_memory_is_no_column_where_it_is_not_known_or_always_the_same(sweep: Path, small: Path, tmp_path: Path) -> None:
    memory = {"stored_weight_bytes", "peak_activation_bytes", "weights_on_chip"}
    write_report(sweep, PUBLISHED, output=tmp_path / "published")
    assert not memory & set(rows(tmp_path / "published" / "summary.csv")[0])
    write_report(sweep, FusedHardware(multiply_pj=1.0), output=tmp_path / "fused")
    assert memory & set(rows(tmp_path / "fused" / "summary.csv")[0]) == {"peak_activation_bytes"}
    assert memory & set(rows(tmp_path / "fused" / "pareto.csv")[0]) == {"peak_activation_bytes"}


@pytest.mark.long
def test_whether_the_selected_setting_stays_selected_over_the_range_of_a_price(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write_sweep(tmp_path / "runs", (0, 1, 3), (0,))
    prune(runs[1])
    # where DRAM is cheap, what skips most products wins; where it is dear, what fetches fewest weights
    for low, high, kept in ((0.001, 20, False), (10, 20, True)):
        (tmp_path / "mine.yaml").write_text(
            f"rule: fused\n{WIDTHS}accumulate_pj: 0\nadd_pj: 0\nbuffer_pj_per_bit: 1e-9\nskip: input\n"
            f"dram_pj_per_bit: {high}\nmultiply_pj: 2\n"
            f"ranges: {{dram_pj_per_bit: [{low}, {high}]}}\n"
        )
        arguments = [
            str(tmp_path / "runs"),
            "--hardware",
            str(tmp_path / "mine.yaml"),
            "--output",
            str(tmp_path / "out"),
        ]
        command(arguments)
        said = [line for line in capsys.readouterr().out.splitlines() if "stay" in line]
        hardware = load_hardware(str(tmp_path / "mine.yaml"))
        (front,) = write_report(tmp_path / "runs", hardware, output=tmp_path / "out").fronts
        # priced as two files without ranges
        ends = [
            write_report(tmp_path / "runs", replace(hardware, dram_pj_per_bit=end, ranges={}), output=tmp_path / "out")
            for end in (low, high)
        ]
        assert front.selected_at_corners == [end.fronts[0].selected for end in ends]
        assert front.settings.at[front.selected, "lambda"] == 1
        if kept:
            assert said == ["stays selected at both ends of dram_pj_per_bit 10 to 20"]
        else:
            assert said == [
                "does not stay selected at 1 of 2 ends of dram_pj_per_bit 0.001 to 20: at dram_pj_per_bit=0.001 it is "
                "λ 3"
            ]
        assert not [end.families[0].facts for end in ends if any("stay" in fact for fact in end.families[0].facts)]


def test_relative_prices_give_no_joules(sweep: Path, tmp_path: Path) -> None:
    hardware = FusedHardware(name="relative", multiply_pj=1.0, dram_pj_per_bit=12.5, relative=True)
    report = write_report(sweep, hardware, output=tmp_path)
    assert report.runs["energy_uj_per_image"].isna().all()
    assert "energy per image (MACs)" in (tmp_path / "layers_energy.svg").read_text()


def test_select_prints_the_path_of_the_lowest_seed_and_writes_nothing(
    sweep: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = written(sweep)
    command([str(sweep), "--select"])
    sys.stdout.flush()
    path = Path(os.fsdecode(capfdbinary.readouterr().out.removesuffix(b"\n")))
    assert path.parent == sweep
    assert "lambda3-seed0" in path.name
    assert written(sweep) == before


def test_select_without_a_candidate_says_why(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0))
    with pytest.raises(UserError, match="no run can be selected: no finished run with lambda=0"):
        command([str(tmp_path), "--select"])


def test_of_more_than_two_hundred_runs_it_says_how_many_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(200):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "config.yaml").touch()
    arguments = [str(tmp_path), "--hardware", "published"]
    command(arguments)
    assert capsys.readouterr().err == ""
    write_run(tmp_path, config(0.0), blocks=1)
    command(arguments)
    assert capsys.readouterr().err.splitlines() == ["reading 201 runs; the figures, a panel a family, take longest"]
    command([*arguments, "--select"])
    assert capsys.readouterr().err.splitlines() == ["reading 201 runs"]


def test_without_a_validation_split_only_the_papers_rule_selects(tmp_path: Path) -> None:
    for lambda_ in (0.0, 1.0):
        chosen = config(lambda_)
        chosen.dataset = DatasetConfig(name="digits", validation=0.0)
        write_run(tmp_path, chosen)
    report = write_report(tmp_path, PUBLISHED)
    assert "there is no validation split" in plain(report)
    assert not (tmp_path / "layers_firing.png").exists()
    assert "the paper's rule" in plain(write_report(tmp_path, PUBLISHED, "paper"))
    assert (tmp_path / "layers_firing.png").exists()
    write_report(tmp_path, PUBLISHED)  # and what no longer holds is taken away
    assert not (tmp_path / "layers_firing.png").exists()


def test_a_missing_baseline_is_said_and_the_column_is_empty(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0))
    assert "no finished run with lambda=0" in plain(write_report(tmp_path, PUBLISHED))
    assert [row["energy_decrease_percent"] for row in rows(tmp_path / "summary.csv")] == [""]


def test_runs_that_have_only_failed_still_give_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, config(1.0), status="diverged", reason="the loss stopped being finite")
    report = write_report(tmp_path, PUBLISHED)
    assert "1 diverged" in plain(report)
    assert [row["status"] for row in rows(tmp_path / "summary.csv")] == ["diverged"]
    assert not (tmp_path / "pareto.png").exists()


def damage(folder: RunFolder) -> None:
    folder.layers.write_bytes(folder.layers.read_bytes()[:-9])


def fewer_layers(folder: RunFolder) -> None:
    """Whole files, of a network with fewer layers."""
    folder.write_counts(run_folders.counts(3, 0, blocks=4))
    folder.write_record(folder.read_record())


def no_layers(folder: RunFolder) -> None:
    lines = folder.layers.read_text().splitlines()
    folder.layers.write_text(lines[0] + "\n")
    folder.write_record(folder.read_record())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(damage, "layers.csv is damaged"), (fewer_layers, "its layers are others"), (no_layers, "there are no layers")],
)
@pytest.mark.parametrize("baseline", [True, False])
def test_layers_that_cannot_be_compared_are_left_out_and_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[RunFolder], None], said: str, baseline: bool
) -> None:
    standard, _, trained, _ = write_sweep(tmp_path / "runs", (0, 3), (0, 1))
    write_sweep(tmp_path / "runs", (0, 3), (0, 1), model="vgg16")
    harmed = standard if baseline else trained
    harm(harmed)
    command([str(tmp_path / "runs"), "--output", str(tmp_path / "out")])
    text = " ".join(capsys.readouterr().out.split())
    assert written(tmp_path / "out") == FILES
    assert [row["selected"] for row in rows(tmp_path / "out" / "pareto.csv")] == ["True", "False"] * 2
    assert {row["family"] for row in rows(tmp_path / "out" / "layer_comparison.csv")} == {"digits · vgg16, width 16"}
    assert "digits · resnet18, width 16: no comparison of layers: " in text
    assert said in text
    assert harmed.path.parent.name in text


def test_standard_training_with_other_layers_than_the_selected_setting(tmp_path: Path) -> None:
    write_run(tmp_path, config(0.0))
    write_run(tmp_path, config(1.0), blocks=4)
    report = write_report(tmp_path, PUBLISHED)
    assert len(report.missing) == 1
    assert " has other layers than " in report.missing[0]
    assert "layer_comparison.csv" not in written(tmp_path)


def test_what_is_missing_is_named_in_the_text_the_table_and_the_figure(tmp_path: Path) -> None:
    write_sweep(tmp_path, (0, 1), (0,))
    absent = {
        status: write_run(tmp_path, config(float(number)), status=status, reason="why").path.name
        for number, status in enumerate(["failed", "diverged", "interrupted"], start=2)
    }
    begun = write_run(tmp_path, config(9.0))
    begun.record.unlink()
    report = write_report(tmp_path, PUBLISHED)
    text, count = plain(report), "4 of 6 runs are not in the front: 1 diverged, 1 failed, 1 interrupted, 1 running"
    assert count in text
    for status, name in absent.items():
        assert f"  {name}: {status} (why)" in text
    assert f"  {begun.path.name}: running (no record yet: a process has it, or was killed)" in text
    table = {row["run_id"]: row["status"] for row in rows(tmp_path / "summary.csv")}
    assert {table[name] for name in [*absent.values(), begun.path.name]} == {*absent, "running"}
    assert f"<!-- {count} -->" in (tmp_path / "pareto.svg").read_text()


def test_a_report_on_a_run_leaves_the_files_that_the_run_is_writing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, config(1.0))
    writing = folder.path / ".checkpoint.pt.0123abcd.tmp"
    writing.write_text("half")
    command([str(folder.path)])
    assert writing.read_text() == "half"
    assert "summary.csv" in written(folder.path)
    left = tmp_path / ".pareto.csv.0123abcd.tmp"
    left.write_text("half")
    write_report(tmp_path, PUBLISHED)
    assert not left.exists()  # of a report that was killed


def test_help_says_what_the_exit_code_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    """A report on runs that failed is a report: the test of the whole report has such a run."""
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    assert end.value.code == 0
    said = "Exit codes: 0 the report is written, also where runs failed or are missing, which it names; 2 bad input."
    assert said in " ".join(capsys.readouterr().out.split())


def test_two_reports_at_once_leave_whole_files(small: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "eat_runner.cli.report", str(small), "--output", str(tmp_path)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment()) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert written(tmp_path) == ["pareto.csv", "pareto.png", "pareto.svg", "summary.csv"]
    assert len(rows(tmp_path / "summary.csv")) == 2


def test_networks_of_a_data_set_share_a_front(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "runs", (0, 1), (0, 1))
    for lambda_ in (0, 1):
        for seed in (0, 1):
            write_run(tmp_path / "runs", config(lambda_, seed, model="vgg16"), blocks=4)
    command([str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--by", "dataset"])
    text = capsys.readouterr().out
    found = rows(tmp_path / "out" / "pareto.csv")
    assert {row["family"] for row in found} == {"digits"}
    assert sorted((row["model"], row["lambda"]) for row in found) == [
        *(("resnet18", "0.0"), ("resnet18", "1.0"), ("vgg16", "0.0"), ("vgg16", "1.0"))
    ]
    assert "reference: resnet18, width 16, lambda 0, mean of 2 seeds" in text
    assert "resnet18, width 16, λ 1" in text
    [reference] = [row for row in found if (row["model"], row["lambda"]) == ("resnet18", "0.0")]
    for row in found:
        relative = float(row["energy_uj_per_image"]) / float(reference["energy_uj_per_image"])
        assert float(row["energy_relative"]) == pytest.approx(relative, rel=1e-9)
        assert row["pairs"] == "2"
    figure = (tmp_path / "out" / "pareto.svg").read_text()
    assert "<!-- inference energy (µJ per image) -->" in figure
    assert "<!-- dense vgg16 -->" in figure
    layers = rows(tmp_path / "out" / "layer_comparison.csv")
    assert {row["family"] for row in layers} == {"digits"}


def test_methods_at_equal_accuracy_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy is known by formula: width 8 loses 0.4 points, density 0.05 loses 0.76, lambda 1 loses 0.4."""
    for seed in (0, 1):
        smaller = {"methods": {"pruning": PruningConfig(name="magnitude", density=0.05)}}
        for chosen in (config(0.0, seed), config(0.0, seed, width=8), config(1.0, seed), config(0.0, seed, **smaller)):
            write_run(tmp_path / "runs", chosen, predictions=True)
    arguments = [str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--by", "dataset"]
    command([*arguments, "--hardware", "fused_45nm"])
    text = capsys.readouterr().out
    found = rows(tmp_path / "out" / "equal_accuracy.csv")
    methods = {row["method"]: row for row in found if row["allowance"] == "1"}
    assert set(methods) == {"standard training", "dense narrow networks", "pruning=magnitude", "EAT"}
    assert {row["method"] for row in found if row["allowance"] == "0"} == {"standard training"}
    energy = {run["run_id"]: float(run["energy_uj_per_image"]) for run in rows(tmp_path / "out" / "summary.csv")}
    for row in methods.values():
        runs = [run for run in rows(tmp_path / "out" / "summary.csv") if run["setting_id"] == row["setting_id"]]
        assert float(row["energy_uj_per_image"]) == pytest.approx(sum(energy[r["run_id"]] for r in runs) / 2, rel=1e-12)
    pruned = methods["pruning=magnitude"]
    assert float(pruned["accuracy_difference"]) == pytest.approx(-0.0076)
    assert -0.03 < float(pruned["accuracy_difference_low"]) < -0.0076 < float(pruned["accuracy_difference_high"]) <= 0
    assert f"{float(pruned['accuracy']):.4f}" in text
    assert "digits: lowest energy at most 1 point below the reference (mean on the validation split)" in text
    assert "nothing within it: " in text
    assert "lower energy in every one of 2 seeds" in text or "higher energy in every one of 2 seeds" in text
    command(arguments[:3])  # by family there is none, and the old one goes
    assert "equal_accuracy.csv" not in written(tmp_path / "out")


def test_relative_prices_compare_networks_relative_to_the_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sweep(tmp_path / "runs", (0, 1), (0, 1))
    command([str(tmp_path / "runs"), "--output", str(tmp_path), "--by", "dataset", "--hardware", "eyeriss_65nm"])
    assert "times the reference's energy, what the reference needs without zero-skipping)" in capsys.readouterr().out
    assert "<!-- inference energy (1: the reference) -->" in (tmp_path / "pareto.svg").read_text()
    assert {row["energy_uj_per_image"] for row in rows(tmp_path / "pareto.csv")} == {""}
    equal = [row for row in rows(tmp_path / "equal_accuracy.csv") if row["method"] == "EAT"]
    assert {row["energy_uj_per_image"] for row in equal} == {""}
    assert all(0 < float(row["energy_relative"]) < 1 for row in equal)


def test_axes_that_no_run_has_are_refused(tmp_path: Path) -> None:
    chosen = config(1.0)
    chosen.dataset = DatasetConfig(name="digits", validation=0.0)
    write_run(tmp_path, chosen)
    with pytest.raises(UserError, match="no run has a validation split"):
        command([str(tmp_path), "--y", "validation"])
    with pytest.raises(UserError, match="no run has a reference"):
        command([str(tmp_path), "--x", "relative"])
    command([str(tmp_path), "--x", "energy"])


def test_a_family_without_the_reference_that_its_axis_needs_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path, (0, 1), (0,))
    write_run(tmp_path, config(1.0, model="vgg16"))
    report = write_report(tmp_path, PUBLISHED, axes=Axes(X["relative"]))
    assert report.missing == [
        "digits · vgg16, width 16: no front: its runs do not have what --x relative --y accuracy asks for"
    ]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "the following arguments are required: FOLDER: see eat-report --help"),
        (["{tmp}/nowhere"], "{tmp}/nowhere: no such folder"),
        (["{tmp}"], "{tmp}: no runs in there: name a folder that eat-run wrote"),
        (["a", "b"], "several folders: add --output FOLDER to say where the report goes"),
        (["{tmp}", "--selection", "best"], "argument --selection: invalid choice: 'best'"),
        (["{tmp}", "--by", "width"], "argument --by: invalid choice: 'width'"),
        (["{tmp}", "--x", "joules"], "argument --x: invalid choice: 'joules'"),
        (["{tmp}", "--y", "loss"], "argument --y: invalid choice: 'loss'"),
        (
            ["{tmp}", "--hardware", "eyeriss_65nm", "--x", "energy"],
            "--x energy: the prices of eyeriss_65nm are relative, so there are no joules: use --x relative",
        ),
        (["{tmp}", "--hard", "x"], "unrecognized arguments: --hard x: see eat-report --help"),
        (["{tmp}", "--hardware", "abacus"], "hardware=abacus is unknown: choose one of"),
        (["{tmp}", "--hardware", "{tmp}/my.yaml"], "{tmp}/my.yaml: no hardware file there"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("eat-report"):
        command([argument.format(tmp=tmp_path) for argument in arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"eat-report: error: {line.format(tmp=tmp_path)}")
    assert error.count("\n") == 1
    assert written(tmp_path) == []


def test_full_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(SystemExit), one_line_errors("eat-run"):
        raise UserError("two\nlines \x1b[31m")
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.endswith("\neat-run: error: two lines ?[31m\n")


def test_a_full_disk_is_one_line_and_a_defect_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("eat-report"):
        raise OSError(28, "No space left on device", "summary.csv")
    assert end.value.code == 2
    assert capsys.readouterr().err == "eat-report: error: summary.csv: No space left on device\n"
    with pytest.raises(KeyError), one_line_errors("eat-report"):
        raise KeyError("x")


def test_a_reader_that_has_gone_is_no_error(small: Path, tmp_path: Path) -> None:
    code = f"{sys.executable} -m eat_runner.cli.report {small} --output {tmp_path} | true"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stderr == ""


def test_neither_torch_nor_hydra_is_imported(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from eat_runner.cli.report import command; "
        f"command([{str(small)!r}, '--output', {str(tmp_path)!r}]); "
        "print(sorted({'torch', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["run", "report"])
def test_help_waits_for_no_table_and_no_figure(command: str) -> None:
    code = (
        f"import sys; from eat_runner.cli.{command} import main; sys.argv = ['it', '--help']\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.long
def test_it_runs_where_torch_is_not_installed(sweep: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    short_list = ["pandas", "matplotlib", "pyyaml", "omegaconf", "rich", "filelock", "numpy", "scipy"]
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *short_list], check=True)
    subprocess.run([*install, "--no-deps", str(ROOT)], check=True)
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    missing = subprocess.run([str(python), "-c", "import torch"], capture_output=True, env=without)
    assert missing.returncode == 1
    script = str(tmp_path / "venv" / "bin" / "eat-report")
    for hardware in ("published", "fused_45nm"):
        arguments = [script, str(sweep), "--output", str(tmp_path / hardware), "--hardware", hardware]
        done = subprocess.run(arguments, capture_output=True, text=True, env=without, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert written(tmp_path / hardware) == FILES
