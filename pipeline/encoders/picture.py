"""The picture encoder: a frozen open_clip model that embeds pictures and texts."""

from __future__ import annotations

import difflib
import json
import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import convert_weights_to_lp
from PIL import Image
from safetensors import SafetensorError

from pipeline.encoders.device import ComputeOptions, one_thread, unit_rows
from pipeline.encoders.onednn import pack_linears
from pipeline.encoders.weights import NUM_SHOWN, check_finite, is_url, read_state_dict, reason, resolve_weights
from pipeline.errors import EncoderError
from pipeline.schema import stable_hash

logger = logging.getLogger(__name__)

CPU_BATCH_SIZE = 8
"""Frames of a clip in one batch on a CPU. Fixed, since the last bits of the results depend on it."""

_PREPROCESS = {
    "mean": "image_mean",
    "std": "image_std",
    "interpolation": "image_interpolation",
    "resize_mode": "image_resize_mode",
}


_DEFAULT_PREPARATION = {
    "image_mean": open_clip.OPENAI_DATASET_MEAN,
    "image_std": open_clip.OPENAI_DATASET_STD,
    "image_interpolation": "bicubic",
    "image_resize_mode": "shortest",
}


def check_model(name: str, field: str = "picture_model") -> int:
    """The embedding width of an open_clip model. Raises EncoderError, with similar names, for an unknown one."""
    config = open_clip.get_model_config(name) if ":" not in name else None
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.5) or [
            "ViT-B-32",
            "ViT-B-32-quickgelu",
        ]
        raise EncoderError(f"{field}: open_clip has no model named {name!r}; near names: {', '.join(near)}")
    return int(config["embed_dim"])


def is_tag(name: str, weights: str) -> bool:
    """Whether ``weights`` is a pretrained tag that open_clip knows for this model."""
    return bool(open_clip.pretrained.is_pretrained_cfg(name, weights))


def check_weights(name: str, weights: str, field: str = "picture_weights") -> None:
    """Raises EncoderError when ``weights`` is no tag, no URL and no file. Nothing is fetched or read."""
    if not (is_tag(name, weights) or is_url(weights) or Path(weights).expanduser().is_file()):
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise EncoderError(
            f"{field}: {weights!r} is no file, and no pretrained tag of {name} (tags: {', '.join(tags) or 'none'}); "
            f"give a tag, a path, or a URL with its SHA-256"
        )


def find_weights(
    name: str, weights: str, sha256: str | None = None, cache_dir: Path | None = None, field: str = "picture_weights"
) -> Path:
    """The local file of a tag, path or URL. open_clip fetches the file of a tag into its own cache, unless it is there.

    Raises EncoderError where it is missing, cannot be fetched, or has another SHA-256.
    """
    check_weights(name, weights, field)
    if not is_tag(name, weights):
        return resolve_weights(weights, sha256, cache_dir, field)
    try:
        path = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, weights)))
    except (OSError, RuntimeError, ValueError) as error:
        raise EncoderError(
            f"{field}: the weights of tag {weights!r} of {name} are not on this machine and cannot be fetched "
            f"({reason(error)}); fetch them elsewhere and set {field} to the path of the file"
        ) from error
    return resolve_weights(str(path), sha256, cache_dir, field)


def _preprocess_arguments(name: str, weights: str) -> dict[str, Any]:
    """open_clip's arguments for the tag's preprocessing; for a file, that of the model's tags if they all have the same."""
    tags = [weights] if is_tag(name, weights) else open_clip.list_pretrained_tags_by_model(name)
    configs = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    arguments = [
        {argument: config[key] for key, argument in _PREPROCESS.items() if config.get(key) is not None}
        for config in configs
    ]
    return arguments[0] if arguments and all(each == arguments[0] for each in arguments) else {}


def _wants_quick_gelu(name: str, weights: str) -> bool:
    return is_tag(name, weights) and bool(open_clip.get_pretrained_cfg(name, weights).get("quick_gelu"))


def picture_id(name: str, weights: str, sha256: str) -> str:
    """``encoder_id`` of a picture encoder, computed without loading weights.

    It depends on the file's content, the network and the preprocessing, not on whether a tag or a path names the file.
    """
    network = open_clip.get_model_config(name)
    network["quick_gelu"] = bool(network.get("quick_gelu")) or _wants_quick_gelu(name, weights)
    prepared = {**_DEFAULT_PREPARATION, **_preprocess_arguments(name, weights)}
    parts = json.dumps([network, prepared], sort_keys=True)
    return f"{name.removesuffix('-quickgelu')}-{stable_hash('picture', sha256, parts, length=12)}"


class PictureEncoder:
    """An open_clip model, frozen. ``encoder_id`` depends on all that changes its results in fp32."""

    def __init__(
        self, name: str, weights: str, path: Path, sha256: str, *, running: ComputeOptions, gradients: bool = True
    ) -> None:
        """``weights``: as in the recipe; ``path``: its local file. Raises EncoderError when it does not fit the model.

        ``gradients=False``: gradients cannot pass through the picture tower, which then is twice as fast on a CPU.
        """
        self.encoder_id = picture_id(name, weights, sha256)
        self.width = check_model(name)
        self.name = name
        self.running = running
        state = read_state_dict(path) if path.suffix not in (".npz", ".npy") else {}
        try:
            model, _, self.preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=str(path.absolute()),
                force_quick_gelu=_wants_quick_gelu(name, weights),
                weights_only=True,
                **_preprocess_arguments(name, weights),
            )
        except (pickle.UnpicklingError, SafetensorError) as error:
            raise EncoderError(
                f"{path} is damaged, or wants to run code when it is loaded; nothing of it was run. {reason(error)}"
            ) from error
        except (
            OSError,
            RuntimeError,
            EOFError,
            LookupError,
            ValueError,
            TypeError,
            AttributeError,
            AssertionError,
        ) as error:
            raise EncoderError(f"{path} does not hold weights of {name}: {_brief(error)}") from error
        self.model = model.requires_grad_(False).eval()
        _check_kinds(state, self.model, path, name)
        check_finite(self.model, path)
        self.model.to(running.device)
        if running.dtype is not None:
            # converted once: autocast would convert every weight for every batch, most of the time on a CPU
            convert_weights_to_lp(self.model, running.dtype)
        elif not gradients:
            pack_linears(self.model.visual)
        self._tokenizer: Any = None

    def embed_pictures(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB frames (N, H, W, 3) uint8 of any size -> (N, D) float32, rows of length 1."""
        return self.embed_groups([frames])[0]

    def embed_groups(self, groups: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """``embed_pictures`` of every clip's frames.

        On a GPU clips share batches; on a CPU they do not, so that no clip's embedding depends on other clips.
        """
        for frames in groups:
            if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
                raise ValueError(f"frames must be uint8 (frames, height, width, 3), got {frames.dtype} {frames.shape}")
        if not groups:
            return []
        if self.running.device.type == "cpu":
            return self.running.map(lambda frames: self._embed([frames], CPU_BATCH_SIZE), groups)
        ends = np.cumsum([len(frames) for frames in groups])[:-1]
        return list(np.split(self._embed(groups, self.running.batch_size), ends))

    def _embed(self, groups: Sequence[NDArray[np.uint8]], batch_size: int) -> NDArray[np.float32]:
        pictures = [frame for frames in groups for frame in frames]
        rows = []
        for start in range(0, len(pictures), batch_size):
            batch = torch.stack(
                [self.preprocess(Image.fromarray(frame)) for frame in pictures[start : start + batch_size]]
            )
            rows.append(self.running.batch(self.model.encode_image, batch))
        return np.asarray(unit_rows(torch.cat(rows), self.encoder_id).numpy())

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(len(texts), D) float32, rows of length 1. Raises EncoderError when the tokenizer is not on this machine."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        if self._tokenizer is None:
            try:
                self._tokenizer = open_clip.get_tokenizer(self.name)
            except (OSError, RuntimeError, ValueError, ImportError) as error:
                raise EncoderError(
                    f"the tokenizer of {self.name} is not on this machine: {reason(error)}; choose a model without one"
                ) from error
        rows = self.running.each(self.model.encode_text, list(self._tokenizer(list(texts))))
        with one_thread():
            return np.asarray(unit_rows(rows, self.encoder_id).numpy())


def _check_kinds(state: Mapping[str, torch.Tensor], model: torch.nn.Module, path: Path, name: str) -> None:
    """Raises EncoderError for tensors that open_clip would convert silently: other position embeddings, integers."""
    wanted = model.state_dict()
    problems = [
        f"{key} has shape {tuple(tensor.shape)}, wanted {tuple(wanted[key].shape)}: of a model for another size"
        for key, tensor in state.items()
        if key in wanted and key.endswith(("positional_embedding", "pos_embed")) and tensor.shape != wanted[key].shape
    ]
    problems += [
        f"{key} holds whole numbers ({tensor.dtype})"
        for key, tensor in state.items()
        if key in wanted and wanted[key].is_floating_point() and not tensor.is_floating_point()
    ]
    if problems:
        more = f", and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise EncoderError(f"{path} does not hold weights of {name}: {'; '.join(problems[:NUM_SHOWN])}{more}")


def _brief(error: BaseException) -> str:
    """The first lines of a message: torch lists every tensor that does not fit."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    more = f" and {len(lines) - 1 - NUM_SHOWN} more lines" if len(lines) - 1 > NUM_SHOWN else ""
    return " ".join(line[:300] for line in lines[: 1 + NUM_SHOWN]) + more
