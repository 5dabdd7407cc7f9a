"""The nouns: records, candidates, requests, the ports and the errors. Imports nothing of ours."""
