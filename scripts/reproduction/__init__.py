"""Parts of ``scripts/reproduce.py``: what is run (cells), and tables and figures from what lies on disk. No torch."""
