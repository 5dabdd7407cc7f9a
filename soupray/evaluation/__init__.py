"""Scores of candidates. No other package puts averaged weights into a model."""
