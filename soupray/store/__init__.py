"""The object store: what lies where, and how it is written and read."""
