"""The local embedder with a real model: all-MiniLM-L6-v2."""

from __future__ import annotations

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from flock_ray import Flock, flock_type
from flock_ray.errors import ConfigurationError
from flock_ray.semantic import EmbeddingService, OnnxEmbedder
from flock_ray.testing import VirtualFlock, run_virtual
from tests.minilm import ModelMissingError, onnx_folder

pytestmark = pytest.mark.timeout(180)


@flock_type(name="minilm.Ticket")
class Ticket(BaseModel):
    title: str
    body: str = ""


@flock_type(name="minilm.Mail")
class Mail(BaseModel):
    text: str


@flock_type(name="minilm.Routed")
class Routed(BaseModel):
    to: str
    title: str


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder; without the model tests skip loudly, and in CI they fail."""
    try:
        return onnx_folder()
    except ModelMissingError as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def minilm(folder: Path) -> OnnxEmbedder:
    return OnnxEmbedder(folder)


@pytest.fixture(scope="module")
def service(minilm: OnnxEmbedder) -> EmbeddingService:
    return EmbeddingService(minilm)


def test_similarities_are_those_that_sentence_transformers_documents(service: EmbeddingService) -> None:
    """The quick start of sentence-transformers prints these numbers for this model."""
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]

    found = [[round(service.similarity(one, other), 4) for other in texts] for one in texts]

    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    assert found == [pytest.approx(row, abs=2e-4) for row in expected]


@pytest.mark.parametrize(
    ("text", "paraphrase", "unrelated"),
    [
        ("I want my money back", "Please refund my payment", "The app crashes when I log in"),
        ("How do I reset my password?", "I can't remember my login credentials", "Pasta needs eight minutes"),
        ("The server is on fire", "There is an outage in production", "We'd like to upgrade our plan"),
        ("My parcel never arrived", "The package got lost in delivery", "Please delete my account"),
    ],
)
def test_paraphrases_are_closer_than_unrelated_texts(
    service: EmbeddingService, text: str, paraphrase: str, unrelated: str
) -> None:
    assert service.similarity(text, paraphrase) > service.similarity(text, unrelated) + 0.1


def test_a_vector_does_not_depend_on_its_batch(minilm: OnnxEmbedder) -> None:
    texts = [
        "short",
        "a somewhat longer text about invoices",
        "x " * 400,
        "",
        "日本語のテキスト",
        "short",
    ] * 9

    together = minilm.embed(texts)

    for text, vector in zip(texts[:6], together[:6], strict=True):
        [alone] = minilm.embed([text])
        assert vector == pytest.approx(alone, abs=1e-5)
        assert sum(number * number for number in vector) == pytest.approx(1.0, abs=1e-5)
    assert together[0] == pytest.approx(together[5], abs=1e-5)


@pytest.mark.parametrize(
    "text", ["\x00" * 50, "🙂" * 5000, "a" * 32_768, " \n\t ", "\u202e\u200b", "word " * 6000]
)
def test_hostile_texts_have_vectors_too(minilm: OnnxEmbedder, text: str) -> None:
    [vector] = minilm.embed([text])

    assert len(vector) == 384


def test_what_is_behind_max_tokens_is_not_read(folder: Path) -> None:
    short = OnnxEmbedder(folder, max_tokens=8)

    one, other = short.embed(["refund my money now please " + tail for tail in ("a b c d e", "x y z")])

    assert one == pytest.approx(other, abs=1e-6)


def test_it_travels_without_its_model_and_loads_again(minilm: OnnxEmbedder) -> None:
    minilm.embed(["loaded"])
    data = pickle.dumps(minilm)

    assert len(data) < 1000
    assert pickle.loads(data).embed(["refund"])[0] == pytest.approx(minilm.embed(["refund"])[0])


def test_threads_share_one_model(folder: Path) -> None:
    embedder = OnnxEmbedder(folder)
    found: dict[int, list[float]] = {}

    def use(number: int) -> None:
        [found[number]] = embedder.embed([f"text {number}"])

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    expected = embedder.embed([f"text {number}" for number in range(4)])
    assert [found[number] for number in range(4)] == [pytest.approx(vector, abs=1e-5) for vector in expected]


@pytest.mark.parametrize("file", ["model.onnx", "tokenizer.json"])
def test_a_broken_or_missing_file_is_one_sentence(folder: Path, tmp_path: Path, file: str) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("model.onnx", "tokenizer.json"):
        (broken / name).symlink_to(folder / name)
    (broken / file).unlink()
    with pytest.raises(ConfigurationError, match=rf"No {file} in .*broken"):
        OnnxEmbedder(broken)

    (broken / file).write_text("garbage")
    embedder = OnnxEmbedder(broken)
    with pytest.raises(ConfigurationError, match="can't be loaded"):
        embedder.embed(["x"])
    shutil.rmtree(broken)
    with pytest.raises(ConfigurationError, match=r"No model\.onnx"):
        embedder.embed(["x"])


BILLING = "billing, payments and refunds"
TECH = "technical problem, error or crash"
TICKETS = {
    "I was charged twice and want my money back": "billing",
    "My invoice shows the wrong amount, please correct the payment": "billing",
    "The application crashes with an error when I log in": "tech",
    "Error 500 when uploading a file, technical problem": "tech",
}


def test_tickets_find_their_desk_by_meaning(folder: Path) -> None:
    async def main() -> dict[str, str]:
        found: dict[str, str] = {}

        def desk(name: str) -> Callable[[Ticket], None]:
            return lambda ticket: found.update({ticket.title: found.get(ticket.title, "") + name})

        async with VirtualFlock(embedder=f"onnx:{folder}") as flock:
            flock.agent("billing").consumes(Ticket, semantic_match=BILLING, semantic_threshold=0.3).runs(
                desk("billing")
            )
            flock.agent("tech").consumes(Ticket, semantic_match=TECH, semantic_threshold=0.3).runs(
                desk("tech")
            )
            await flock.publish_many(
                [Ticket(title=title) for title in [*TICKETS, "What a lovely day for a walk"]]
            )
            await flock.run_until_idle()
        return found

    assert run_virtual(main()) == TICKETS


async def test_workers_on_ray_embed_what_agents_publish(
    folder: Path, new_flock: Callable[..., Flock]
) -> None:
    def read(mail: Mail) -> Ticket:
        return Ticket(title=mail.text)

    def route(name: str) -> Callable[[Ticket], Routed]:
        def routed(ticket: Ticket) -> Routed:
            return Routed(to=name, title=ticket.title)

        return routed

    flock = new_flock(embedder=OnnxEmbedder(folder))
    flock.agent("reader").consumes(Mail).publishes(Ticket).runs(read)
    for name, query in (("billing", BILLING), ("tech", TECH)):
        flock.agent(name).consumes(Ticket, semantic_match=query, semantic_threshold=0.3).publishes(
            Routed
        ).runs(route(name))
    await flock.publish_many([Mail(text=text) for text in TICKETS])
    await flock.run_until_idle()

    assert {made.title: made.to for made in await flock.store.get_by_type(Routed)} == TICKETS
