"""Prepare data: python -m regscale.prepare COMMAND ...

A command is a public module of this package with `add_arguments(parser)` and `run(options)`.
"""

import argparse
import pkgutil
from importlib import import_module

from regscale import prepare
from regscale.config.slots import nearest
from regscale.errors import RegscaleError
from regscale.log import run_command


def commands() -> list[str]:
    """The names of the commands."""
    names = [module.name for module in pkgutil.iter_modules(prepare.__path__)]
    return sorted(name for name in names if not name.startswith("_"))


def main(arguments: list[str]) -> None:
    """Only the module of the command that is asked for is imported."""
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        raise RegscaleError(
            "python -m regscale.prepare",
            "needs a command",
            found="none",
            fix=f"One of: {', '.join(spoken(name) for name in known)}. Each explains --help.",
        )
    name = arguments[0].replace("-", "_")
    if name not in known:
        raise RegscaleError(
            "python -m regscale.prepare",
            "has no such command",
            found=repr(arguments[0]),
            fix=nearest(arguments[0], [spoken(each) for each in known]),
        )
    module = import_module(f"{prepare.__name__}.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m regscale.prepare {spoken(name)}", description=module.__doc__
    )
    module.add_arguments(parser)
    module.run(parser.parse_intermixed_args(arguments[1:]))


def spoken(name: str) -> str:
    """A command as it is typed."""
    return name.replace("_", "-")


if __name__ == "__main__":
    run_command(main)
