"""A circuit breaker: closed, open, half-open. Pure; part of the durable state of its agent's home slot."""

from __future__ import annotations

from typing import Literal

import msgspec

from flock_ray.core.wire import BreakerSpec

__all__ = ["Breaker", "State"]

State = Literal["closed", "open", "half_open"]

STEPS = 10
"""Outcomes of the window of a failure rate are kept in so many steps: they count up to a tenth of it too long."""

NO_LIMIT = 2**31


class Breaker(msgspec.Struct, array_like=True):
    """What a breaker knows.

    Closed it counts outcomes. Open it lets nothing through until `until_us`; then it is half-open: exactly
    `half_open_attempts` are let through, and when all of them succeeded it closes, when one failed it opens again.
    An attempt that ends without an outcome, as by a cancel, gives its place to another one.
    """

    state: State = "closed"
    failures: int = 0
    """Consecutive ones, while it is closed."""
    outcomes: list[tuple[int, int, int]] = []
    """(begin of a step, outcomes, failures among them); only with a failure rate."""
    until_us: int = 0
    """While open: when it may become half-open; 0: somebody opened it by hand, and it stays open."""
    probes: int = 0
    """While half-open: attempts let through whose outcome is not known or was a success."""
    succeeded: int = 0
    changed_us: int = 0
    """When its state changed last; 0: never."""
    round: int = 0
    """How often it was half-open. An attempt of a former time says nothing about this one."""

    def allowance(self, spec: BreakerSpec, now_us: int) -> int:
        """Return how many attempts it would let through now."""
        if self.state == "closed":
            return NO_LIMIT
        if self.state == "half_open":
            return max(0, spec.half_open_attempts - self.probes)
        return spec.half_open_attempts if self.until_us and now_us >= self.until_us else 0

    def free_us(self) -> int:
        """Return when it lets something through by itself; 0: only an outcome or a hand changes it, or it does now."""
        return self.until_us if self.state == "open" else 0

    def admit(self, spec: BreakerSpec, now_us: int) -> int:
        """Let one attempt through that `allowance` allows; returns the number of its round, 0 when it is closed."""
        if self.state == "closed":
            return 0
        if self.state == "open":
            self._become("half_open", now_us)
            self.round += 1
        self.probes += 1
        return self.round

    def ended(self, spec: BreakerSpec, now_us: int, *, probe: int, failed: bool | None) -> bool:
        """Take an outcome; returns whether the state changed.

        Args:
            spec: The breaker's settings.
            now_us: Now.
            probe: What `admit` said of the attempt.
            failed: None: the attempt ended without an outcome, as by a cancel.
        """
        if self.state == "half_open":
            return probe == self.round and self._probed(spec, now_us, failed)
        if self.state == "open" or probe or failed is None:
            return False  # an attempt of before, or a probe of before somebody closed it by hand
        if spec.failure_rate:
            trip = self._too_many(spec, now_us, failed)
        else:
            self.failures = self.failures + 1 if failed else 0
            trip = self.failures >= spec.failure_threshold
        if trip:
            self._become("open", now_us, now_us + spec.recovery_us)
        return trip

    def reason(self, spec: BreakerSpec, *, failed: bool | None) -> str:
        """Say why an outcome would change the state; ask before `ended`."""
        if not failed:
            return "all attempts succeeded"
        if self.state == "half_open":
            return "an attempt failed"
        return "too many failures" if spec.failure_rate else f"after {self.failures + 1} failures in a row"

    def force(self, open_: bool, now_us: int) -> bool:
        """Open it until it is closed by hand, or close it; returns whether that changed anything."""
        wanted: State = "open" if open_ else "closed"
        changed = self.state != wanted or bool(open_ and self.until_us)
        if changed:
            self._become(wanted, now_us)
        elif not open_:  # who closes it by hand forgives what it has counted
            self.failures, self.outcomes = 0, []
        return changed

    def _probed(self, spec: BreakerSpec, now_us: int, failed: bool | None) -> bool:
        if failed:
            self._become("open", now_us, now_us + spec.recovery_us)
            return True
        if failed is None:
            self.probes -= 1
        else:
            self.succeeded += 1
        # Also after a cancel: a deploy may have lowered what is asked for.
        if self.succeeded >= spec.half_open_attempts:
            self._become("closed", now_us)
            return True
        return False

    def _become(self, state: State, now_us: int, until_us: int = 0) -> None:
        self.state, self.until_us, self.changed_us = state, until_us, now_us
        self.failures = self.probes = self.succeeded = 0
        self.outcomes = []

    def _too_many(self, spec: BreakerSpec, now_us: int, failed: bool) -> bool:
        """Count an outcome of the window; a success never opens the breaker."""
        width = max(1, spec.window_us // STEPS)
        outcomes = [step for step in self.outcomes if step[0] + width + spec.window_us > now_us]
        if outcomes and now_us < outcomes[-1][0] + width:
            begin, count, bad = outcomes[-1]
            outcomes[-1] = (begin, count + 1, bad + failed)
        else:
            outcomes.append((now_us, 1, int(failed)))
        self.outcomes = outcomes
        total = sum(step[1] for step in outcomes)
        bad = sum(step[2] for step in outcomes)
        # The quotient, as it was written: 0.7 * 10 is a little more than 7.
        return failed and total >= spec.failure_threshold and bad / total >= spec.failure_rate
