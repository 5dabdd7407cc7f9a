"""One trial, from theta_0 to an ingredient."""
