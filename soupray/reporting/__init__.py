"""From records to leaderboards, figures and the tracker."""
