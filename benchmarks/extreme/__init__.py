"""What ``benchmarks/training.py`` measures: problems, competitors and one process for each run."""
