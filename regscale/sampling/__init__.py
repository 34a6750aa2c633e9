"""From noise to a picture: guidance, solvers, and noise that belongs to an image's own seed."""

from regscale.sampling.config import Config as SamplingConfig
from regscale.sampling.guidance import Config as GuidanceConfig
from regscale.sampling.guidance import TargetGuidance, guided
from regscale.sampling.sampler import Sampler
from regscale.sampling.seeds import ImageNoise

__all__ = ["GuidanceConfig", "ImageNoise", "Sampler", "SamplingConfig", "TargetGuidance", "guided"]
