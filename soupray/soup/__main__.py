"""`python -m soupray.soup SPEC`, as a Ray job calls it."""

import sys

from soupray.cli import main

main(["soup", *sys.argv[1:]])
