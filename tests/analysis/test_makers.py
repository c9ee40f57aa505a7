"""What made a set of runs."""

from eat_runner.analysis.makers import in_words, makers
from eat_runner.records import RunFolder, RunRecord


def write(folder, commit, seconds):
    folder.mkdir()
    record = RunRecord(run_id=folder.name, status="finished", git_commit=commit, threads=2)
    record.versions, record.machine = {"python": "3.11", "absent": None}, {"processor": "a processor"}
    record.timings = {"training_s": seconds, "evaluation_s": None}
    RunFolder(folder).write_record(record)
    return RunFolder(folder)


def test_runs_of_the_same_commit_count_together_and_damaged_ones_do_not(tmp_path):
    runs = [
        write(tmp_path / name, commit, s)
        for name, commit, s in (("a", "x", 1800.0), ("b", "x", 1800.0), ("c", "y", 5.0))
    ]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "record.json").write_text("{")
    found = makers([*runs, RunFolder(tmp_path / "damaged"), RunFolder(tmp_path / "missing")])
    assert [(maker["git_commit"], maker["runs"], maker["training_s"]) for maker in found] == [
        ("x", 2, 3600.0),
        ("y", 1, 5.0),
    ]
    said = "2 runs, 1.00 hours of training on a processor, 2 threads a run; commit x; python 3.11"
    assert in_words(found[0]) == said
    on_gpu = found[0] | {"machine": {"accelerator": "a GPU"}}
    assert " on a GPU; commit x" in in_words(on_gpu)
