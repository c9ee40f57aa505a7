"""A search over both objectives: what may be chosen (space.py), the study that any number of processes share
(study.py), when a trial is ended early (stopping.py), and what came out (outcome.py). Needs optuna, and no torch."""
