"""One exception for everything that a user can put right."""

from typing import Any


class RegscaleError(Exception):
    """A user's fault, in four parts: where it is, what is wrong, what was found, and the fix.

    Commands print it without a traceback and exit with status 2.
    """

    def __init__(self, where: object, what: str, *, found: object, fix: str) -> None:
        self.where, self.what, self.found, self.fix = str(where), what, str(found), fix
        super().__init__(f"{self.where}: {what}; found {self.found}. {fix}")

    def __reduce__(self) -> tuple[Any, ...]:
        """An error of another process keeps its four parts."""
        return _rebuilt, (type(self), self.where, self.what, self.found, self.fix)


def _rebuilt(
    kind: type[RegscaleError], where: str, what: str, found: str, fix: str
) -> RegscaleError:
    return kind(where, what, found=found, fix=fix)
