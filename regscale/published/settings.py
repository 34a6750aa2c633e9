"""A published file's arguments and weights as the sections of a run's config.

Plain values only: the sections themselves are checked where they are loaded.
"""

from collections.abc import Mapping
from typing import Any

from regscale.errors import RegscaleError
from regscale.published.layout import Architecture
from regscale.published.plain import revived

Values = dict[str, Any]
FACTOR = 8  # pixels that a latent of the SD-VAE covers on each side
DINOV2 = {384: "small", 768: "base", 1024: "large", 1536: "giant"}
LETTERS = {"s": "small", "b": "base", "l": "large", "g": "giant"}  # of enc_type dinov2-vit-b
PATHS = {"linear": "linear", "cosine": "cosine", "gvp": "cosine"}  # GVP is SiT's name
PAPER = "the paper: 4 for B, 8 for L and XL"
NUMBERS = {
    "batch_size": ("training", "batch_size"),
    "max_train_steps": ("training", "num_steps"),
    "learning_rate": ("optimizer", "learning_rate"),
    "adam_weight_decay": ("optimizer", "weight_decay"),
    "adam_epsilon": ("optimizer", "eps"),
    "max_grad_norm": ("optimizer", "max_grad_norm"),
    "cfg_prob": ("conditioning", "dropout"),
}


def run_values(
    model: Architecture,
    args: Mapping[str, Any],
    *,
    group: Mapping[str, Any],
    num_heads: int,
    alignment_depth: int | None,
    image_size: int | None,
    where: object,
) -> Values:
    """The sections of a run in which this model was, or could have been, trained.

    `group` holds the values of its optimizer, as JSON.
    """
    num_classes = model.num_labels - 1
    names = "imagenet" if num_classes == 1000 else None
    targets, entangle, align = _targets(model, args, _depth(model, args, alignment_depth, where))
    values: Values = {
        "data": {"kind": "image_folder", "size": _image_size(model, args, image_size, where)},
        "autoencoder": {"kind": "sd_vae"},
        "conditioning": {"kind": "class_label", "num_classes": num_classes, "names": names},
        "targets": targets,
        "entangle": entangle,
        "align": align,
        "model": _backbone(model) | {"num_heads": num_heads},
        "path": _path(args, where),
        "times": {"distribution": _weighting(args, where)},
        "optimizer": {},
        "training": {},
    }
    for key, (section, name) in NUMBERS.items():
        if _is_number(args.get(key)):
            values[section][name] = args[key]
    values["optimizer"] |= _optimizer(group)
    if isinstance(args.get("seed"), int):
        values["seed"] = args["seed"]
    return values


def _backbone(model: Architecture) -> Values:
    return {
        "kind": "sit",
        **{key: getattr(model, key) for key in ("depth", "hidden_size", "patch_size")},
        "mlp_ratio": model.mlp_hidden / model.hidden_size,
        "qk_norm": model.head_width is not None,
    }


def _optimizer(group: Mapping[str, Any]) -> Values:
    names = {"lr": "learning_rate", "eps": "eps", "weight_decay": "weight_decay"}
    found: Values = {ours: group[key] for key, ours in names.items() if _is_number(group.get(key))}
    betas = revived(group.get("betas"))
    return found | ({"betas": list(betas)} if isinstance(betas, (tuple, list)) else {})


def _targets(
    model: Architecture, args: Mapping[str, Any], depth: int
) -> tuple[Values, Values, Values]:
    """(targets, entangle, align). One target is entangled and aligned, as in REG, if widths agree.

    A weight of 0 would leave its parameters out, so the paper's stands in for it.
    """
    encoders = str(args.get("enc_type") or "dinov2").split(",")
    targets: Values = {}
    entangle: Values = {}
    align: Values = {}
    for number, (hidden, out) in enumerate(model.projectors):
        encoder = encoders[number] if number < len(encoders) else ""
        name = "vision" if len(model.projectors) == 1 else f"vision{number}"
        targets[name] = _target(encoder, out)
        weight = args.get("proj_coeff")
        align[name] = {
            "depth": depth,
            "projector": hidden,
            "weight": weight if _is_number(weight) and weight else 0.5,
        }
        if out == model.token_width and not entangle:
            entangle[name] = {}
    if model.token_width is not None:
        if not entangle:
            targets["token"], entangle["token"] = _target(encoders[0], model.token_width), {}
        weight = args.get("cls")
        next(iter(entangle.values()))["weight"] = weight if _is_number(weight) and weight else 0.03
    return targets, entangle, align


def _target(encoder: str, width: int) -> Values:
    """DINOv2 where name and width are its own; otherwise features that only data can hold."""
    family, _, architecture = encoder.strip().partition("-")
    letter = architecture.rpartition("-")[2].removeprefix("vit")[:1]
    size = DINOV2.get(width)
    if size is None or family not in ("dinov2", "dinov2reg") or LETTERS.get(letter, size) != size:
        return {"kind": "stored", "width": width}
    registers = "with-registers-" if family == "dinov2reg" else ""
    return {"kind": "dinov2", "model": f"facebook/dinov2-{registers}{size}"}


def _depth(model: Architecture, args: Mapping[str, Any], given: int | None, where: object) -> int:
    """Of alignment, which weights do not tell. 0 where nothing is aligned."""
    if not model.projectors:
        if given is not None:
            raise RegscaleError(
                f"{where}: --alignment-depth",
                "these weights have no projector",
                found=given,
                fix="Leave it out.",
            )
        return 0
    depth = args.get("encoder_depth") if given is None else given
    if not isinstance(depth, int):
        raise RegscaleError(
            where,
            "has projectors but does not tell after which block they read",
            found=f"{len(model.projectors)} projectors, {model.depth} blocks, no encoder_depth",
            fix=f"Give --alignment-depth N ({PAPER}).",
        )
    if not 1 <= depth <= model.depth:
        raise RegscaleError(
            f"{where}: alignment depth",
            f"is a block of the model, 1 to {model.depth}",
            found=depth,
            fix=f"Give --alignment-depth N ({PAPER}).",
        )
    return depth


def _image_size(
    model: Architecture, args: Mapping[str, Any], given: int | None, where: object
) -> int:
    if given is not None:
        return given
    if model.latent_side is not None:
        return model.latent_side * FACTOR
    if isinstance(args.get("resolution"), int):
        return int(args["resolution"])
    raise RegscaleError(
        where,
        "has no pos_embed that would tell the size of its images",
        found="neither pos_embed nor the argument resolution",
        fix="Give --image-size N, the side in pixels, as 256.",
    )


def _path(args: Mapping[str, Any], where: object) -> str:
    prediction = str(args.get("prediction") or "v").lower()
    if prediction not in ("v", "velocity"):
        raise RegscaleError(
            f"{where}: args.prediction",
            "regscale's models predict velocities",
            found=prediction,
            fix="Give a checkpoint that was trained with prediction v.",
        )
    return _known(args, "path_type", PATHS, where)


def _weighting(args: Mapping[str, Any], where: object) -> str:
    return _known(args, "weighting", {"uniform": "uniform", "lognormal": "lognormal"}, where)


def _known(args: Mapping[str, Any], key: str, table: dict[str, str], where: object) -> str:
    value = str(args.get(key) or next(iter(table))).lower()
    if value not in table:
        raise RegscaleError(
            f"{where}: args.{key}",
            f"is one of {', '.join(table)}",
            found=value,
            fix="Give a checkpoint that was trained with one of these.",
        )
    return table[value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
