"""Networks; needs torch alone, and works when this folder is copied elsewhere."""

from .resnet import ARCHITECTURES, DEPTHS, ResNet, create_model

__all__ = ["ARCHITECTURES", "DEPTHS", "ResNet", "create_model"]
