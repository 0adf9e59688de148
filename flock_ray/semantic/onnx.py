"""Embeds on this machine's CPU, with a sentence-transformers model as ONNX. Needs the extra `semantic`."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from flock_ray.errors import ConfigurationError, ModelError, safe_error_text

__all__ = ["OnnxEmbedder"]

DEFAULT_MAX_TOKENS = 256
MODEL_FILES = ("model.onnx", "onnx/model.onnx")
"""Where exports of sentence-transformers have the graph, in order of preference."""


class OnnxEmbedder:
    """A folder with `model.onnx` (or `onnx/model.onnx`) and `tokenizer.json`, as published with such models.

    The model is loaded at the first text, once per process, and never travels: every machine of the cluster
    needs the folder under the same path. Safe to use from several threads.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        max_tokens: int | None = None,
        batch_size: int = 32,
        threads: int = 1,
    ) -> None:
        """Look for the files; nothing is loaded.

        Args:
            path: The folder.
            name: Names the model; None is the folder's name.
            max_tokens: The rest of a longer text is not read; None is what the folder says, else 256.
            batch_size: Texts that the model takes at once; more memory, and faster up to a point.
            threads: Of the model, per process.

        Raises:
            ConfigurationError: A file is missing, or a number is below 1.
        """
        self._folder = Path(path).expanduser().absolute()
        self.name = name or f"onnx:{self._folder.name}"
        for label, number in (("max_tokens", max_tokens), ("batch_size", batch_size), ("threads", threads)):
            if number is not None and (type(number) is not int or number < 1):
                raise ConfigurationError(f"OnnxEmbedder({label}={number!r}): give a whole number from 1.")
        self._max_tokens = max_tokens
        self._batch_size = batch_size
        self._threads = threads
        self._find()
        self._model: _Model | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """Show the folder."""
        return f"OnnxEmbedder({str(self._folder)!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the loaded model."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_model", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive; the model is loaded here at the first text."""
        self.__dict__.update(state, _model=None, _lock=threading.Lock())

    def embed(self, texts: list[str]) -> list[list[float]]:
        """Return one vector of length 1 per text, in order. Blocks; a thread of its own may do other things.

        Raises:
            ConfigurationError: The extra `semantic` or a file is missing, or the model can't be loaded.
            ModelError: The model failed; retryable.
        """
        model = self._loaded()
        try:
            return model.embed(texts, self._batch_size)
        except Exception as error:
            kind, _ = safe_error_text(error)
            raise ModelError(f"The embedding model {self.name!r} failed: {kind}. Try again.") from error

    def _find(self) -> tuple[Path, Path]:
        graph = next((self._folder / file for file in MODEL_FILES if (self._folder / file).is_file()), None)
        tokenizer = self._folder / "tokenizer.json"
        if graph is None or not tokenizer.is_file():
            missing = "model.onnx" if graph is None else "tokenizer.json"
            raise ConfigurationError(
                f"No {missing} in {str(self._folder)!r} on this machine. An embedding model is a folder with "
                "model.onnx and tokenizer.json; every machine of the cluster needs it under the same path."
            )
        return graph, tokenizer

    def _loaded(self) -> _Model:
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> _Model:
        graph, tokenizer = self._find()
        try:
            import numpy as np
            import onnxruntime  # type: ignore[import-untyped]  # ships no types
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ConfigurationError(
                f"OnnxEmbedder needs {error.name}: install flock-ray[semantic], on the workers too."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            tokens = Tokenizer.from_file(str(tokenizer))
        except Exception as error:
            raise ConfigurationError(
                f"The embedding model in {str(self._folder)!r} can't be loaded: {': '.join(safe_error_text(error))}"
            ) from error
        # What tokenizer.json says of padding is for training: here each batch is as long as its longest text.
        tokens.no_padding()
        tokens.enable_truncation(self._max_tokens or self._declared_max_tokens(tokens))
        pads = (tokens.token_to_id(pad) for pad in ("[PAD]", "<pad>"))
        pad = next((found for found in pads if found is not None), 0)
        outputs = [output.name for output in session.get_outputs()]
        return _Model(
            np, session, tokens, pad,
            inputs=frozenset(given.name for given in session.get_inputs()),
            output="sentence_embedding" if "sentence_embedding" in outputs else outputs[0],
            first_token=bool(self._json("1_Pooling/config.json").get("pooling_mode_cls_token")),
        )  # fmt: skip

    def _declared_max_tokens(self, tokens: Any) -> int:
        declared = self._json("sentence_bert_config.json").get("max_seq_length")
        return int(declared or (tokens.truncation or {}).get("max_length") or DEFAULT_MAX_TOKENS)

    def _json(self, file: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self._folder / file).read_text())
        except (OSError, ValueError):
            return {}
        return found


class _Model(NamedTuple):
    """A model in memory."""

    np: Any
    session: Any
    tokens: Any
    pad: int
    inputs: frozenset[str]
    output: str
    first_token: bool
    """Whether a text's vector is its first token's and not the mean of all."""

    def embed(self, texts: list[str], batch_size: int) -> list[list[float]]:
        encoded = self.tokens.encode_batch(texts)
        # Texts of like length together: padding costs as much as text.
        order = sorted(range(len(texts)), key=lambda position: len(encoded[position].ids))
        vectors: list[list[float]] = [[] for _ in texts]
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            for position, vector in zip(part, self._run([encoded[i] for i in part]), strict=True):
                vectors[position] = vector
        return vectors

    def _run(self, encoded: list[Any]) -> list[list[float]]:
        np = self.np
        shape = (len(encoded), max(1, max(len(entry.ids) for entry in encoded)))
        given = {
            "input_ids": np.full(shape, self.pad, np.int64),
            "attention_mask": np.zeros(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for row, entry in enumerate(encoded):
            size = len(entry.ids)
            given["input_ids"][row, :size] = entry.ids
            given["attention_mask"][row, :size] = 1
        fed = {name: array for name, array in given.items() if name in self.inputs}
        [made] = self.session.run([self.output], fed)
        made = made.astype(np.float32)
        if made.ndim == 3:
            made = made[:, 0] if self.first_token else self._mean(made, given["attention_mask"])
        norms = np.linalg.norm(made, axis=1, keepdims=True)
        vectors: list[list[float]] = (made / np.maximum(norms, 1e-12)).tolist()
        return vectors

    def _mean(self, hidden: Any, mask: Any) -> Any:
        weights = mask[:, :, None].astype(self.np.float32)
        return (hidden * weights).sum(axis=1) / self.np.maximum(weights.sum(axis=1), 1e-9)
