"""What customers pay."""

from examples.llm.scene.discounts import discount


def total(cents: list[int], age: int, weekday: str) -> int:
    return round(sum(cents) * (1.0 - discount(age, weekday)))
