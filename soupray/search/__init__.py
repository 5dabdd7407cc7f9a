"""The trials of a sweep: the plan, adaptive search, and the state of the sweep."""
