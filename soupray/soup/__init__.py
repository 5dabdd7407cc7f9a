"""Job 2, the soup: recipes over a pool, chosen on held-out data, then reported once."""
