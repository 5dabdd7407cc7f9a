"""The training of a trial, from theta_0 to an ingredient."""
