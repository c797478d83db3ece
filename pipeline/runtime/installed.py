"""Versions of installed packages, for what is kept by what it depends on."""

from __future__ import annotations

import importlib.metadata


def installed_version(distribution: str) -> str:
    """Of a tree that runs without being installed, or of an extra that is not there, nobody knows the version."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
