"""`python -m flashkat_lite doctor` says what this machine can do; `… bench` measures the ladder on a GPU."""

import argparse
import sys
from pathlib import Path

from . import bench, console, doctor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flashkat_lite", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("doctor", help="what this machine can run, and what to do about what it cannot")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--optional", action="store_true", help="only what is missing of what `make test` can do without"
    )
    command = commands.add_parser("bench", help="measure every kernel against the limits; needs a GPU, 3 minutes")
    command.add_argument("--out", type=Path, metavar="FILE", help="default: _build/records/<gpu>/ladder.json")
    command.add_argument("--quick", action="store_true", help="D = 768 in float32, without torch.compile: 20 seconds")
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return doctor.doctor(options.json, options.optional)
    return bench.bench(options.out, options.quick)


if __name__ == "__main__":
    console.prepare()
    sys.exit(main())
