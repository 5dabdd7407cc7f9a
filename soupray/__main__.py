"""`python -m soupray`."""

from soupray.cli import main

main()
