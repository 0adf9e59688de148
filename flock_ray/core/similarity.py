"""Subscriptions by meaning: what was declared, the text of an artifact, and the decision. Embeds nothing itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from flock_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "DEFAULT_THRESHOLD",
    "Meaning",
    "Score",
    "SemanticMatch",
    "TextPredicate",
    "Vectors",
    "similarity",
    "text_predicates",
]

DEFAULT_THRESHOLD = 0.4
"""Similarity that is enough, as upstream has it; fits all-MiniLM-L6-v2 and models like it."""

MAX_TEXT = 32_768
"""Characters of an artifact that are compared: no embedding model reads more, and payloads may be megabytes."""

TOLERANCE = 1e-6
"""Vectors are 32-bit: the similarity of equal texts may be this much below 1."""

_One: TypeAlias = "str | TextPredicate | Mapping[str, Any]"
SemanticMatch: TypeAlias = "_One | Sequence[_One]"
"""What `consumes(semantic_match=...)` takes."""

_FORMS = 'text, {"query": "...", "threshold": 0.4, "field": "..."} or a list of these, of which all must be reached'


class Vectors(Protocol):
    """An embedder with a memory. Both methods may be called from several threads."""

    @property
    def name(self) -> str:
        """Names the model."""
        ...

    def embed(self, texts: list[str]) -> Sequence[Sequence[float]]:
        """Return one vector of length 1 per text, in order. Blocks.

        Raises:
            ModelError: The model can't be reached or fails; `retryable` says whether to repeat it.
        """
        ...

    def missing(self, texts: list[str]) -> list[str]:
        """Return the texts, each once, for which `embed` would ask the model."""
        ...


@dataclass(frozen=True, slots=True)
class TextPredicate:
    """One query that the text of an artifact must be similar to."""

    query: str
    """What it should be about, in plain words."""
    threshold: float = DEFAULT_THRESHOLD
    """Least similarity, from 0 to 1."""
    field: str | None = None
    """The field whose value is compared; None: all text of the payload."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        query: object = self.query
        if not isinstance(query, str) or not query.strip():
            raise ConfigurationError(
                f"semantic_match query {self.query!r} is empty: say what artifacts should be about."
            )
        threshold: object = self.threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise ConfigurationError(
                f"semantic_match threshold {self.threshold!r} is not a number from 0 to 1."
            )
        if not 0 <= self.threshold <= 1:
            raise ConfigurationError(f"semantic_match threshold {self.threshold!r} must be from 0 to 1.")
        field: object = self.field
        if field is not None and (not isinstance(field, str) or not field):
            raise ConfigurationError(f"semantic_match field {self.field!r} must be the name of a field.")


def text_predicates(
    given: object, threshold: object, models: Sequence[type[BaseModel]], at: str
) -> tuple[TextPredicate, ...]:
    """Turn every form of `semantic_match=` into predicates; none for None.

    Args:
        given: A text, a dict, a TextPredicate, or a list of these.
        threshold: Of queries that name none of their own; 0 is the default of 0.4.
        models: The consumed types; a field must be one of each.
        at: Where it was declared, for messages.

    Raises:
        ConfigurationError: None of the forms, or a field that a type does not have.
    """
    if given is None:
        if threshold:
            raise ConfigurationError(f"{at} semantic_threshold needs semantic_match: say what to look for")
        return ()
    entries = list(given) if isinstance(given, list | tuple) else [given]
    if not entries:
        raise ConfigurationError(f"{at} semantic_match is an empty list; give {_FORMS}")
    try:
        # The number is checked even where every query has its own; what is no number is refused by the predicate.
        default = TextPredicate("any", threshold or DEFAULT_THRESHOLD).threshold  # type: ignore[arg-type]
        found = tuple(dict.fromkeys(_predicate(entry, default) for entry in entries))
    except ConfigurationError as error:
        raise ConfigurationError(f"{at} {error}") from None
    for predicate in found:
        for model in models:
            if predicate.field is not None and not _has_field(model, predicate.field):
                raise ConfigurationError(
                    f"{at} semantic_match names the field {predicate.field!r}, which {model.__name__} does not have; "
                    f"its fields are {', '.join(model.model_fields) or 'none'}"
                )
    return found


def similarity(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the similarity of two vectors of length 1: their dot product, from 0 to 1.

    Raises:
        ValueError: They have different lengths, so they come from different models.
    """
    if len(one) != len(other):
        raise ValueError(f"vectors of {len(one)} and {len(other)} numbers can't be compared")
    product: float = sum(map(mul, one, other))
    return min(1.0, max(0.0, product))


def text_of(model: BaseModel, field: str | None) -> str:
    """Return the text that is compared: of one field, or of all fields in declared order.

    All text is every str, and every str in a list, tuple or set, joined by spaces; nested models are not
    looked into. A field that holds a number or truth value is compared as Python writes it.
    """
    extra = model.__pydantic_extra__ or {}
    if field is not None:
        value = getattr(model, field, None) if field in type(model).model_fields else extra.get(field)
        parts = [str(value)] if isinstance(value, int | float) else _texts(value)
    else:
        parts = [part for name in type(model).model_fields for part in _texts(getattr(model, name, None))]
        parts += [part for value in extra.values() for part in _texts(value)]
    # A lone surrogate has no UTF-8, so no tokenizer takes it.
    text = " ".join(filter(None, parts))[:MAX_TEXT].encode("utf-8", "replace").decode()
    return text if text.strip() else ""


class Score(NamedTuple):
    """How one query fared."""

    predicate: TextPredicate
    similarity: float | None
    """None: there is no text to compare."""

    @property
    def passed(self) -> bool:
        """Whether the text is similar enough; no text never is."""
        return self.similarity is not None and self.similarity >= self.predicate.threshold - TOLERANCE


class Meaning:
    """The queries of one subscription, ready to be compared with artifacts. Safe to use from several threads."""

    __slots__ = ("_by_query", "predicates", "vectors")

    def __init__(self, predicates: tuple[TextPredicate, ...], vectors: Vectors | None) -> None:
        """Prepare; nothing is embedded before the first artifact comes.

        Args:
            predicates: At least one.
            vectors: Embeds; None: there is no embedder, and every comparison is an error.
        """
        self.predicates = predicates
        self.vectors = vectors
        self._by_query: list[Sequence[float]] | None = None

    def texts(self, model: BaseModel) -> list[str]:
        """Return everything that must be embedded to score a model."""
        texts = [text for text in (text_of(model, p.field) for p in self.predicates) if text]
        queries = [p.query for p in self.predicates] if texts and self._by_query is None else []
        return list(dict.fromkeys(queries + texts))

    def scores(self, model: BaseModel) -> Iterator[Score]:
        """Compare a model with every query.

        Raises:
            ConfigurationError: There is no embedder.
            ModelError: Embedding failed.
        """
        texts = [text_of(model, predicate.field) for predicate in self.predicates]
        given = list(dict.fromkeys(text for text in texts if text))
        if self.vectors is None:
            raise ConfigurationError(
                'semantic_match needs an embedder: Flock(embedder="onnx:/path/to/model"), or FLOCK_EMBEDDER.'
            )
        found = dict(zip(given, self.vectors.embed(given), strict=True)) if given else {}
        queries = self._queries(self.vectors) if given else []
        for position, (predicate, text) in enumerate(zip(self.predicates, texts, strict=True)):
            yield Score(predicate, similarity(queries[position], found[text]) if text else None)

    def _queries(self, vectors: Vectors) -> list[Sequence[float]]:
        # Kept here for good: artifacts must not push them out of the memory of the embedder.
        if self._by_query is None:
            self._by_query = list(vectors.embed([predicate.query for predicate in self.predicates]))
        return self._by_query


def describe(score: Score) -> tuple[str, bool, str]:
    """Return condition, outcome and value of a score, for explanations."""
    predicate = score.predicate
    query = predicate.query if len(predicate.query) <= 60 else predicate.query[:57] + "..."
    condition = f"semantic {query!r}" + (f" in {predicate.field}" if predicate.field else "")
    if score.similarity is None:
        return condition, False, "no text to compare"
    # Rounded down, so that 0.3999 does not read like the threshold that it misses.
    shown = math.floor(score.similarity * 1000 + TOLERANCE * 1000) / 1000
    return condition, score.passed, f"similarity {shown:.3f}, threshold {predicate.threshold:g}"


def _predicate(entry: object, threshold: float) -> TextPredicate:
    if isinstance(entry, TextPredicate):
        return entry
    if isinstance(entry, str):
        return TextPredicate(entry, threshold)
    if not isinstance(entry, Mapping):
        raise ConfigurationError(f"semantic_match takes {_FORMS}; got {entry!r}")
    fields: dict[str, Any] = {"threshold": threshold, **entry}
    unknown = fields.keys() - {"query", "threshold", "field"}
    if unknown or "query" not in fields:
        problem = f"does not know {sorted(map(str, unknown))}" if unknown else "has no 'query'"
        raise ConfigurationError(f"semantic_match {dict(entry)!r} {problem}; give {_FORMS}")
    return TextPredicate(**fields)


def _has_field(model: type[BaseModel], field: str) -> bool:
    return field in model.model_fields or model.model_config.get("extra") == "allow"


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [_plain(value)]
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value if isinstance(part, str)]
    if isinstance(value, set | frozenset):
        return sorted(_plain(part) for part in value if isinstance(part, str))
    return []


def _plain(text: str) -> str:
    """Return the characters of a str, also of a StrEnum or other subclass."""
    return str.__str__(text)
