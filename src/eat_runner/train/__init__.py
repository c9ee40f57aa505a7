"""Training: one step (step.py), epochs and state (loop.py), lambda and learning rate as functions of the step
(schedules.py), looking at a network (evaluate.py), checkpoints (checkpoint.py)."""
