"""A trained network as the Hugging Face Hub holds it: a folder with config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from ..config import Config, default_config
from ..models import ResNet, read_weights
from ..models.weights import Weights
from ..runtime.errors import InputError, reason
from ..runtime.plain_yaml import dump_yaml
from ..runtime.storage import atomic_write, open_text

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_pretrained(folder: Path, network: ResNet, cfg: Config, class_names: Sequence[str]) -> None:
    """Write the tensors, and as JSON the config and the class names. Raises InputError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(safetensors.torch.save(tensors, {"format": "pt"}))
    contents = {"library_name": "video_iresnet", "class_names": list(class_names), "config": published(cfg)}
    with atomic_write(folder / CONFIG) as file:
        json.dump(contents, file, indent=2)
        file.write("\n")


def is_pretrained(folder: str | os.PathLike[str]) -> bool:
    return os.path.exists(Path(folder, CONFIG))


def read_pretrained(folder: Path) -> Weights:
    """Read such a folder. Raises InputError or WeightsError."""
    path = folder / CONFIG
    with open_text(str(path)) as file:
        try:
            contents = json.load(file)
            names, cfg = contents["class_names"], dump_yaml(contents["config"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path} cannot be used ({reason(error)}); expected class_names and config, as "
                "tools/export.py writes them"
            ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"class_names in {path} is {str(names)[:99]}; expected a list of texts")
    weights = read_weights(folder / WEIGHTS)
    return weights._replace(class_names=names, info={"cfg": cfg})


def published(cfg: Config) -> Config:
    """Return a copy of a config without the folders of the machine that it was used on: lists and files of
    weights keep their names alone.
    """
    cfg, defaults = cfg.clone(), default_config()
    cfg.OUTPUT_DIR = defaults.OUTPUT_DIR
    cfg.TRAIN.ENABLE, cfg.TEST.ENABLE = defaults.TRAIN.ENABLE, defaults.TEST.ENABLE
    cfg.DATA.PATH_TO_DATA_DIR = cfg.DATA.PATH_PREFIX = ""
    for section, key in (
        (cfg.TRAIN, "CHECKPOINT_FILE_PATH"),
        (cfg.TEST, "CHECKPOINT_FILE_PATH"),
        (cfg.DATA, "TRAIN_LIST"),
        (cfg.DATA, "VAL_LIST"),
        (cfg.DATA, "TEST_LIST"),
        (cfg.DATA, "CLASS_NAMES"),
    ):
        section[key] = os.path.basename(section[key])
    return cfg
