"""Quadratic linear layers as one operator: several matrix products of one input, combined."""
