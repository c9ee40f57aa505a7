"""``make reproduce-paper``: the paper's Table 1 and Figures 1 to 3 (arXiv 2307.00368), ours beside the paper's.

Runs what is missing of conf/experiment/paper/*.yaml at a scale, then writes tables and figures from what lies on disk.
Several processes may run the same command: each run is done by one of them. Stopped at any point, the same command goes
on. Exit codes: 0 all is there; 1 a data set is missing or a run failed; 2 bad input; 75 stopped, or another process
still has runs: the same command continues.
"""

import signal
import sys
from types import FrameType

PROGRAM = "reproduce-paper"
CONTINUE_ME = 75


def main() -> None:
    stops: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        # imported here: it takes seconds, in which a signal can come, too
        from eat_runner.cli.errors import one_line_errors
        from reproduction.command import command

        with one_line_errors(PROGRAM, stops):
            code = command(sys.argv[1:], description=__doc__)
    except SystemExit as end:
        code = CONTINUE_ME if stops else end.code
    except (KeyboardInterrupt, Exception):
        # libraries that are stopped while they are imported turn the interrupt into errors of their own
        if not stops:
            raise
        code = CONTINUE_ME
    if code == CONTINUE_ME:
        print(f"{PROGRAM}: not all is done: the same command continues", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
