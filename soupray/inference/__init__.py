"""A leaderboard entry as a model to be used."""
