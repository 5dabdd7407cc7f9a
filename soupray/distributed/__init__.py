"""The only code that imports Ray."""
