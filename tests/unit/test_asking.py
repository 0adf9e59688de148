"""`flock.why(...)` and `flock.check()`."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from flock_ray import When, flock_type, only_for
from flock_ray.model import ToolCall
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual


@flock_type(name="asking.Claim")
class Claim(BaseModel):
    n: int


@flock_type(name="asking.Proof")
class Proof(BaseModel):
    n: int


def test_why_shows_every_condition_with_its_value_and_where_the_artifact_is() -> None:
    async def main() -> None:
        async def slow(claim: Claim) -> Proof:
            await asyncio.sleep(100)
            return Proof(n=claim.n)

        async with VirtualFlock(shards=2) as flock:
            flock.agent("slow").consumes(Claim, where=lambda c: c.n > 0, tags={"t"}).publishes(Proof).runs(
                slow
            )
            flock.agent("pair").consumes(Claim, Proof).runs(lambda c, p: None)
            proven = When.correlation(Proof).count_at_least(2)
            flock.agent("held").consumes(Claim, activation=proven).runs(lambda c: None)
            flock.agent("fussy").consumes(Claim, where=[lambda c: c.n > 0, lambda c: c.n > 5]).runs(
                lambda c: None
            )
            flock.agent("blind").consumes(Claim).runs(lambda c: None)
            claim = await flock.publish(
                Claim(n=1),
                tags={"t"},
                visibility=only_for("slow", "pair", "held", "fussy"),
                correlation_id="w",
            )
            await asyncio.sleep(10)
            why = await flock.why(claim.id)
            answers = {answer.subscription.partition("/")[0]: answer for answer in why.answers}
            assert {name: answer.state for name, answer in answers.items()} == {
                "slow": "running", "pair": "waiting", "held": "waiting", "fussy": "not matched", "blind": "not matched"
            }  # fmt: skip
            assert [(name, ok) for name, ok, _ in answers["fussy"].conditions][-2:] == [
                ("where[0]", True), ("where[1]", False)
            ]  # fmt: skip
            assert answers["pair"].detail == "waits for 1 x asking.Proof"
            assert "activation condition" in answers["held"].detail
            assert "NO  visibility" in str(why)
            await flock.run_until_idle()
            after = await flock.why(claim)
            assert [(type_name, agent) for _, type_name, agent in after.made] == [("asking.Proof", "slow")]
            assert {a.state for a in after.answers if a.subscription.startswith(("slow", "pair"))} == {"done"}

    run_virtual(main())


def test_why_says_that_nobody_listens_and_when_a_delayed_artifact_is_due() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Claim).runs(lambda c: None)
            lonely = await flock.publish(Proof(n=1))
            later = await flock.publish(Claim(n=1), delay=timedelta(days=1))
            assert "nobody consumes asking.Proof" in str(await flock.why(lonely))
            assert "delayed (until 2026-01-02" in str(await flock.why(later))

    run_virtual(main())


def test_why_of_an_agent_names_what_it_consumes_and_its_pool() -> None:
    async def main() -> None:
        async with VirtualFlock() as flock:
            agent = flock.agent("a").consumes(Claim, Proof).runs(lambda c, p: None)
            text = str(await flock.why(agent))
            assert "consumes Claim + Proof" in text
            assert "pool shared" in text
            assert str(await flock.why("a")) == text

    run_virtual(main())


def test_check_knows_what_was_published_so_far() -> None:
    async def main() -> tuple[int, int]:
        async with VirtualFlock() as flock:
            flock.agent("a").consumes(Claim).runs(lambda c: None)
            before = len(flock.check())
            await flock.publish(Claim(n=1))
            return before, len(flock.check())

    assert run_virtual(main()) == (1, 0)
    assert VirtualFlock().check() == []


def test_why_says_which_model_prompt_repairs_and_tools_led_to_an_artifact() -> None:
    def look_up(n: int) -> str:
        """Look a claim up."""
        return f"claim {n} is fine"

    model = ScriptedModel([ToolCall("c1", "look_up", '{"n": 1}'), {"n": "one"}, {"n": 7}], model="some/model")

    async def main() -> None:
        async with VirtualFlock(shards=2, language_model=model) as flock:
            flock.agent("prover").consumes(Claim).publishes(Proof).with_tools([look_up])
            flock.agent("plain").consumes(Proof).runs(lambda proof: None)
            claim = await flock.publish(Claim(n=1))
            await flock.run_until_idle()
            proof = (await flock.store.list_by_type("asking.Proof"))[0]
            why = await flock.why(proof)

            assert [line.partition(":")[0] for line in why.how] == [
                "model some/model (asked was test/scripted)",
                "tool look_up",
                "model some/model (asked was test/scripted)",
                "repair 1",
                "model some/model (asked was test/scripted)",
            ]
            assert "prompt scripted-1, " in why.how[0]
            assert "asked again for all" in why.how[3]
            assert "by: repair 1: asking.Proof.n" in str(why) or "by: repair 1: Proof.n" in str(why)
            assert (await flock.why(claim)).how == ()

    run_virtual(main())
