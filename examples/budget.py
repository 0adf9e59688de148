"""A budget: a fifth of a cent per tenant; the dear model writes until most of it is used, then the cheap one.

Runs offline: a scripted model stands for the provider, at real prices. On Ray it is the same, with `Flock(...)`.
"""

from __future__ import annotations

from pydantic import BaseModel

from flock_ray import Budget, ModelSettings, WorkflowError, degrade, flock_type
from flock_ray.engines.llm import LiteLLMEngine
from flock_ray.model import ModelRequest
from flock_ray.testing import ScriptedModel, VirtualFlock, run_virtual

DEAR, CHEAP = "openai/dear", "openai/cheap"


@flock_type
class Topic(BaseModel):
    text: str


@flock_type
class Slogan(BaseModel):
    text: str
    written_by: str


def write(request: ModelRequest) -> Slogan:
    return Slogan(text="Fresh, fresher, ours! " * 10, written_by=request.model)


async def main() -> None:
    flock = VirtualFlock(
        DEAR,
        language_model=ScriptedModel(write, delay_s=1.0),
        models={
            DEAR: ModelSettings(input_usd_per_mtok=0.40, output_usd_per_mtok=1.60),
            CHEAP: ModelSettings(input_usd_per_mtok=0.04, output_usd_per_mtok=0.16),
        },
        budgets=[Budget(usd=0.002, per="tenant", on_exceeded=degrade(CHEAP, at=0.8))],
    )
    # The worst case of a call is reserved: say how long answers can be.
    engine = LiteLLMEngine(max_tokens=200)
    flock.agent("writer").consumes(Topic).publishes(Slogan).with_engines(engine)
    async with flock:
        for tenant, topics in (("acme", 100), ("globex", 3)):
            for number in range(topics):
                await flock.publish(Topic(text=f"Topic {number}"), tenant=tenant)
                await flock.run_until_idle()
        slogans = await flock.store.get_by_type(Slogan)
        refused = await flock.store.get_by_type(WorkflowError)
        by = [slogan.written_by for slogan in slogans]
        print(f"{by.count(DEAR)} slogans by {DEAR}, {by.count(CHEAP)} by {CHEAP}, {len(refused)} refused")
        for status in await flock.budgets.list(per="tenant"):
            print(f"{status.account}: spent ${status.spent_usd:.6f} of ${status.limit_usd}")

        await flock.budgets.add("tenant:acme", usd=0.01, by="sales")
        await flock.publish(Topic(text="One more"), tenant="acme")
        await flock.run_until_idle()
        print("after a raise:", (await flock.store.get_by_type(Slogan))[-1].written_by)


if __name__ == "__main__":
    run_virtual(main())
