"""Data: the splits of a sweep, from the files of a data set to arrays."""

DATA_VERSION = "2"
"""Version of the code that decodes and shifts. It is part of the cache's name, and of the key of a
basis. It is here because `soupray status` needs it, and has no time to import torch."""
