"""Parts of ``scripts/reproduce.py``: what is run (cells), the command, and tables and figures from what lies on disk.
Only the command needs torch."""
