"""`python -m soupray.sweep SPEC`, as a Ray job calls it."""

import sys

from soupray.cli import main

main(["sweep", *sys.argv[1:]])
