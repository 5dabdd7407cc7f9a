"""Commands beside sweeps and soups: status, checks, estimates, imports and cleaning up."""
