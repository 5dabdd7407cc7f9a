"""Job 1, the sweep: the plan, trained on Ray Tune, every trial into the store."""
