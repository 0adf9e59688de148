"""AND and OR: an agent that waits for two facts of one case, and one that takes either.

`.consumes(A, B)` waits for both, per workflow: two patients are never mixed.
`.consumes(A).consumes(B)` takes either.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from flock_ray import Flock, flock_type


@flock_type
class XRay(BaseModel):
    patient: str
    finding: str


@flock_type
class BloodTest(BaseModel):
    patient: str
    crp: float


@flock_type
class Diagnosis(BaseModel):
    patient: str
    text: str


@flock_type
class LogLine(BaseModel):
    text: str


def diagnose(xray: XRay, blood: BloodTest) -> Diagnosis:
    text = "pneumonia" if xray.finding == "opacity" and blood.crp > 100 else "observe"
    return Diagnosis(patient=xray.patient, text=text)


def log(fact: XRay | BloodTest) -> LogLine:
    return LogLine(text=f"{type(fact).__name__} of {fact.patient} arrived")


async def main() -> None:
    async with Flock() as flock:
        flock.agent("diagnostician").consumes(XRay, BloodTest).publishes(Diagnosis).runs(diagnose)
        flock.agent("logger").consumes(XRay).consumes(BloodTest).publishes(LogLine).runs(log)

        with flock.workflow("patient-ada"):
            await flock.publish(XRay(patient="Ada", finding="opacity"))
        with flock.workflow("patient-bob"):
            await flock.publish(BloodTest(patient="Bob", crp=3.0))
        await flock.run_until_idle(timeout=60)
        print("Bob:", (await flock.workflow_status("patient-bob")).waiting_for)

        with flock.workflow("patient-ada"):
            await flock.publish(BloodTest(patient="Ada", crp=180.0))
        await flock.run_until_idle(timeout=60)

        for diagnosis in await flock.store.get_by_type(Diagnosis):
            print(f"{diagnosis.patient}: {diagnosis.text}")
        print(await flock.store.count(LogLine), "log lines")


if __name__ == "__main__":
    asyncio.run(main())
