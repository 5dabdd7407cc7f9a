"""Run `python -m soupray.soup SPEC`, the command of a Ray job."""

import sys

from soupray.cli import main

main(["soup", *sys.argv[1:]])
