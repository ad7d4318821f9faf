"""A trained network in other people's hands: a checkpoint alone says how its videos are sampled and named."""

from .predictor import Classifier, FrameTensor, Guess, Prediction, load
from .trained import Trained, read_trained

__all__ = ["Classifier", "FrameTensor", "Guess", "Prediction", "Trained", "load", "read_trained"]
