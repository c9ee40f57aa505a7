"""The text of ``eat-run --help``."""

from textwrap import wrap

from eat_runner.config.groups import DEFAULT, GROUPS
from eat_runner.config.method import NONE
from eat_runner.config.paths import conf_dir
from eat_runner.config.root import default_methods, default_others

WIDTH = 120
# groups whose files set values of all the others
COMBINATIONS = {"recipe": "what is done to lower energy, by name", "experiment": "all of these together"}

TEXT = """\
Trains image classifiers with an energy penalty and shows what accuracy costs in inference energy.

  eat-run                                       one run on the embedded digits, lambda=1
  eat-run dataset=cifar10 lambda=1e-3           another data set, another weight of the penalty
  eat-run -m lambda=0,0.5,1 seed=0,1            a sweep of six runs, then table, Pareto front and plots
  eat-run -m experiment=demo plan=true          what would run, what is done, how long it takes
  eat-run -m hydra/launcher=joblib lambda=0,1   several runs at once (extra: joblib; on a cluster: slurm)

Groups (group=choice):
{groups}

Keys (key=value; all of them: eat-run --cfg job; explained in conf/config.yaml):
  lambda seed init name results_dir data_dir download device threads selection on_error plan
  and each group's, such as model.width=16 trainer.epochs=5 penalty.sigma=1e-3 meter.batch_size=100

Flags:
  -m, --multirun       sweep over key=a,b,c       -c, --cfg job    show the configuration and do nothing
  -h, --help           this text                  --hydra-help     Hydra's own options

Shell completion of all commands: eval "$(eat-run -sc install=bash)"   (or zsh, fish)
Exit codes: 0 done, 1 a run failed, 2 bad input, 75 stopped: the same command continues
"""


def choices(group: str) -> list[str]:
    """What can be chosen: the names of a group's YAML files, and what needs none: ``none`` of a method, ``default`` of
    another group without a place in config.yaml."""
    unwritten = {NONE} if group in default_methods() else {DEFAULT} if group in default_others() else set[str]()
    return sorted(unwritten | {path.stem for path in (conf_dir() / group).glob("*.yaml")})


def in_folders(group: str) -> list[str]:
    """Combinations that lie in a folder of their kind, such as methods/gtsrb."""
    folder = conf_dir() / group
    files = sorted(folder.glob("*/*.yaml")) if group in COMBINATIONS else []
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def help_text() -> str:
    """The whole text. Hydra's own help would compose a configuration and scan for plugins first."""
    abouts = {name: group.about for name, group in GROUPS.items()} | COMBINATIONS
    names = {group: [*choices(group), *in_folders(group)] for group in abouts}
    lines = [f"  {group:11} {about}: {', '.join(names[group])}" for group, about in abouts.items() if names[group]]
    lines = [wrapped for line in lines for wrapped in wrap(line, WIDTH, subsequent_indent=" " * 14)]
    return TEXT.format(groups="\n".join(lines))
