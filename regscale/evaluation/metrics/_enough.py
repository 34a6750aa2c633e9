"""The refusal of sets that are too small for a metric."""

from regscale.errors import RegscaleError


def at_least(needed: int, *counts: int, metric: str) -> None:
    """Raises unless every set has as many samples."""
    if min(counts) < needed:
        raise RegscaleError(
            metric,
            f"needs {needed} samples in each set",
            found=" and ".join(map(str, counts)),
            fix="Make more pictures; published figures are of 50,000.",
        )
