"""One number from several encoders: each distance in units of what real data has there."""

from collections.abc import Mapping

from regscale.errors import RegscaleError


def relative_distance(distances: Mapping[str, float], real: Mapping[str, float]) -> float:
    """The mean over encoders of FD(generated, reference) / FD(held-out real, reference).

    FDr^k of arXiv 2604.28190, where the held-out data are ImageNet's validation set and k = 6 are
    Inception-v3, ConvNeXt-v2, DINOv2, MAE, SigLIP 2 and CLIP. The ratio makes spaces of different
    scale count alike, and 1 is as near as held-out data comes. Both mappings are by the encoder.
    """
    if not distances or set(distances) != set(real):
        raise RegscaleError(
            "relative distance",
            "needs the distance of held-out real data for the same encoders",
            found=f"{sorted(distances)} and {sorted(real)}",
            fix="Measure both with one list of encoders.",
        )
    for name, floor in real.items():
        if not floor > 0:
            raise RegscaleError(
                f"relative distance: {name}",
                "has real data that lie on the reference",
                found=f"a distance of {floor}",
                fix="Compare with held-out pictures, not with those of the reference itself.",
            )
    return sum(distances[name] / real[name] for name in distances) / len(distances)
