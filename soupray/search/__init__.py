"""Which trials a sweep has: the plan, adaptive search, and how far the sweep is."""
