"""What ``benchmarks/scaling.py`` measures: the steps of ranks, and one rank of many."""
