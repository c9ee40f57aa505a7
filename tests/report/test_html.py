"""report.html as a file: complete in itself, data that stay data, prices as the tables have them, and its limits."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from eat_runner.analysis.details import read_details
from eat_runner.analysis.table import collate
from eat_runner.config.hardware import FusedHardware
from eat_runner.energy.hardware import builtin_hardware, load_hardware
from eat_runner.records import RunFolder
from eat_runner.report import html, write_report
from pages import written
from run_folders import config, write_run, write_sweep

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \"><img src=x onerror=alert(2)> ' &amp; {{data}}"


class Blocks(HTMLParser):
    """The script and style blocks of a page, its policy, and the names of all elements and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self.names: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names += [tag, *values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag in ("script", "style"):
            self.blocks.append((values.get("type") or tag, ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            kind, text = self.blocks[-1]
            self.blocks[-1] = kind, text + data


def shown(path: Path) -> dict[str, Any]:
    return json.loads(dict(Blocks(path.read_text()).blocks)["application/json"])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of lambda 0, 1 and 3, a narrower network, and one that needs more and is worse: eight runs."""
    folder = tmp_path_factory.mktemp("results") / "demo"
    write_sweep(folder, (0, 1, 3), (0, 1))
    write_run(folder, config(0.0, width=8))
    write_run(folder, config(0.5), accuracy={"train": 0.9, "validation": 0.9, "test": 0.9})
    return folder


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sweep, tmp_path_factory.mktemp("out"))


def test_it_asks_no_network_and_its_policy_allows_what_stands_in_it_alone(page: Path) -> None:
    parsed = Blocks(page.read_text())
    assert not {"link", "img", "iframe", "form", "src", "href", "onclick", "onload"} & set(parsed.names)
    assert [kind for kind, _ in parsed.blocks] == ["style", "application/json", "script"]
    policy = dict(part.strip().split(" ", 1) for part in parsed.policy.split(";"))
    assert policy["default-src"] == "'none'"
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(dict(parsed.blocks)[kind].encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"


def test_other_hardware_costs_on_the_page_what_its_own_report_says(sweep: Path, page: Path) -> None:
    data = shown(page)
    names = [hardware["name"] for hardware in data["hardware"]]
    assert names[0] == "fused_45nm"
    assert sorted(names) == builtin_hardware()
    for name, prices in zip(names, data["prices"], strict=True):
        runs = collate(sweep, load_hardware(name), "dataset").set_index("run_id").loc[data["runs"]["id"]]
        assert prices["energy"] == pytest.approx(runs["energy"].tolist(), rel=1e-4)
        assert prices["ratio"] == pytest.approx(runs["energy_ratio"].tolist(), rel=1e-4)
        assert prices["validation"] == pytest.approx(runs["energy_validation"].tolist(), rel=1e-4)


def test_parts_and_drams_part_add_up(page: Path) -> None:
    data = shown(page)
    assert len(data["details"]) == 8
    for run, detail in data["details"].items():
        for number, prices in enumerate(detail["prices"]):
            parts = sum(sum(layer) for layer in prices["parts"])
            if data["hardware"][number]["name"] != "published":  # there the ratios of batches are averaged
                assert parts / 1e6 == pytest.approx(data["prices"][number]["energy"][int(run)], rel=1e-3)
            assert 0 < prices["dram"] < parts
            assert len(prices["parts"]) == len(prices["firing"]) == len(data["layers"][prices["names"]])


def test_drams_part_is_what_twice_its_price_adds(sweep: Path) -> None:
    hardware = load_hardware("fused_45nm")
    assert isinstance(hardware, FusedHardware)
    dearer = replace(hardware, dram_pj_per_bit=2 * hardware.dram_pj_per_bit)
    once, twice = read_details(RunFolder(next(sweep.glob("*lambda1-*"))), [hardware, dearer]).prices
    assert once is not None
    assert twice is not None
    added = sum(layer.energy_pj for layer in twice.layers) - sum(layer.energy_pj for layer in once.layers)
    assert once.dram_pj == pytest.approx(added)


def test_settings_carry_the_parameters_in_which_they_differ(page: Path) -> None:
    data = shown(page)
    values = {
        setting["name"]: dict(zip(data["parameters"], setting["values"], strict=True)) for setting in data["settings"]
    }
    assert {"width", "lambda", "method"} <= set(data["parameters"])
    assert not {"dataset", "model", "seed"} & set(data["parameters"])
    assert values["resnet18, width 16, EAT, λ 3"]["lambda"] == 3
    assert values["resnet18, width 8, standard training"]["width"] == 8
    assert [s["name"] for s in data["settings"] if s["reference"]] == ["resnet18, width 16, standard training"]
    assert data["runs"]["folder"][0].startswith("../")
    assert data["name"] == "demo"


def test_a_hostile_run_stays_data(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    write_sweep(folder, (0, 1), (0,))
    hostile = write_run(folder, config(2.0), git_commit=HOSTILE, versions={HOSTILE: HOSTILE})
    record = hostile.read_record()
    record.config["schedule"]["name"] = record.config["penalty"]["scope"] = HOSTILE
    record.run_id = HOSTILE
    record.status = "finished"
    hostile.write_record(record)
    path = written(folder, tmp_path / "out")
    text = path.read_text()
    assert [kind for kind, _ in Blocks(text).blocks] == ["style", "application/json", "script"]
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert "<img" not in text
    data = shown(path)
    printed = HOSTILE.replace("\u2028", "?")
    assert printed in data["runs"]["id"]
    assert any(printed in map(str, setting["values"]) for setting in data["settings"])


def test_with_more_runs_than_are_read_there_is_no_other_hardware(sweep: Path, tmp_path: Path) -> None:
    data = shown(written(sweep, tmp_path, most_read=3))
    assert [hardware["name"] for hardware in data["hardware"]] == ["fused_45nm"]
    assert len(data["runs"]["id"]) == 8
    assert sorted(data["details"]) == ["0", "1", "2"]
    assert "layers and curves of 3 of 8 runs are on this page, those on a front first" in data["missing"]


def test_layers_and_curves_end_at_their_limit(
    sweep: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = len(json.dumps(shown(page)["details"]["0"], separators=(",", ":")))
    monkeypatch.setattr(html.data, "MOST_DETAILS_BYTES", one + 100)
    assert list(shown(written(sweep, tmp_path))["details"]) == ["0"]


def test_a_page_of_many_runs_has_those_of_the_front_first(
    sweep: Path, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shown(page)
    beaten = "resnet18, width 16, EAT, λ 0.5"  # the only one that others beat
    assert [setting["name"] for setting in whole["settings"]][-1] == beaten
    monkeypatch.setattr(html.data, "MOST_RUNS", 4)
    data = shown(written(sweep, tmp_path))
    assert data["runs"]["id"] == whole["runs"]["id"][:3]  # the fourth is one of two seeds, which stay together
    assert "5 of 8 runs are not on this page: those on no front" in data["missing"]


def test_a_report_writes_it_where_that_is_asked_for_or_keeps_it_up_to_date(tmp_path: Path) -> None:
    path, hardware = tmp_path / html.PAGE, load_hardware("published")
    folder = write_run(tmp_path, config(1.0), blocks=1)
    write_report(tmp_path, hardware)
    assert not path.exists()
    path.write_text("stale")
    assert path in write_report(tmp_path, hardware).paths
    data = shown(path)
    assert (data["name"], data["x"]) == (tmp_path.name, "ratio")
    folder.record.unlink()
    assert path not in write_report(tmp_path, hardware).paths
    assert not path.exists()  # no run has a point


def test_the_same_runs_give_the_same_bytes(sweep: Path, page: Path, tmp_path: Path) -> None:
    folders = re.compile(r'"folder":\[[^]]*\]')
    assert folders.sub("", written(sweep, tmp_path).read_text()) == folders.sub("", page.read_text())
