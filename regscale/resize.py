"""A trained run for pictures of another size than those that it was trained on."""

from dataclasses import replace

from regscale.assemble import Loaded, pieces, ready_to_sample
from regscale.errors import RegscaleError
from regscale.layers.initial import materialise
from regscale.sampling.sizes import Size, written_size


def patch_pixels(loaded: Loaded) -> int:
    """The side in pixels that a patch of the model covers: of autoencoder times patch."""
    height: int = loaded.image_size[0]
    rows: int = loaded.sampler.model.grid[0]
    assert height % rows == 0, "the latents of a run are whole patches"
    return height // rows


def resized(loaded: Loaded, size: Size) -> Loaded:
    """The same weights on the grid of another size; the tables of places are computed for it.

    Refused where places are added to the patches as a table of the training's grid: beyond it, and
    in another shape, the weights know none of its rows. Angles of RoPE know distances alone.
    """
    if size == loaded.image_size:
        return loaded
    old = loaded.sampler.model
    if not old.any_grid:
        raise RegscaleError(
            f"size {written_size(size)}",
            f"this model knows places of {written_size(loaded.image_size)} pixels alone",
            found="a table of places for a fixed grid of patches (model.rope: false)",
            fix="Leave --size and --aspect out, or train with model.rope=true.",
        )
    parts = pieces(loaded.config, image_size=size)
    device = loaded.sampler.device
    materialise(parts.model, seed=loaded.config.seed, device=device)
    learned = {k: v for k, v in old.state_dict().items() if k not in old.places}
    parts.model.load_state_dict(learned, strict=False)
    ready_to_sample(parts.model, loaded.config)
    sampler = replace(loaded.sampler, model=parts.model, latent_shape=parts.latent_shape)
    return replace(loaded, sampler=sampler, image_size=size)
