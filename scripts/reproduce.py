"""``make reproduce-paper``: the paper's Table 1 and Figures 1 to 3 (arXiv 2307.00368), ours beside the paper's.

Runs what is missing of conf/experiment/paper/*.yaml at a scale, then writes tables and figures from what lies on disk.
Several processes may run the same command: each run is done by one of them. Stopped at any point, the same command goes
on. Exit codes: 0 all is there; 1 a data set is missing or a run failed; 2 bad input; 75 stopped, or another process
still has runs: the same command continues.
"""

from collections.abc import Sequence

from eat_runner.cli.stoppable import run_stoppable

PROGRAM = "reproduce-paper"


def command(arguments: Sequence[str]) -> int:
    from reproduction.command import command

    return command(arguments, description=__doc__)


if __name__ == "__main__":
    run_stoppable(PROGRAM, command, unfinished=lambda: "not all is done")
