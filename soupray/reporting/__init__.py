"""Turn records into leaderboards, figures, recipe files and runs of the tracker."""
