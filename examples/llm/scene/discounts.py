"""What customers need not pay."""

PENSIONERS = 0.10
SUNDAYS = 0.05


def discount(age: int, weekday: str) -> float:
    share = 0.0
    if age >= 65:
        share += PENSIONERS
    if weekday == "sunday":
        share = SUNDAYS
    return share
