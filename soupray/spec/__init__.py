"""The spec: the YAML file that a sweep is written in, read and checked."""
