"""How the models of a sweep differ, and what averaging makes of it."""
