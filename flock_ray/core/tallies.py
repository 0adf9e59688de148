"""How an aggregate decides: a tally that grows by one ballot at a time. Pure, and told nothing of time.

A tally knows at any moment what it would decide now, and whether what may still come could change it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from flock_ray.core.ballots import COLLECTING, EXTREMES, UNIT, AggregateRule, Ballot, Decision

State = Literal["undecided", "decided", "impossible"]


class Tally:
    """What the ballots of one group come to so far."""

    __slots__ = ("_abstained", "_best", "_reached", "_rule", "_score", "_totals", "seen")

    def __init__(self, rule: AggregateRule, ballots: Iterable[Ballot] = ()) -> None:
        """Count ballots by a rule, in the order in which they came."""
        self._rule = rule
        self.seen = 0
        """Ballots so far, abstentions among them."""
        self._abstained = 0
        self._totals: dict[bytes, int] = {}
        """By value in the order in which they were first named: votes, weights or points, in millionths."""
        self._reached: bytes | None = None
        """Of a quorum: the value that reached it first."""
        self._score = 0.0
        self._best: list[int] = []
        """Places of the inputs with the best score."""
        for ballot in ballots:
            self.add(ballot)

    @property
    def voted(self) -> int:
        """Ballots so far that did not abstain."""
        return self.seen - self._abstained

    def add(self, ballot: Ballot) -> None:
        """Count one more."""
        place, strategy = self.seen, self._rule.strategy
        self.seen += 1
        if strategy in COLLECTING:
            return
        if strategy in EXTREMES:
            self._compare(place, ballot.score)
        elif not ballot.choices:
            self._abstained += 1
        elif strategy == "rank":
            last = len(ballot.choices) - 1
            for position, choice in enumerate(ballot.choices):
                self._totals[choice] = self._totals.get(choice, 0) + (last - position) * UNIT
        else:
            choice = ballot.choices[0]
            weight = ballot.weight if strategy == "weighted" else UNIT
            total = self._totals[choice] = self._totals.get(choice, 0) + weight
            if self._reached is None and total >= self._rule.number * UNIT:
                self._reached = choice

    def _compare(self, place: int, score: float | None) -> None:
        if score is None:
            self._abstained += 1
            return
        if self._best and score == self._score:
            self._best.append(place)
        elif not self._best or (score > self._score) == (self._rule.strategy == "max_by"):
            self._score, self._best = score, [place]

    def state(self, remaining: int | None) -> State:
        """Say whether anything that may still come could change the outcome.

        Args:
            remaining: How many more can come at most; None: nobody knows.

        Returns:
            decided: the outcome is certain; impossible: it is certain that there is none; else undecided.
        """
        if remaining == 0:
            return "impossible" if self.decide("").outcome == "none" else "decided"
        strategy, number = self._rule.strategy, self._rule.number
        if strategy == "first_n":
            return "decided" if self.seen >= number else "undecided"
        if strategy == "unanimous":
            return "impossible" if len(self._totals) > 1 else "undecided"
        if strategy == "quorum":
            if self._reached is not None:
                return "decided"
            most = max(self._totals.values(), default=0) // UNIT
            return "impossible" if remaining is not None and most + remaining < number else "undecided"
        if strategy in ("majority", "weighted") and remaining is not None:
            return "decided" if self._is_ahead(remaining) else "undecided"
        return "undecided"

    def _is_ahead(self, remaining: int) -> bool:
        """Say whether the leader can't be caught, also not by a value that nobody has named yet."""
        rule = self._rule
        heaviest = UNIT if rule.strategy == "majority" else rule.max_weight
        if not self._totals or not heaviest:
            return False
        leader = max(self._totals, key=self._totals.__getitem__)  # the first of those that are equal
        lead, swing, is_before = self._totals[leader], remaining * heaviest, True
        for choice, total in (*self._totals.items(), (b"", 0)):
            if choice == leader:
                is_before = False  # those behind it were named later: they lose a tie
                continue
            if total + swing > lead or (total + swing == lead and (is_before or rule.tie != "first")):
                return False
        return True

    def decide(self, reason: str, *, missing: int = 0) -> Decision:
        """Return what is decided on what has come so far."""
        rule, totals = self._rule, self._totals
        outcome, choices, places = "decided", tuple[bytes, ...](), tuple[int, ...]()
        if rule.strategy in EXTREMES:
            outcome, places = self._break_tie(tuple(self._best))
        elif rule.strategy == "rank":
            # Sorting is stable: of equals, the one that was named first.
            choices = tuple(sorted(totals, key=lambda choice: -totals[choice]))
            outcome = "decided" if choices else "none"
            leaders = [c for c in choices if totals[c] == totals[choices[0]]]
            if len(leaders) > 1 and rule.tie != "first":
                outcome, choices = self._break_tie(tuple(leaders))
        elif rule.strategy == "quorum":
            outcome, choices = ("none", ()) if self._reached is None else ("decided", (self._reached,))
        elif rule.strategy == "unanimous":
            outcome, choices = ("decided", tuple(totals)) if len(totals) == 1 else ("none", ())
        elif rule.strategy not in COLLECTING:
            most = max(totals.values(), default=0)
            outcome, choices = self._break_tie(tuple(choice for choice in totals if totals[choice] == most))
        return Decision(
            reason, outcome, choices, places, tuple(totals.items()), self.voted, self._abstained, missing
        )

    def told(self) -> str:
        """Write what has come so far as a user would read it."""
        totals = sorted(self._totals.items(), key=lambda entry: -entry[1])
        counts = ", ".join(
            f"{choice.decode(errors='replace')}: {total / UNIT:g}" for choice, total in totals[:5]
        )
        abstained = f", {self._abstained} abstain" if self._abstained else ""
        return f"has {self.seen}" + (f" ({counts}{abstained})" if counts or abstained else "")

    def _break_tie(self, best: tuple[Any, ...]) -> tuple[str, tuple[Any, ...]]:
        if len(best) <= 1 or self._rule.tie == "first":
            return ("decided" if best else "none"), best[:1]
        return ("tied", best) if self._rule.tie == "ask" else ("none", ())
