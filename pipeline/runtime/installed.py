"""Versions of installed packages, which are part of manifests and keys."""

from __future__ import annotations

import importlib.metadata


def installed_version(distribution: str) -> str:
    """The version of a package, or "not installed": when this package runs from a source tree, or for an extra that is missing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
