"""Errors about one artifact."""

from __future__ import annotations

from flock_ray.error_base import FlockError


class ArtifactError(FlockError):
    """Something is wrong with one artifact."""

    code = "artifact_error"
    http_status = 400
    text = "The artifact was refused. Correct the artifact and publish it again."

    def __init__(self, message: str = "", *, artifact_id: str | None = None) -> None:
        """Make the error; `artifact_id` names the artifact, None when it has no id."""
        super().__init__(message)
        self.artifact_id = artifact_id


class ArtifactNotFoundError(ArtifactError):
    """No artifact of this id exists, or the reader may not see it."""

    code = "artifact_not_found"
    http_status = 404
    text = "No such artifact is visible to you. Check the id, the namespace, the retention and your identity."


class ArtifactSchemaError(ArtifactError):
    """A payload does not fit its type, or its version cannot be read here."""

    code = "artifact_schema"
    http_status = 422
    text = "The payload does not fit its type. Compare it with the JSON schema of the type."

    def __init__(
        self, message: str = "", *, type_name: str | None = None, version: int | None = None
    ) -> None:
        """Make the error; `type_name` and `version` say what the payload claims to be, if known."""
        super().__init__(message)
        self.type_name = type_name
        self.version = version


class UnknownTypeError(ArtifactSchemaError):
    """A type name, or a class, was never registered in this process."""

    code = "unknown_type"
    text = "The artifact type is not registered. Decorate the class with @flock_type and import its module."


class PayloadTooLargeError(ArtifactError):
    """A payload is larger than the board accepts."""

    code = "payload_too_large"
    http_status = 413
    text = "The payload is too large. Publish a reference to the data, or raise the limit of the flock."


class DuplicateArtifactError(ArtifactError):
    """An id or idempotency key was used again with different content."""

    code = "duplicate_artifact"
    http_status = 409
    text = "The id is taken by other content. Artifacts are immutable: publish the change as a new one."


class VersionConflictError(ArtifactError):
    """Something changed between reading and writing it."""

    code = "version_conflict"
    http_status = 409
    text = "Somebody else changed this first. Read it again and repeat the change."


class PayloadLostError(ArtifactError):
    """A large payload went with the node, or the process, that held it, and the board keeps no copy."""

    code = "payload_lost"
    http_status = 410
    text = (
        "The payload is lost with the node that held it. Publish it again, or keep the board: persistence=..."
    )
