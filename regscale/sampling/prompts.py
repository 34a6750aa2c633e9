"""Files of prompts: what a large job draws, each with a seed of its own."""

import json
from collections.abc import Iterator
from pathlib import Path

from regscale.errors import RegscaleError
from regscale.sampling.many import Wanted

FIX = 'Give a JSON object a line, as {"prompt": "a red circle", "seed": 0}, or a .txt of prompts.'


def read_prompts(path: Path, *, seed: int = 0) -> list[Wanted]:
    """Of a .txt a prompt a line; else a JSON object a line: `prompt`, and perhaps a `seed`.

    Empty lines are left out. Without a seed of its own prompt i has `seed` + i. Line feeds alone
    end a line: captions of the web hold other separators, such as U+2028.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _unfit(path, "cannot be read as prompts", reason) from error
    written = ((number, line.strip()) for number, line in enumerate(lines, 1) if line.strip())
    if path.suffix == ".txt":
        found = [Wanted(line, seed + i) for i, (_, line) in enumerate(written)]
    else:
        found = list(_of_json(path, written, seed))
    if not found:
        raise _unfit(path, "holds no prompt", f"{path.stat().st_size} bytes, no line with text")
    return found


def _of_json(path: Path, written: Iterator[tuple[int, str]], seed: int) -> Iterator[Wanted]:
    for i, (number, line) in enumerate(written):
        where = f"{path}: line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise _unfit(where, "is not JSON", repr(line[:60])) from error
        if not isinstance(values, dict) or not isinstance(values.get("prompt"), str):
            has = ", ".join(values) if isinstance(values, dict) else type(values).__name__
            raise _unfit(where, "has no text under 'prompt'", has or "no key")
        own = values.get("seed", seed + i)
        if type(own) is not int:
            raise _unfit(where, "has a seed that is no whole number", repr(own))
        yield Wanted(values["prompt"], own)


def _unfit(where: object, what: str, found: object) -> RegscaleError:
    return RegscaleError(where, what, found=found, fix=FIX)
