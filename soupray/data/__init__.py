"""Data: the splits of a sweep, from the files of a data set to arrays."""
