"""The bases of every settings class and of every record in JSON: frozen, strict about names, documented field by field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one stage, in the file of that stage.

    The string under a field says its meaning and unit, and what ``None`` means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class JsonRecord(BaseModel):
    """A part of the manifest or of a calibration: frozen, and values are never converted to another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
