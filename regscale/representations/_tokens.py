"""Which states of a vision transformer are the target's token, K of them.

B batch, N patches, R width.
"""

from typing import Literal

from torch import Tensor

from regscale.config import Invalid
from regscale.types import Features

# class: the model's own global token. mean: of its patches. registers: the class token and the
# registers behind it (arXiv 2309.16588), K = 1 + registers.
Token = Literal["class", "mean", "registers"]
RECIPES = {
    "class": [],  # as identities were before there was a choice
    "mean": ["token: mean of patches"],
    "registers": ["token: class token and registers"],
}


def num_tokens_of(token: Token, *, registers: int, has_patches: bool) -> int:
    """K, or what the model lacks for it."""
    if token == "mean" and not has_patches:
        raise Invalid("token", "is class: the model gives no patches", found=token, fix="Drop it.")
    if token == "registers" and not registers:
        raise Invalid(
            "token",
            "is class or mean: the model has no registers",
            found=token,
            fix="Choose one that has, such as facebook/dinov2-with-registers-base.",
        )
    return 1 + registers if token == "registers" else 1


def features_of(token: Token, heads: Tensor, patches: Tensor | None) -> Features:
    """Of the states before the patches (B, 1 + registers, R), and the patches (B, N, R)."""
    if token == "mean":
        assert patches is not None, "num_tokens_of refuses this"
        return Features(patches.mean(1, keepdim=True), patches)
    return Features(heads if token == "registers" else heads[:, :1], patches)
