"""Arguments of a published file as JSON values and back, tuples told from lists."""

import logging
from typing import Any

log = logging.getLogger(__name__)
TUPLE = "()"


def plain(value: Any, name: str) -> Any:
    """JSON values. What is none (a dtype, a tensor) becomes its text, and the log says so."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {TUPLE: [plain(item, name) for item in value]}
    if isinstance(value, list):
        return [plain(item, name) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    log.warning("%s is kept as text: %s", name, value)
    return str(value)


def revived(value: Any) -> Any:
    """The values that `plain` was given."""
    if isinstance(value, list):
        return [revived(item) for item in value]
    if isinstance(value, dict):
        if list(value) == [TUPLE]:
            return tuple(revived(item) for item in value[TUPLE])
        return {key: revived(item) for key, item in value.items()}
    return value
