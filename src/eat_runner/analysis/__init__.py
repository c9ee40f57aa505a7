"""Runs on disk -> one table, its families, their fronts. Works from files alone: no torch."""
