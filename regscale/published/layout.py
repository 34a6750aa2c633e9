"""The parameters of a published model: names, shapes and their order, which optimizers count by.

D hidden size, C channels, p patch size, R width of a target.
"""

from collections.abc import Iterator
from dataclasses import dataclass

Shape = tuple[int, ...]
TIME_FEATURES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """All that weights tell of a model. The number of heads and the depth of alignment they do
    not tell."""

    depth: int
    hidden_size: int
    patch_size: int
    channels: int
    mlp_hidden: int
    num_labels: int  # rows of the label table, "no class" included
    latent_side: int | None  # None where the file has no table of places
    head_width: int | None = None  # known with normalised queries and keys
    token_width: int | None = None  # of the entangled class token; None without one
    projectors: tuple[tuple[int, int], ...] = ()  # (hidden, out) of each
    doubled: bool = False  # the final layer of official SiT: velocity and an unused half

    @property
    def num_places(self) -> int | None:
        """Rows of the table of places: the token and the patches."""
        if self.latent_side is None:
            return None
        return (self.latent_side // self.patch_size) ** 2 + (self.token_width is not None)


def shapes(model: Architecture) -> dict[str, Shape]:
    """Every name and shape, in the order of the published module."""
    return dict(_shapes(model))


def _shapes(model: Architecture) -> Iterator[tuple[str, Shape]]:
    D, p, R = model.hidden_size, model.patch_size, model.token_width
    if model.num_places is not None:
        yield "pos_embed", (1, model.num_places, D)
    yield "x_embedder.proj.weight", (D, model.channels, p, p)
    yield "x_embedder.proj.bias", (D,)
    yield from _linear("t_embedder.mlp.0", TIME_FEATURES, D)
    yield from _linear("t_embedder.mlp.2", D, D)
    yield "y_embedder.embedding_table.weight", (model.num_labels, D)
    for number in range(model.depth):
        yield from _block(f"blocks.{number}", model)
    for number, (hidden, out) in enumerate(model.projectors):
        yield from _linear(f"projectors.{number}.0", D, hidden)
        yield from _linear(f"projectors.{number}.2", hidden, hidden)
        yield from _linear(f"projectors.{number}.4", hidden, out)
    yield from _linear("final_layer.linear", D, p * p * model.channels * (1 + model.doubled))
    if R is not None:
        yield from _linear("final_layer.linear_cls", D, R)
    yield from _linear("final_layer.adaLN_modulation.1", D, 2 * D)
    if R is not None:
        yield from _linear("cls_projectors2", R, D)
        yield from _norm("wg_norm", D)


def _block(name: str, model: Architecture) -> Iterator[tuple[str, Shape]]:
    D = model.hidden_size
    yield from _linear(f"{name}.attn.qkv", D, 3 * D)
    if model.head_width is not None:
        yield from _norm(f"{name}.attn.q_norm", model.head_width)
        yield from _norm(f"{name}.attn.k_norm", model.head_width)
    yield from _linear(f"{name}.attn.proj", D, D)
    yield from _linear(f"{name}.mlp.fc1", D, model.mlp_hidden)
    yield from _linear(f"{name}.mlp.fc2", model.mlp_hidden, D)
    yield from _linear(f"{name}.adaLN_modulation.1", D, 6 * D)


def _linear(name: str, width: int, out: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (out, width)
    yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)
