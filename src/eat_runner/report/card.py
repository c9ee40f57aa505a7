"""A model card: what a network is, what it costs, how it was made and how it is loaded, in Markdown."""

from collections.abc import Iterable, Mapping

import yaml

from eat_runner.records import RunRecord

USE = """\
```python
import eat_runner
import torch

run = eat_runner.load_run(".")  # this folder
images = torch.zeros(1, {channels}, {size}, {size}, dtype=torch.uint8)  # NCHW, 0 to 255
with torch.no_grad():
    answers = run.model(run.preprocessing(images)).argmax(1)
print([run.class_names[answer] for answer in answers])
```"""

LIMITS = """\
The energies are estimates: exact counts of what the network moves and multiplies, times a price list, of the test
images. They are lower bounds (every tensor is read once, nothing leaks or stalls) and no measurement of a chip. Where
channels were left out at the export, the network costs no more than they say."""


MADE = "By `eat-run` with what follows, and the defaults for the rest. The run id ends in a hash of it."


def model_card(record: RunRecord, energy_uj: Mapping[str, float]) -> str:
    """The card of a folder that ``eat-export --safetensors`` wrote, with the front matter that model hubs read.

    energy_uj: by hardware, of a test image.
    """
    config, prepared = record.config, record.preprocessing
    network = config["model"]["arch"] or config["model"]["name"]
    dataset, changed = config["dataset"]["name"], list(dict.fromkeys(str(each["method"]) for each in record.changes))
    front = {
        "library_name": "eat-runner",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "energy-efficient", "eat-runner", network, *changed],
        "datasets": [dataset],
        "metrics": ["accuracy"],
        "model-index": [_entry(record, dataset)],
    }
    size, channels = prepared["image_size"], prepared["channels"]
    classes = ", ".join(f"`{name}`" for name in prepared["class_names"])
    energies = [(name, f"{energy:.4g}") for name, energy in energy_uj.items()]
    accuracies = [
        (split, f"{100 * a:.2f}") for split in ("validation", "test") if (a := record.accuracy[split]) is not None
    ]
    methods = f", changed by {', '.join(changed)}" if changed else ""
    commit = record.git_commit or "unknown"
    versions = [f"{name} {version}" for name, version in record.versions.items() if version]
    return (
        "\n\n".join(
            [
                f"---\n{_yaml(front)}---",
                f"# {record.run_id}",
                f"A {network} with {record.parameters:,} parameters, trained on {dataset} with eat-runner{methods}. "
                f"It takes images of {channels}x{size}x{size}; classes: {classes}.",
                f"## Accuracy\n\n{_table(('split', 'accuracy %'), accuracies)}",
                f"## Energy\n\n{_table(('hardware', 'uJ per image'), energies)}\n\n{LIMITS}",
                f"## Use\n\n{USE.format(channels=channels, size=size)}",
                f"## How it was made\n\n{MADE}",
                f"Versions: {', '.join(versions)}; commit {commit}; data {record.data_fingerprint}.",
                f"```yaml\n{_yaml(record.determinants)}```",
            ]
        )
        + "\n"
    )


def _entry(record: RunRecord, dataset: str) -> dict[str, object]:
    metrics = [{"type": "accuracy", "value": record.accuracy["test"], "name": "test accuracy"}]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": dataset, "type": dataset},
        "metrics": metrics,
    }
    return {"name": record.run_id, "results": [result]}


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"| {left} | {right} |" for left, right in [head, ("---", "---:"), *rows])


def _yaml(values: Mapping[str, object]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
