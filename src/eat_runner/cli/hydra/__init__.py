"""What belongs to Hydra alone; nothing below cli/ knows it."""
