"""Run `python -m soupray.sweep SPEC`, the command of a Ray job."""

import sys

from soupray.cli import main

main(["sweep", *sys.argv[1:]])
