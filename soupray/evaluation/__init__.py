"""Scores of candidates: the only code that puts averaged weights into a model."""
