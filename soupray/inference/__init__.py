"""Use the model of a leaderboard entry."""
