"""CLIPScore (arXiv 2104.08718): how well a picture fits its caption, in the eyes of one model."""

from torch import Tensor
from torch.nn import functional as F

from regscale.evaluation.metrics.inception_score import Spread

SCALE = 100.0


def clip_score(image_features: Tensor, text_features: Tensor, *, scale: float = SCALE) -> Spread:
    """The mean of `scale` max(cos, 0) over pairs (N, R), and the standard deviation over them.

    The paper scales by 2.5; tables of text-to-image models mostly by 100 (torchmetrics) or 1.
    """
    assert image_features.shape == text_features.shape, "each picture has one caption"
    images, texts = (F.normalize(f.double(), dim=1) for f in (image_features, text_features))
    scores = scale * (images * texts).sum(1).clamp_min(0)
    return Spread(float(scores.mean()), float(scores.std(correction=0)))
