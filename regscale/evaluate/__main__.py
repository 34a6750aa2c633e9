"""Evaluate: python -m regscale.evaluate RUN --suite SUITE [key=value ...], or a COMMAND ...

A command is a public module of this package with `add_arguments(parser)` and `run(options)`;
without one of their names, `score` is meant. A run folder of such a name is written as ./compare.
"""

import argparse
import pkgutil
from importlib import import_module

from regscale import evaluate
from regscale.errors import RegscaleError
from regscale.log import run_command


def commands() -> list[str]:
    """The names of the commands."""
    names = [module.name for module in pkgutil.iter_modules(evaluate.__path__)]
    return sorted(name for name in names if not name.startswith("_"))


def main(arguments: list[str]) -> None:
    """Only the module of the command that is asked for is imported."""
    if not arguments:
        raise RegscaleError(
            "python -m regscale.evaluate",
            "needs a run folder, pictures, or a command",
            found="none",
            fix=f"Commands: {', '.join(commands())}. Each explains --help.",
        )
    first = arguments[0]
    name, rest = (first, arguments[1:]) if first in commands() else ("score", arguments)
    module = import_module(f"{evaluate.__name__}.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m regscale.evaluate {name}", description=module.__doc__
    )
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(rest))


if __name__ == "__main__":
    run_command(main)
