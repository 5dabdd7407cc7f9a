"""Job 2, the soup: choose with recipes on held-out data, then report on test data once."""
