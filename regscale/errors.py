"""One exception for everything that a user can put right."""


class RegscaleError(Exception):
    """A user's fault, in four parts: where it is, what is wrong, what was found, and the fix.

    Commands print it without a traceback and exit with status 2.
    """

    def __init__(self, where: object, what: str, *, found: object, fix: str) -> None:
        self.where, self.what, self.found, self.fix = str(where), what, str(found), fix
        super().__init__(f"{self.where}: {what}; found {self.found}. {fix}")
