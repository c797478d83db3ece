"""The base of every settings class: frozen, strict about names, documented field by field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of one stage, in the file of that stage.

    The string under a field says its meaning and unit, and what ``None`` means.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
