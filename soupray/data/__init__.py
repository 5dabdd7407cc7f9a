"""Data: the splits of a sweep, from the files of a data set to arrays."""

DATA_VERSION = "2"
"""Version of the code that decodes and shifts. It is part of the key of a basis.

Increase it when the images of every sweep change. It is here because `soupray status` needs it, and
has no time to import torch.
"""
