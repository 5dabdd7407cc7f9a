"""Measure how the models of a sweep differ, and what averaging their weights or outputs gives."""
