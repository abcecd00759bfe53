"""`python -m flashkat_lite doctor` says what this machine can do; `… bench` measures on a GPU, `… xray` needs none."""

import argparse
import sys
from pathlib import Path

from . import _xray_command, bench, console, doctor, records


def main(arguments: list[str] | None = None) -> int:
    """Run `doctor`, `bench` or `xray` as a command line asks; return the exit status."""
    in_clone = records.in_clone()
    parser = argparse.ArgumentParser(prog=console.COMMAND, description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("doctor", help="what this machine can run, and what to do about what it cannot")
    command.add_argument("--json", action="store_true", help="print JSON")
    only = "only what is missing of what `make test` can do without"
    command.add_argument("--optional", action="store_true", help=only if in_clone else argparse.SUPPRESS)
    command = commands.add_parser("bench", help="measure every kernel against the limits; needs a GPU, 3 minutes")
    default = "default: _build/records/<gpu>/ladder.json" if in_clone else "where to write the record"
    command.add_argument("--out", type=Path, metavar="FILE", help=default)
    command.add_argument("--quick", action="store_true", help="D = 768 in float32, without torch.compile: 20 seconds")
    _xray_command.add_arguments(commands.add_parser("xray", help="forecast a kernel's time on a GPU that is not there"))
    options = parser.parse_args(arguments)
    if options.command == "doctor":
        return doctor.doctor(options.json, options.optional)
    if options.command == "xray":
        return _xray_command.run(options)
    return bench.bench(options.out, options.quick)


if __name__ == "__main__":
    console.prepare()
    sys.exit(main())
