"""Weights from a path or a URL: fetched once, compared with their SHA-256, and read without running code from the file.

A file is read by ``torch.load(weights_only=True)`` or as safetensors: a pickle that calls functions is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import pickle
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from pipeline.errors import EncoderError
from pipeline.runtime.bounded import copy_bounded, reading_failures
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.remote import Retries, retried

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
FETCH_TIMEOUT_SECONDS = 60
PARTIAL_PREFIX = ".fetching-"
MAX_BYTES = 32 << 30
"""Maximum size of a file that is fetched. The largest published CLIP model has 20 GB in full precision."""
RETRIES = Retries()
"""How often, and after which delays, a failed download of weights is repeated."""
NUM_SHOWN = 3
"""Maximum number of mismatches in a message."""

_INERT_PREFIXES = ("pytorch_lightning.", "lightning.")
"""Classes that training frameworks store in a checkpoint beside the weights: read as empty objects, never imported."""


def default_cache_dir() -> Path:
    """Where fetched weights are kept: ``$HEARSCAPE_CACHE``, else ``hearscape`` in the user's cache folder."""
    if chosen := os.environ.get("HEARSCAPE_CACHE"):
        return Path(chosen).expanduser() / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "hearscape" / "weights"


def is_url(spec: str) -> bool:
    return "://" in spec


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises EncoderError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error


def resolve_weights(
    spec: str, sha256: str | None = None, cache_dir: Path | None = None, field: str = "weights"
) -> Path:
    """The local file of ``spec``: a path, or an http(s) or fsspec URL, which needs ``sha256`` and is fetched once.

    ``field``: the setting's name in messages. Raises EncoderError when the file is missing, cannot be fetched, or has
    another SHA-256; such a fetched file is deleted.
    """
    if not is_url(spec):
        path = Path(spec).expanduser()
        if not path.is_file():
            raise EncoderError(f"{field}: there is no file {spec!r} (looked for {path.absolute()}); correct the path")
        if sha256 is not None and (actual := file_sha256(path)) != sha256.lower():
            raise EncoderError(
                f"{field}: {spec} has SHA-256 {actual}, the recipe says {sha256.lower()}; "
                f"use the right file or correct the sum"
            )
        return path
    if sha256 is None:
        raise EncoderError(
            f"{field}: {mask_secrets(spec)} is a URL and needs its SHA-256 beside it, so that weights cannot change unseen"
        )
    cached = cached_path(spec, sha256, cache_dir)
    if not cached.is_file() or file_sha256(cached) != sha256.lower():
        _fetch(spec, sha256.lower(), cached, field)
    return cached


def cached_path(url: str, sha256: str, cache_dir: Path | None = None) -> Path:
    """The path of a URL's file in the cache, where a user may also put it: named by its SHA-256, not by its URL."""
    suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
    return (cache_dir or default_cache_dir()) / f"{sha256.lower()}{suffix if suffix in SUFFIXES else '.pt'}"


def _fetch(url: str, sha256: str, target: Path, field: str) -> None:
    shown = mask_secrets(url)
    logger.info("fetching %s", shown)
    by_hand = f"fetch it on another machine and put it at {target}, or set {field} to the path of a local copy"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned_partials(target.parent)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=PARTIAL_PREFIX)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise EncoderError(f"{field}: cannot write to the cache folder {target.parent}: {error}") from error
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            retried(lambda: _copy_url(url, file), shown, RETRIES)
        if (actual := file_sha256(partial)) != sha256:
            raise EncoderError(
                f"{field}: {shown} gave {partial.stat().st_size} bytes with SHA-256 {actual}, wanted {sha256}; not kept. "
                f"Correct the URL or the sum, or {by_hand}"
            )
        partial.replace(target)
    except EncoderError:
        raise
    except urllib.error.HTTPError as error:
        raise EncoderError(f"{field}: {shown} answered {error.code} {error.reason}; {by_hand}") from error
    except _failures() as error:
        raise EncoderError(f"{field}: cannot fetch {shown} ({mask_secrets(str(error))}); {by_hand}") from error
    finally:
        partial.unlink(missing_ok=True)


def _remove_abandoned_partials(folder: Path) -> None:
    """Removes partial files of killed processes: those that are not locked, and older than a minute."""
    for partial in folder.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError), partial.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - partial.stat().st_mtime > 60:
                partial.unlink()


def _failures() -> tuple[type[Exception], ...]:
    """Exceptions of a failed download. fsspec raises ValueError for an unknown protocol, ImportError for a missing driver."""
    return (*reading_failures(), HTTPException, ValueError, ImportError)


def _copy_url(url: str, target: IO[bytes]) -> None:
    """Copies a URL's content into an open file, from its beginning. Raises EOFError below the ``Content-Length``."""
    target.seek(0)
    target.truncate()
    with _open_url(url) as response:
        copy_bounded(response, target, MAX_BYTES)
        length = getattr(response, "headers", {}).get("Content-Length", "")
        if length.isdecimal() and target.tell() < int(length):
            raise EOFError(f"it ends after {target.tell():,} of {int(length):,} bytes")


def _open_url(url: str) -> IO[bytes]:
    if urlsplit(url).scheme in ("http", "https"):
        opened: IO[bytes] = urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_SECONDS)
        return opened
    import fsspec  # noqa: PLC0415 (only for storage that few recipes name)

    remote: IO[bytes] = fsspec.open(url, "rb").open()
    return remote


class _Inert:
    """Takes the place of a training framework's object, which is not needed."""

    def __init__(self, *_args: object, **_kwargs: object) -> None: ...

    def __setstate__(self, _state: object) -> None: ...


def read_state_dict(path: Path, remedy: str = "fetch it again") -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU: a state dict, bare or under ``state_dict``, without ``module.``.

    Raises EncoderError for a file that is damaged (``remedy`` says what to do then), is no checkpoint, or holds more than tensors.
    """
    import torch  # noqa: PLC0415 (settings are read without it)
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        with path.open("rb") as file:
            is_safetensors = file.read(9)[8:] == b"{"
        loaded = load_file(path) if is_safetensors else _load_tensors_only(path)
    except EncoderError:
        raise
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{path} wants to run code when it is loaded, or is damaged; nothing of it was run. {reason(error)}"
        ) from error
    except SafetensorError as error:
        raise EncoderError(f"{path} is damaged or not complete: {reason(error)}; {remedy}") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ArithmeticError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        # which exception torch.load raises for a damaged file depends on where the damage is
        if "torchscript" in str(error).lower():
            raise EncoderError(
                f"{path} is a TorchScript archive, as OpenAI published them: a program, which is not run here. Name the tag "
                "'openai' instead, or save its state_dict() as safetensors where you trust it"
            ) from error
        raise EncoderError(f"{path} is damaged or no checkpoint: {reason(error)}; {remedy}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise EncoderError(
            f"{path} holds no state dict but {type(loaded).__name__}; save the network's state_dict() instead"
        )
    if other := [
        str(key) for key, value in loaded.items() if not isinstance(key, str) or not isinstance(value, torch.Tensor)
    ]:
        raise EncoderError(
            f"{path} holds more than tensors ({', '.join(other[:NUM_SHOWN])}); save the network's state_dict() instead"
        )
    if odd := [f"{key} is {kind}" for key, value in loaded.items() if (kind := _odd_kind(value))]:
        raise EncoderError(f"{path} holds tensors that are no plain numbers: {'; '.join(odd[:NUM_SHOWN])}")
    return {key.removeprefix("module."): value for key, value in loaded.items()}


def _odd_kind(tensor: Tensor) -> str:
    """Why a tensor cannot be weights. Empty: it can."""
    import torch  # noqa: PLC0415

    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_meta:
        return "a shape without numbers"
    return "complex" if tensor.is_complex() else ""


def _load_tensors_only(path: Path) -> object:
    import torch  # noqa: PLC0415

    inert: list[tuple[type, str]] = []
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        foreign = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if unknown := [name for name in foreign if not name.startswith(_INERT_PREFIXES)]:
            raise EncoderError(
                f"{path} wants to run {', '.join(unknown[:NUM_SHOWN])} when it is loaded; nothing of it was run. "
                f"If you trust it, save its weights alone, as safetensors"
            )
        inert = [(_Inert, name) for name in foreign]
    with torch.serialization.safe_globals(inert), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # torch warns of odd pickles before it refuses them
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def load_into(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads ``state`` into ``network``. Raises EncoderError with the first mismatches, unless the names and shapes are equal."""
    check_fit(network, state, path)
    network.load_state_dict(dict(state), strict=False)
    check_finite(network, path)


def check_fit(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises EncoderError with the first mismatches, as :func:`load_into` does.

    Called with a network on the device ``meta`` before memory is allocated: a small damaged file can describe a network that
    is too large for any machine.
    """
    wanted = network.state_dict()
    problems = [
        f"{name} is missing" for name in wanted if name not in state and not name.endswith("num_batches_tracked")
    ]
    problems += [f"{name} is not part of the network" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds whole numbers ({state[name].dtype}), wanted {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in state and tensor.is_floating_point() and not state[name].is_floating_point()
    ]
    if problems:
        more = f", and {len(problems) - NUM_SHOWN} more" if len(problems) > NUM_SHOWN else ""
        raise EncoderError(f"{path} does not fit {type(network).__name__}: {'; '.join(problems[:NUM_SHOWN])}{more}")


def check_finite(network: nn.Module, path: Path) -> None:
    """Raises EncoderError with the name of the first tensor that holds NaN or infinity."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise EncoderError(f"{path} is damaged: {name} holds NaN or infinity")


def reason(error: BaseException) -> str:
    """The first line of a loading error, without torch's advice to load it unsafely."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), type(error).__name__)
