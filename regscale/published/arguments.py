"""A run's config as the arguments of the published trainers."""

from collections.abc import Iterator
from typing import Any

from regscale.config import kind_of
from regscale.models.sit import SIZES
from regscale.published.layout import Architecture
from regscale.published.settings import FACTOR, LETTERS
from regscale.recipe import RunConfig


def arguments(model: Architecture, config: RunConfig) -> dict[str, Any]:
    """The arguments of the published trainer for a run.

    `num_heads` is not one of them: with it a reader can tell the heads of uncommon sizes.
    """
    sizes = {shape: size for size, shape in SIZES.items()}
    size = sizes.get(config.model.shape, str(model.depth))
    aligned, entangled = list(config.aligned.values()), list(config.entangled.values())
    optimizer, training = config.optimizer, config.training
    return {
        "model": f"SiT-{size}/{model.patch_size}",
        "num_heads": config.model.shape[2],
        "num_classes": model.num_labels - 1,
        "encoder_depth": aligned[0].depth if aligned else None,
        "enc_type": ",".join(_encoders(config)),
        "qk_norm": model.head_width is not None,
        "resolution": model.latent_side and model.latent_side * FACTOR,
        "proj_coeff": aligned[0].weight if aligned else 0.0,
        "cls": entangled[0].weight if entangled else 0.0,
        "path_type": config.path,
        "prediction": "v",
        "weighting": config.times.distribution,
        "seed": config.seed,
        "batch_size": training.batch_size,
        "max_train_steps": training.num_steps,
        "learning_rate": optimizer.learning_rate,
        "adam_beta1": optimizer.betas[0],
        "adam_beta2": optimizer.betas[1],
        "adam_weight_decay": optimizer.weight_decay,
        "adam_epsilon": optimizer.eps,
        "max_grad_norm": optimizer.max_grad_norm,
        "cfg_prob": config.conditioning.dropout,
    }


def _encoders(config: RunConfig) -> Iterator[str]:
    """Names of the aligned or entangled targets as the published trainer spells them."""
    for name in config.aligned | config.entangled:
        target = config.targets[name]
        kind, model = kind_of(target), str(getattr(target, "model", ""))
        size = model.rpartition("-")[2]
        family = "dinov2reg" if "registers" in model else "dinov2"
        is_published = kind == "dinov2" and size in LETTERS.values()
        yield f"{family}-vit-{size[0]}" if is_published else kind
