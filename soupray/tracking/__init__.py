"""The experiment tracker: an index of what the store holds."""
