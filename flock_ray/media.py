"""Images and files in artifacts: fields of these types are shown to models that take them."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["File", "Image"]

MAX_MEDIA_BYTES = 20 * 1024 * 1024
"""Largest image or file in an artifact, in bytes before base64."""


class _Media(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(default=None, description="An http or https address that the provider can reach.")
    data: str | None = Field(default=None, description="The content in base64.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.url is None) == (self.data is None):
            raise ValueError("give either url or data")
        if self.url is not None and not self.url.startswith(("https://", "http://")):
            raise ValueError("url must begin with https:// or http://; give content as data")
        if self.data is not None:
            if len(self.data) > MAX_MEDIA_BYTES * 4 // 3 + 4:
                raise ValueError(f"more than {MAX_MEDIA_BYTES:,} bytes; give a url instead")
            try:
                base64.b64decode(self.data, validate=True)
            except ValueError:
                raise ValueError("data must be base64") from None
        return self

    @classmethod
    def from_path(cls, path: str | Path, **fields: Any) -> Self:
        """Read a file; its media type follows from its name, unless `media_type` is given.

        Raises:
            OSError: It can't be read.
            ValueError: It is too large.
        """
        path = Path(path)
        guessed, _ = mimetypes.guess_type(path.name)
        if guessed is not None:
            fields.setdefault("media_type", guessed)
        return cls(data=base64.b64encode(path.read_bytes()).decode(), **fields)

    def __repr__(self) -> str:
        """Show what it is, not the content."""
        source = self.url if self.data is None else f"{len(self.data) * 3 // 4} bytes"
        return f"{type(self).__name__}({source})"


class Image(_Media):
    """An image, for fields of artifacts."""

    media_type: str = Field(default="image/png", pattern=r"^image/[\w.+-]+$")

    def to_part(self) -> dict[str, Any]:
        """Return it as a part of a chat message."""
        url = self.url or f"data:{self.media_type};base64,{self.data}"
        return {"type": "image_url", "image_url": {"url": url}}


class File(_Media):
    """A document, such as a PDF, for fields of artifacts."""

    media_type: str = Field(default="application/pdf", pattern=r"^[\w.+-]+/[\w.+-]+$")
    name: str = Field(default="document", max_length=200)

    def to_part(self) -> dict[str, Any]:
        """Return it as a part of a chat message."""
        if self.url is not None:
            return {"type": "file", "file": {"file_id": self.url, "format": self.media_type}}
        data = f"data:{self.media_type};base64,{self.data}"
        return {"type": "file", "file": {"file_data": data, "filename": self.name}}
