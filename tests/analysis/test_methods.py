"""Which line of a front a run belongs to, by what its record says, and what it is called on that line."""

from pathlib import Path
from typing import Any

from eat_runner.analysis.families import full_names, line_names, point_names, settings
from eat_runner.analysis.methods import method_name
from eat_runner.analysis.pareto import fronts
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import FusedHardware, PublishedHardware
from eat_runner.config.identity import Start
from eat_runner.config.penalty import L0Config, PenaltyConfig
from eat_runner.config.pruning import PruningConfig
from eat_runner.config.trainer import TrainerConfig
from frames import run, table
from run_folders import config, write_run

PUBLISHED = PublishedHardware()
CHIP = FusedHardware(name="my_chip", dram_pj_per_bit=20.0, buffer_pj_per_bit=1.0, multiply_pj=3.0, accumulate_pj=1.0)


def pruned(name: str = "magnitude", lambda_: float = 0.0, seed: int = 0, **changes: Any) -> Any:
    return config(lambda_, seed, methods={"pruning": PruningConfig(name=name, density=0.1)}, **changes)


def methods(folder: Path) -> list[str]:
    return sorted(collate(folder, PUBLISHED, "dataset")["method"])


def test_a_method_is_named_by_what_changes_the_network(tmp_path: Path) -> None:
    for chosen in (
        config(0.0),
        config(3.0, seed=1, penalty=PenaltyConfig(name="none")),
        config(1.0),
        config(1.0, penalty=PenaltyConfig(name="l1")),
        config(1.0, penalty=L0Config(weighting="energy")),
        pruned(),
        pruned("energy"),
        pruned("energy", 1.0),
    ):
        write_run(tmp_path, chosen)
    assert methods(tmp_path) == [
        "EAT",
        "energy-weighted l0",
        "l1",
        "pruning=energy",
        "pruning=energy + EAT",
        "pruning=magnitude",
        "standard training",
        "standard training",
    ]


def test_another_structure_is_another_method_and_another_ranking_is_not(tmp_path: Path) -> None:
    for changes in ({}, {"structure": "channel"}, {"ranking": "erk"}, {"channels": 0.5}):
        write_run(tmp_path, config(0.0, methods={"pruning": PruningConfig(name="magnitude", **changes)}))
    behind = "pruning=magnitude behind channels"
    assert methods(tmp_path) == ["pruning=magnitude", "pruning=magnitude", behind, "pruning=magnitude channel"]
    (front,) = fronts(collate(tmp_path, PUBLISHED, "dataset"))
    assert sorted(set(front.settings["line"])) == ["pruning=magnitude", behind, "pruning=magnitude channel"]


def test_budgets_tell_settings_of_a_method_apart(tmp_path: Path) -> None:
    for budget in (0.1, 0.2):
        pruning = {"pruning": PruningConfig(name="energy", density=None)}
        write_run(tmp_path, config(0.0, budget=budget, methods=pruning))
    (front,) = fronts(collate(tmp_path, PUBLISHED, "dataset"))
    assert set(front.settings["line"]) == {"pruning=energy"}
    assert sorted(front.settings["point"]) == ["budget 0.1", "budget 0.2"]
    assert sorted(front.settings["name"]) == ["pruning energy, budget 0.1", "pruning energy, budget 0.2"]


def test_what_was_done_twice_is_named_once() -> None:
    assert method_name(("pruning=energy", "EAT", "pruning=energy")) == "pruning=energy + EAT"
    assert method_name(()) == "standard training"


def child(folder: Path, parent: str, seed: int, **record: Any) -> str:
    """EAT for an epoch on another run's network."""
    chosen = config(1.0, seed, trainer=TrainerConfig(epochs=1))
    return write_run(folder, chosen, start=Start(parent=parent), **record).path.name


def test_children_have_their_parents_methods_and_are_a_setting_over_their_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, config(0.0, seed))
        parent = write_run(tmp_path, pruned("energy", 0.5, seed)).path.name
        grandchild = child(tmp_path, child(tmp_path, parent, seed), seed)
        assert grandchild != parent
    runs = collate(tmp_path, PUBLISHED, "dataset")
    children = runs[runs["parent"] != ""]
    assert set(children["method"]) == {"pruning=energy + EAT"}
    assert sorted(children.groupby("setting_id").size()) == [2, 2]
    assert set(children["network"]) == {"resnet18, width 16, trainer.epochs=1"}
    (front,) = fronts(runs)
    assert front.settings.at[front.reference, "n"] == 2


def test_without_its_parents_folder_a_record_says_what_methods_did(tmp_path: Path) -> None:
    did = [{"method": "pruning", "choice": "magnitude", "masked": {}}]
    child(tmp_path, "elsewhere", 0, changes=did)
    assert methods(tmp_path) == ["pruning=magnitude + EAT"]
    [network] = collate(tmp_path, PUBLISHED, "dataset")["network"]
    assert network == "resnet18, width 16"


def test_runs_that_are_each_others_parents_end_in_no_circle(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path, config(1.0, seed)) for seed in (0, 1))
    for folder, other in ((first, second), (second, first)):
        record = folder.read_record()
        record.determinants["parent"] = other.path.name
        folder.write_record(record)
    assert methods(tmp_path) == ["EAT", "EAT"]


def test_a_network_trained_further_is_no_reference_beside_one_that_was_not(tmp_path: Path) -> None:
    parent = write_run(tmp_path, config(0.0)).path.name
    better = {"accuracy": {"train": 1.0, "validation": 1.0, "test": 1.0}}
    write_run(tmp_path, config(0.0, trainer=TrainerConfig(epochs=1)), start=Start(parent=parent), **better)
    (front,) = fronts(collate(tmp_path, PUBLISHED, "dataset"))
    assert front.runs_of(str(front.reference))["run_id"].tolist() == [parent]


def test_the_chip_that_a_run_was_trained_for_names_it_rather_than_its_prices(tmp_path: Path) -> None:
    for hardware in (CHIP, PUBLISHED):
        write_run(tmp_path, pruned("energy", hardware=hardware))
        write_run(tmp_path, pruned("magnitude", hardware=hardware))
    runs = collate(tmp_path, PUBLISHED, "dataset")
    assert sorted(runs["trained_for"]) == ["", "my_chip", "published"]
    (front,) = fronts(runs)
    assert sorted(front.settings["name"]) == [
        "pruning energy, for my_chip",
        "pruning energy, for published",
        "pruning magnitude",
    ]
    assert sorted(front.settings["point"]) == ["for my_chip", "for published", "pruning=magnitude"]


def test_lines_and_points_beside_a_reference() -> None:
    wide, narrow = {"width": 16, "network": "resnet18, width 16"}, {"width": 8, "network": "resnet18, width 8"}
    other = {"model": "vgg16", "width": 64, "network": "vgg16"}
    pruning = {"method": "pruning=magnitude", "pruning": "magnitude"}
    density = {"pruning.density": 0.1}
    rows = {
        "st": run(0, 0.9, 1, **wide),
        "narrow": run(0, 0.9, 1, **narrow),
        "vgg": run(0, 0.9, 1, **other),
        "a": run(1, 0.9, 1, **wide),
        "b": run(2, 0.9, 1, **narrow),
        "c": run(1, 0.9, 1, **other),
        "d": run(0, 0.9, 1, **wide, **pruning, **density),
        "e": run(2, 0.9, 1, **wide, **pruning | {"method": "pruning=magnitude + EAT"}, **{"pruning.density": 0.05}),
    }
    found = settings(table(*(row | {"setting_id": name} for name, row in rows.items())))
    found["line"] = line_names(found, "st")
    found["point"] = point_names(found, "st")
    assert dict(zip(found.index, zip(found["line"], found["point"], strict=True), strict=True)) == {
        "st": ("standard training", "width 16"),
        "narrow": ("dense narrow networks", "width 8"),
        "vgg": ("dense vgg16", "width 64"),
        "a": ("EAT", "λ 1"),
        "b": ("EAT", "width 8, λ 2"),
        "c": ("EAT, vgg16", "width 64, λ 1"),
        "d": ("pruning=magnitude", "density 0.1"),
        "e": ("pruning=magnitude + EAT", "λ 2, density 0.05"),
    }


def test_the_full_name_says_the_width_where_widths_differ() -> None:
    rows = {
        "st": run(0, 0.9, 1, width=64),
        "long": run(1, 0.9, 1, width=64, network="resnet18, trainer.epochs=20"),
        "narrow": run(1, 0.9, 1, width=8, network="resnet18, width 8, trainer.epochs=20"),
        "none": run(2, 0.9, 1, width=None, model="mobilenet", network="mobilenet"),
    }
    names = {
        "st": "resnet18, width 64, standard training",
        "long": "resnet18, width 64, trainer.epochs=20, EAT, λ 1",
        "narrow": "resnet18, width 8, trainer.epochs=20, EAT, λ 1",
        "none": "mobilenet, EAT, λ 2",
    }
    assert named(rows) == names
    rows["narrow"] |= {"width": 64, "network": "resnet18, parent=x"}
    assert named(rows) == {name: text.replace(", width 64", "") for name, text in names.items()} | {
        "narrow": "resnet18, parent=x, EAT, λ 1"
    }
    assert named({"st": rows["st"], "eat": run(3, 0.9, 1, width=64)}) == {
        "st": "standard training, width 64",
        "eat": "EAT, λ 3",
    }


def named(rows: dict[str, dict[str, Any]]) -> dict[Any, str]:
    found = settings(table(*(row | {"setting_id": name} for name, row in rows.items())))
    found["line"] = line_names(found, "st")
    found["point"] = point_names(found, "st")
    return full_names(found).to_dict()
