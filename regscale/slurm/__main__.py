"""Slurm: python -m regscale.slurm task | after | status | preflight ...

A command is a public module of this package with `add_arguments(parser)` and `run(options)`, which
returns the exit status; `task` takes its arguments as they are.
"""

import argparse
import sys
from importlib import import_module

from regscale.errors import RegscaleError
from regscale.log import run_command

COMMANDS = ("task", "after", "status", "preflight")


def main(arguments: list[str]) -> None:
    """Only the module of the command that is asked for is imported."""
    if not arguments or arguments[0] not in COMMANDS:
        raise RegscaleError(
            "python -m regscale.slurm",
            f"needs one of {', '.join(COMMANDS)}",
            found=repr(arguments[0]) if arguments else "nothing",
            fix="Where is my run? python -m regscale.slurm status runs/NAME",
        )
    name, rest = arguments[0], arguments[1:]
    module = import_module(f"regscale.slurm.{name}")
    if name == "task":
        sys.exit(module.run(rest))
    parser = argparse.ArgumentParser(
        prog=f"python -m regscale.slurm {name}", description=module.__doc__
    )
    module.add_arguments(parser)
    sys.exit(module.run(parser.parse_args(rest)))


if __name__ == "__main__":
    run_command(main)
