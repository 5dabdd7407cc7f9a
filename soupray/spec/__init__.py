"""The spec: read and check the YAML file that describes a sweep."""
