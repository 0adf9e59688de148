from __future__ import annotations

import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from flock_ray.core.visibility import (
    AfterVisibility,
    AgentIdentity,
    AllOfVisibility,
    AnyVisibility,
    LabelledVisibility,
    PrivateVisibility,
    PublicVisibility,
    TenantVisibility,
    Visibility,
    decode_visibility,
    earliest_visible,
    earliest_visible_us,
    encode_visibility,
    narrow,
    only_for,
)
from flock_ray.errors import ConfigurationError

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANNA = AgentIdentity(name="anna", labels=frozenset({"doctor", "senior"}), tenant_id="north")
BEN = AgentIdentity(name="ben")

names = st.sampled_from(["anna", "ben", "cleo", "dora"])
agents = st.builds(
    AgentIdentity,
    name=names,
    labels=st.frozensets(st.sampled_from(["x", "y", "z"])),
    tenant_id=st.none() | st.sampled_from(["north", "south"]),
)
simple = st.one_of(
    st.builds(PublicVisibility),
    st.builds(PrivateVisibility, agents=st.frozensets(names)),
    st.builds(LabelledVisibility, required_labels=st.frozensets(st.sampled_from(["x", "y", "z"]))),
    st.builds(TenantVisibility, tenant_id=st.none() | st.sampled_from(["north", "south"])),
)
delays = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=1000))
visibilities: st.SearchStrategy[Visibility] = st.recursive(
    simple,
    lambda inner: (
        st.builds(AfterVisibility, ttl=delays, then=st.none() | inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: AllOfVisibility(parts=tuple(parts)))
    ),
    max_leaves=6,
)
ages = st.none() | st.timedeltas(min_value=timedelta(days=-1), max_value=timedelta(days=2000))


def _allows(visibility: Visibility, agent: AgentIdentity, age: timedelta | None) -> bool:
    now = None if age is None else T0 + age
    return visibility.allows(agent, now=now, created_at=T0)


def test_public_allows_everybody() -> None:
    assert PublicVisibility().allows(BEN)


def test_private_allows_the_named_agents() -> None:
    visibility = PrivateVisibility(agents=frozenset({"anna"}))
    assert visibility.allows(ANNA)
    assert not visibility.allows(BEN)
    assert not PrivateVisibility().allows(ANNA)


def test_labelled_needs_every_label() -> None:
    assert LabelledVisibility(required_labels=frozenset({"doctor"})).allows(ANNA)
    assert LabelledVisibility(required_labels=frozenset({"doctor", "senior"})).allows(ANNA)
    assert not LabelledVisibility(required_labels=frozenset({"doctor", "nurse"})).allows(ANNA)
    assert not LabelledVisibility(required_labels=frozenset({"doctor"})).allows(BEN)


def test_tenant() -> None:
    assert TenantVisibility(tenant_id="north").allows(ANNA)
    assert not TenantVisibility(tenant_id="south").allows(ANNA)
    assert not TenantVisibility(tenant_id="north").allows(BEN)
    assert TenantVisibility().allows(BEN)


def test_after_opens_exactly_at_its_time() -> None:
    visibility = AfterVisibility(ttl=HOUR)
    assert not _allows(visibility, BEN, HOUR - timedelta(microseconds=1))
    assert _allows(visibility, BEN, HOUR)


def test_after_then_narrows_for_good() -> None:
    visibility = AfterVisibility(ttl=HOUR, then=only_for("anna"))
    assert _allows(visibility, ANNA, 2 * HOUR)
    assert not _allows(visibility, BEN, 2 * HOUR)


def test_nested_after_counts_from_the_creation() -> None:
    visibility = AfterVisibility(ttl=HOUR, then=AfterVisibility(ttl=3 * HOUR))
    assert not _allows(visibility, BEN, 2 * HOUR)
    assert _allows(visibility, BEN, 3 * HOUR)


@pytest.mark.parametrize(
    ("now", "created_at"),
    [(None, None), (T0 + 2 * HOUR, None), (None, T0)],
    ids=["neither", "now", "created"],
)
def test_after_stays_closed_without_times(now: datetime | None, created_at: datetime | None) -> None:
    assert not AfterVisibility(ttl=HOUR).allows(BEN, now=now, created_at=created_at)


def test_after_survives_an_enormous_delay() -> None:
    assert not _allows(AfterVisibility(ttl=timedelta.max), BEN, HOUR)
    assert earliest_visible(AfterVisibility(ttl=timedelta.max), BEN, 0.0) == timedelta.max.total_seconds()


def test_after_refuses_a_negative_delay() -> None:
    with pytest.raises(ValidationError):
        AfterVisibility(ttl=-HOUR)


@pytest.mark.parametrize("visibility", [PublicVisibility(), AfterVisibility(ttl=HOUR)])
def test_naive_datetimes_are_refused(visibility: Visibility) -> None:
    with pytest.raises(ConfigurationError, match=r"`now` is a naive datetime.*UTC"):
        visibility.allows(BEN, now=datetime(2026, 1, 1), created_at=T0)
    with pytest.raises(ConfigurationError, match="`created_at` is a naive"):
        visibility.allows(BEN, now=T0, created_at=datetime(2026, 1, 1))


def test_times_in_other_zones_are_compared_as_instants() -> None:
    from zoneinfo import ZoneInfo

    now = (T0 + HOUR).astimezone(ZoneInfo("Asia/Tokyo"))
    assert AfterVisibility(ttl=HOUR).allows(BEN, now=now, created_at=T0)


def test_models_are_frozen_and_know_their_fields() -> None:
    with pytest.raises(ValidationError):
        only_for("anna").agents = frozenset({"ben"})
    with pytest.raises(ValidationError):
        PrivateVisibility.model_validate({"agents": ["anna"], "labels": ["x"]})


def test_only_for() -> None:
    assert only_for("anna", "ben") == PrivateVisibility(agents=frozenset({"anna", "ben"}))
    for wrong in ((), ("",)):
        with pytest.raises(ConfigurationError, match="needs agent names"):
            only_for(*wrong)


def test_w8_after_visibility_says_when_it_opens_so_that_matching_can_deliver_later() -> None:
    # Given an artifact that only anna may see, an hour after its creation
    visibility = AfterVisibility(ttl=HOUR, then=only_for("anna"))

    # Then the moment is known in advance, and never comes for others
    assert earliest_visible(visibility, ANNA, 1000.0) == 4600.0
    assert earliest_visible(visibility, BEN, 1000.0) is None
    assert earliest_visible_us(visibility, ANNA, 1_000_000_007) == 4_600_000_007
    assert earliest_visible(None, BEN, 1000.0) == 1000.0
    assert earliest_visible_us(None, BEN, 7) == 7


@given(visibilities, agents)
def test_earliest_visible_is_the_first_moment_at_which_allows_says_yes(
    visibility: Visibility, agent: AgentIdentity
) -> None:
    created_us = 1_000_000
    earliest = earliest_visible_us(visibility, agent, created_us)
    if earliest is None:
        assert not _allows(visibility, agent, timedelta(days=5000))
        assert earliest_visible(visibility, agent, 1.0) is None
        return
    age = timedelta(microseconds=earliest - created_us)
    assert _allows(visibility, agent, age)
    if age:
        assert not _allows(visibility, agent, age - timedelta(microseconds=1))
    assert earliest_visible(visibility, agent, 1.0) == pytest.approx(earliest / 1e6)


@given(visibilities, agents, ages, ages)
def test_access_only_grows_with_time(
    visibility: Visibility, agent: AgentIdentity, one: timedelta | None, other: timedelta | None
) -> None:
    if one is not None and other is not None:
        one, other = sorted((one, other))
    if other is None:
        one, other = None, one
    assert not _allows(visibility, agent, one) or _allows(visibility, agent, other)


@given(st.lists(visibilities, min_size=1, max_size=4), agents, ages)
def test_all_of_allows_exactly_when_every_part_does(
    parts: list[Visibility], agent: AgentIdentity, age: timedelta | None
) -> None:
    expected = all(_allows(part, agent, age) for part in parts)
    assert _allows(AllOfVisibility.model_validate({"parts": parts}), agent, age) == expected


@given(st.lists(st.none() | visibilities, max_size=4), agents, ages)
def test_narrow_never_widens(
    parts: list[Visibility | None], agent: AgentIdentity, age: timedelta | None
) -> None:
    expected = all(part is None or _allows(part, agent, age) for part in parts)
    assert _allows(narrow(*parts), agent, age) == expected


@given(st.lists(visibilities, max_size=4))
def test_narrow_is_flat_and_repeating_it_changes_nothing(parts: list[Visibility]) -> None:
    once = narrow(*parts)
    assert narrow(once, once, *parts) == once
    assert narrow(once, PublicVisibility()) == once
    if isinstance(once, AllOfVisibility):
        assert not any(isinstance(part, AllOfVisibility | PublicVisibility) for part in once.parts)
        assert len(set(once.parts)) == len(once.parts) >= 2


def test_narrow_gives_the_simplest_form() -> None:
    private = only_for("anna")
    assert narrow() == PublicVisibility()
    assert narrow(None, PublicVisibility()) == PublicVisibility()
    assert narrow(private, only_for("anna"), PublicVisibility()) == private
    assert narrow(AllOfVisibility(parts=(PublicVisibility(),))) == PublicVisibility()
    assert narrow(AllOfVisibility(parts=(private, private))) == private
    assert narrow(private, TenantVisibility(tenant_id="north")) == AllOfVisibility(
        parts=(private, TenantVisibility(tenant_id="north"))
    )


def test_an_empty_conjunction_would_be_public_so_it_is_refused() -> None:
    with pytest.raises(ValidationError):
        AllOfVisibility(parts=())


@given(visibilities)
def test_encode_and_decode_are_inverse(visibility: Visibility) -> None:
    data = encode_visibility(visibility)
    assert decode_visibility(data) == visibility
    assert encode_visibility(decode_visibility(data)) == data
    assert (data is None) == isinstance(visibility, PublicVisibility)


@given(visibilities)
def test_visibilities_hash_and_pickle(visibility: Visibility) -> None:
    twin = pickle.loads(pickle.dumps(visibility))
    assert twin == visibility
    assert hash(twin) == hash(visibility)


def test_the_encoding_does_not_depend_on_the_process() -> None:
    code = (
        "from flock_ray.core.visibility import *;"
        "print(encode_visibility(only_for(*'abcdefgh')).decode(),"
        " encode_visibility(LabelledVisibility(required_labels=set('abcdefgh'))).decode())"
    )
    seeds = ("1", "2")
    outs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in seeds
    }
    assert len(outs) == 1


def test_the_encoding_is_the_json_of_the_model() -> None:
    data = encode_visibility(AfterVisibility(ttl=HOUR, then=only_for("b", "a")))
    assert json.loads(data or b"") == {
        "kind": "After",
        "ttl": "PT1H",
        "then": {"kind": "Private", "agents": ["a", "b"]},
    }


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"kind":"Nobody"}', b'{"kind":"Private","agents":["a"],"except":["b"]}', b"\xff"]
)
def test_what_cannot_be_decoded_is_never_taken_for_public(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="no visibility"):
        decode_visibility(data)


def test_a_users_own_kind_cannot_travel() -> None:
    class Weekdays(Visibility):
        pass

    with pytest.raises(ConfigurationError, match=r"Weekdays.*use PublicVisibility"):
        encode_visibility(Weekdays())


def test_as_a_field_of_a_request() -> None:
    class Request(BaseModel):
        visibility: AnyVisibility

    parsed = Request.model_validate_json('{"visibility": {"kind": "Tenant", "tenant_id": "north"}}')
    assert parsed.visibility == TenantVisibility(tenant_id="north")
