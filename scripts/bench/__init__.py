"""The benchmark: what training with the penalty, metering, the data path and the commands cost.

``PYTHONPATH=scripts python -m bench`` (``make bench``) runs every section, prints goal and figure side by side and
writes a CSV a section. Everything that ours is compared with is written in baselines.py, for this benchmark alone.
"""
