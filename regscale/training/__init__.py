"""Training: the loop, the averages, what is reported, and what a checkpoint holds."""

from regscale.training.config import Config as TrainingConfig
from regscale.training.ema import Config as EmaConfig
from regscale.training.ema import Ema
from regscale.training.job import Job, Outcome
from regscale.training.loop import train
from regscale.training.stop import StopFlag

__all__ = ["Ema", "EmaConfig", "Job", "Outcome", "StopFlag", "TrainingConfig", "train"]
