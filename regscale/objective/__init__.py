"""What a training step minimises, and the chance that it takes."""

from regscale.objective.draw import Config as DrawConfig
from regscale.objective.draw import draw
from regscale.objective.losses import Weights, losses, total

__all__ = ["DrawConfig", "Weights", "draw", "losses", "total"]
