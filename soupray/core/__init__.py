"""Records, candidates, requests, ports and errors. Imports no other package of soupray."""
