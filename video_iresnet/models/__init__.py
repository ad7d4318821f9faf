"""Networks and weights. Depends on torch only, and works if this folder is copied elsewhere."""

from .fold import fold_batch_norm
from .norm import set_norm
from .resnet import ARCHITECTURES, DEPTHS, TEMPORAL_PATTERNS, ResNet, create_cifar_model, create_model
from .weights import LoadReport, WeightsError, load_weights, read_weights

__all__ = [
    "ARCHITECTURES",
    "DEPTHS",
    "TEMPORAL_PATTERNS",
    "LoadReport",
    "ResNet",
    "WeightsError",
    "create_cifar_model",
    "create_model",
    "fold_batch_norm",
    "load_weights",
    "read_weights",
    "set_norm",
]
