"""The benchmark: what training with the penalty, metering, the data path and the commands cost."""
