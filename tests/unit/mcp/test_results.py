from __future__ import annotations

import base64

import mcp_types as types
from hypothesis import given
from hypothesis import strategies as st

from flock_ray.mcp import results
from flock_ray.mcp.results import as_text, one_line, redacted


def result(*content: types.ContentBlock, structured: object = None) -> types.CallToolResult:
    return types.CallToolResult(content=list(content), structured_content=structured)


def text(value: str) -> types.TextContent:
    return types.TextContent(text=value)


def test_texts_are_joined() -> None:
    assert "one\ntwo" == as_text(result(text("one"), text("two")))


def test_structured_content_is_shown_when_there_is_no_text_for_it() -> None:
    assert '{"a": "ä"}' == as_text(result(structured={"a": "ä"}))
    assert "a: ä" == as_text(result(text("a: ä"), structured={"a": "ä"}))


def test_what_is_no_text_is_a_note() -> None:
    data = base64.b64encode(bytes(300)).decode()
    blocks: list[types.ContentBlock] = [
        types.ImageContent(data=data, mime_type="image/png"),
        types.AudioContent(data=data, mime_type="audio/wav"),
        types.ResourceLink(name="log", uri="file:///var/log/x"),
        types.EmbeddedResource(resource=types.BlobResourceContents(uri="file:///x.bin", blob=data)),
        types.EmbeddedResource(resource=types.TextResourceContents(uri="file:///x.txt", text="inside")),
    ]

    assert [
        "[image, image/png, about 300 bytes: not shown]",
        "[audio, audio/wav, about 300 bytes: not shown]",
        "[resource log: file:///var/log/x]",
        "[resource file:///x.bin, binary: not shown]",
        "inside",
    ] == as_text(result(*blocks)).splitlines()


def test_a_long_result_is_cut_and_says_so() -> None:
    shown = as_text(result(text("x" * (results.MAX_RESULT_CHARS + 7))))

    assert shown.endswith("\n[7 more characters were cut]")


def test_the_whole_header_goes_before_the_token_in_it() -> None:
    assert "[redacted]." == redacted("Bearer sk-1234567.", {"sk-1234567", "Bearer sk-1234567"})


def test_values_too_short_to_be_secret_stay() -> None:
    assert "true" == redacted("true", {"", "tr", "rue"})


@given(st.text())
def test_a_line_of_an_event_is_printable_and_short(said: str) -> None:
    line = one_line(said)

    assert line.isprintable() and len(line) <= results.MAX_LINE_CHARS + 3
