"""How long `import soupray` and `soupray --help` take, as whole processes.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import soupray": ["-c", "import soupray"],
    "soupray --help": ["-m", "soupray", "--help"],
    "soupray sweep MISSING.yaml": ["-m", "soupray", "sweep", "MISSING.yaml"],
}
RUNS = 11


def main() -> None:
    """Median and range in milliseconds; the commands take turns."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
            taken[name].append(1000 * (time.perf_counter() - started))
    for name, ms in taken.items():
        print(f"{name:<28} {statistics.median(ms):6.0f} ms  ({min(ms):.0f} to {max(ms):.0f})")


if __name__ == "__main__":
    main()
