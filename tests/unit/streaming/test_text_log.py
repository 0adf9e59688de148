"""The ring that a shard keeps of what runs say: bounded, in order, honest about holes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flock_ray.core.ids import EPOCH_SHIFT
from flock_ray.core.texts import MAX_TEXT, Text, TextLog, TextQuery

ALL = TextQuery()


def text(
    words: str = "x", *, run: int = 1, agent: str = "a", workflow: str = "w", kind: str = "token"
) -> Text:
    return Text(bytes([run]) * 16, 1, agent, workflow, kind, words)


def words(found: list[Text]) -> list[str]:
    return [piece.kind if piece.kind == "gap" else piece.text for piece in found]


def test_a_reader_goes_on_behind_its_position() -> None:
    log = TextLog()
    log.add([text("a"), text("b"), text("c")], 5)

    first, position = log.read(0, 2, ALL)
    rest, end = log.read(position, 10, ALL)

    assert (["a", "b"], ["c"]) == (words(first), words(rest))
    assert ([], end) == log.read(end, 10, ALL)
    assert 5 == first[0].at_us


def test_the_oldest_pieces_go_and_a_slow_reader_sees_a_gap() -> None:
    log = TextLog(max_bytes=10 * text().size)
    _, position = log.read(0, 1, ALL)
    for n in range(25):
        log.add([text(str(n % 10))], 0)

    found, _ = log.read(position, 100, ALL)

    assert ["gap", *"5678901234"] == words(found)
    assert (15, 10) == (found[0].missed, len(log))
    assert found[0].seq == found[1].seq - 1
    assert words(log.read(0, 100, ALL)[0])[0] != "gap", "who begins with the oldest piece has missed nothing"


def test_one_who_came_back_from_reading_an_empty_ring_sees_a_gap() -> None:
    log = TextLog(max_bytes=2 * text().size)
    _, position = log.read(0, 10, ALL)
    log.add([text() for _ in range(5)], 0)

    assert ["gap", "x", "x"] == words(log.read(position, 10, ALL)[0])


def test_a_position_of_a_former_process_is_a_gap_of_unknown_size() -> None:
    log = TextLog()
    log.begin_at((7 << EPOCH_SHIFT) + 1)
    log.add([text("new")], 0)

    found, position = log.read((6 << EPOCH_SHIFT) + 99, 10, ALL)

    assert ["gap", "new"] == words(found) and 0 == found[0].missed
    assert ([], position) == log.read(position, 10, ALL)
    assert ["gap", "new"] == words(log.read(position + 1000, 10, ALL)[0])


def test_what_has_to_be_forgotten_leaves_a_gap() -> None:
    log = TextLog()
    log.add([text("secret"), text("more")], 0)
    _, position = log.read(0, 1, ALL)
    log.clear()

    assert ["gap"] == words(log.read(position, 10, ALL)[0])
    log.add([text("new")], 0)
    assert ["gap", "new"] == words(log.read(position, 10, ALL)[0])
    assert ["new"] == words(log.read(0, 10, ALL)[0])


def test_only_what_is_asked_for() -> None:
    log = TextLog()
    log.add(
        [text("1", agent="b"), text("2", workflow="v"), text("3", kind="final"), text("4")],
        0,
    )

    def read(**query: object) -> list[str]:
        return words(log.read(0, 10, TextQuery(**query))[0])  # type: ignore[arg-type]

    assert ["1"] == read(agent="b")
    assert ["2"] == read(correlation_id="v")
    assert ["3"] == read(kinds=("final",))
    assert ["1", "2", "4"] == read(kinds=("token", "status"))


def test_from_now_on_returns_only_the_end() -> None:
    log = TextLog()
    log.add([text(), text()], 0)

    assert ([], log.head) == log.read(-1, 10, ALL)


def test_a_piece_that_is_too_long_is_cut() -> None:
    log = TextLog()
    log.add([text("x" * (MAX_TEXT + 1))], 0)

    assert MAX_TEXT == len(log.read(0, 1, ALL)[0][0].text)


@given(
    batches=st.lists(st.integers(0, 12), max_size=30),
    reads=st.lists(st.integers(1, 8), max_size=30),
    room=st.integers(1, 10),
)
def test_every_piece_is_read_once_or_counted_as_missed(
    batches: list[int], reads: list[int], room: int
) -> None:
    log = TextLog(max_bytes=room * text("000").size)
    _, position = log.read(0, 1, ALL)
    made = seen = missed = 0
    said: list[int] = []
    reads = reads + [100] * (len(batches) + 1)
    for count, limit in zip([*batches, 0], reads, strict=False):
        log.add([text(f"{made + n:03}") for n in range(count)], 0)
        made += count
        found, position = log.read(position, limit, ALL)
        assert log.size <= room * text("000").size and len(log) <= room
        for piece in found:
            missed += piece.missed
            seen += piece.kind != "gap"
            said += [int(piece.text)] if piece.kind != "gap" else []
    found, position = log.read(position, 1000, ALL)
    missed += sum(piece.missed for piece in found)
    seen += sum(piece.kind != "gap" for piece in found)
    said += [int(piece.text) for piece in found if piece.kind != "gap"]

    assert made == seen + missed
    assert said == sorted(set(said))
