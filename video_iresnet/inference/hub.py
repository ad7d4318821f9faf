"""Trained networks for the Hugging Face Hub, by huggingface_hub's mixin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import InputError, missing_extra, reason
from .card import card_values
from .predictor import Classifier
from .pretrained import CONFIG, WEIGHTS, write_pretrained
from .trained import Trained, read_trained

try:
    from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
except ImportError as error:
    raise missing_extra("the Hugging Face Hub", "hub", error) from error

TEMPLATE = Path(__file__).with_name("card.md.jinja")


class HubClassifier(
    Classifier,
    ModelHubMixin,
    model_card_template=TEMPLATE.read_text(encoding="utf-8"),
    library_name="video_iresnet",
    pipeline_tag="video-classification",
    license="other",
    license_name="to-be-filled",
    tags=["action-recognition", "pytorch"],
):
    """A Classifier that `save_pretrained` writes to a folder, with its weights, config and model card, and
    `from_pretrained` reads from a folder or a repository of the Hub. Files of weights are safetensors alone.
    """

    def __new__(cls, *_: Any, **__: Any) -> HubClassifier:
        """Leave out the mixin's own, which takes all arguments for a config that JSON can hold."""
        return object.__new__(cls)

    def __init__(self, trained: Trained, *, clips: int | None = None, crops: int | None = None) -> None:
        super().__init__(trained, clips=clips, crops=crops)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        clips: int | None = None,
        crops: int | None = None,
        **download: Any,
    ) -> HubClassifier:
        """Read a folder, or else a repository `owner/name` of the Hub. `download`: options of
        huggingface_hub.snapshot_download, such as revision. Raises InputError or WeightsError.
        """
        folder = os.fspath(name)
        if not os.path.isdir(folder):
            try:
                folder = snapshot_download(folder, allow_patterns=[CONFIG, WEIGHTS], **download)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{name} is no folder here, and cannot be loaded from the Hugging Face Hub "
                    f"({reason(error)}); name a folder, or a repository as owner/name"
                ) from error
        if not os.path.exists(os.path.join(folder, CONFIG)):
            raise InputError(f"{name} holds no {CONFIG}; expected a folder that tools/export.py wrote")
        return cls(read_trained(folder, device), clips=clips, crops=crops)

    def _save_pretrained(self, save_directory: Path) -> None:
        trained = self.trained
        write_pretrained(save_directory, trained.network, trained.cfg, trained.class_names)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card, with the figures of the run that the weights come from."""
        card = super().generate_model_card(*args, **card_values(self.trained), **kwargs)
        if self.trained.cfg.MODEL.DIMS == 2:
            card.data["pipeline_tag"] = "image-classification"
            card.data["tags"] = [tag for tag in card.data["tags"] if tag != "action-recognition"]
        return card
