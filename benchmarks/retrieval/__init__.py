"""Heads, indexes and measurements of the serving benchmark."""
