"""Searches how an output layer may be approximated so that a promised recall is kept."""
