"""A run: where it belongs (locate.py), its parts (build.py), its stages (stages.py), in one process of several
(execute.py), its record (record.py) and checkpoint (resume.py); what would be run (plan.py); and a finished run as
something to use (load.py)."""

from eat_runner.run.build import Experiment, build, build_or_error, import_optimizers, locate_and_build, prepare
from eat_runner.run.execute import run
from eat_runner.run.locate import Job, locate, located_points, settled
from eat_runner.run.plan import PlannedRun, plan
from eat_runner.run.stages import Interrupted

__all__ = [
    "Experiment",
    "Interrupted",
    "Job",
    "PlannedRun",
    "build",
    "build_or_error",
    "import_optimizers",
    "locate",
    "locate_and_build",
    "located_points",
    "plan",
    "prepare",
    "run",
    "settled",
]
