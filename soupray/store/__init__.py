"""The object store: the paths of its objects, and how objects are written and read."""
