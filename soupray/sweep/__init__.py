"""Job 1, the sweep: train the planned trials with Ray Tune and store their results."""
