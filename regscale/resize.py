"""A trained run for pictures of another size than those that it was trained on."""

from dataclasses import replace

from regscale.assemble import Loaded
from regscale.errors import RegscaleError
from regscale.sampling.sizes import Size, written_size


def patch_pixels(loaded: Loaded) -> int:
    """The side in pixels that a patch of the model covers: of autoencoder times patch."""
    height, _ = loaded.towers.image_size or loaded.image_size
    rows: int = loaded.sampler.model.grid[0]
    assert height % rows == 0, "the latents of a run are whole patches"
    return height // rows


def resized(loaded: Loaded, size: Size) -> Loaded:
    """The same model on the grid of another size.

    Refused where places are added to the patches as a table of the training's grid: beyond it, and
    in another shape, the weights know none of its rows. Angles of RoPE know distances alone.
    """
    if size == loaded.image_size:
        return loaded
    if not loaded.sampler.model.any_grid:
        raise RegscaleError(
            f"size {written_size(size)}",
            f"this model knows places of {written_size(loaded.image_size)} pixels alone",
            found="a table of places for a fixed grid of patches (no model.rope, or rope_table)",
            fix="Leave --size and --aspect out, or train with model.rope=true.",
        )
    latent_shape = loaded.towers.autoencoder.latent_shape(*size)
    sampler = replace(loaded.sampler, latent_shape=latent_shape)
    return replace(loaded, sampler=sampler, image_size=size)
