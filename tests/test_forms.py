"""Multipart forms: what clients' encoders write is read, and what servers could read differently is refused."""

from __future__ import annotations

import json
import sys
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from python_multipart import multipart
from python_multipart.exceptions import MultipartParseError

from askii_middleware.body import MAX_FORM_FIELDS, UnreadableBodyError
from askii_middleware.errors import MissingExtraError
from askii_middleware.forms import BOUNDING, Form, read_form

TYPE = b"multipart/form-data; boundary=xyz"


def decoded(form: Form) -> dict[str, Any]:
    return {name: json.loads(bytes(raw)) for name, raw in form.fields.items()}


def part(name: str, value: str | bytes = "v", *, disposition: str | None = None, headers: str = "") -> bytes:
    head = disposition if disposition is not None else f'form-data; name="{name}"'
    data = value if isinstance(value, bytes) else value.encode()
    return b"--xyz\r\nContent-Disposition: " + head.encode() + b"\r\n" + headers.encode() + b"\r\n" + data + b"\r\n"


def form(*parts: bytes, end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(parts) + end


def sent(**arguments: Any) -> tuple[bytes, bytes]:
    """A form as httpx encodes it, and so the openai, groq and anthropic SDKs."""
    request = httpx.Request("POST", "http://local/", **arguments)
    return request.headers["content-type"].encode(), request.read()


def test_texts_become_json_scalars_and_files_their_sizes() -> None:
    data = {"model": "whisper-1", "n": "3", "stream": "true", "prompt": 'hé "x"\r\n', "temperature": "0.5", "user": ""}
    read = read_form(*sent(data=data, files={"file": ("ü.mp3", b"abc\r\n--xy\r\n\r\n")}))
    assert decoded(read) == {
        "model": "whisper-1",
        "n": 3,
        "stream": True,
        "prompt": 'hé "x"\r\n',
        "temperature": "0.5",
        "user": "",
        "file": {"file_bytes": 13},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("0", 0), ("-7", -7), ("999999999999999", 999999999999999), ("true", True), ("false", False)],
        *[(same, same) for same in ("07", "-0", "1.0", "1e3", " 1", "True", "null", "٣", "9" * 16, "--1", "-", "")],
    ],
)
def test_only_what_json_writes_alike_is_a_number_or_a_truth(text: str, value: object) -> None:
    assert decoded(read_form(TYPE, form(part("x", text)))) == {"x": value}


def test_files_of_one_name_add_up_under_any_brackets() -> None:
    files = [("image[]", ("a.png", b"1234")), ("image[]", ("b.png", b"")), ("image[2]", ("c.png", b"56"))]
    read = read_form(*sent(data={"model": "m", "include[]": ["a", "b"], "words[]": "only"}, files=files))
    assert decoded(read) == {
        "model": "m",
        "include": ["a", "b"],
        "words": ["only"],
        "image": {"file_bytes": 6, "files": 3},
    }


def test_forms_of_other_encoders_are_read_alike() -> None:
    net = b'multipart/form-data; boundary="xyz"'
    body = form(
        part(
            "", "whisper-1", disposition="form-data; name=model", headers="Content-Type: text/plain; charset=utf-8\r\n"
        ),
        part("", b"\xff\x00", disposition="form-data; name=file; filename=a.mp3; filename*=utf-8''a.mp3"),
        part("n", "2", headers="Content-Length: 1\r\nContent-Transfer-Encoding: binary\r\n"),
        end=b"--xyz--",
    )
    assert decoded(read_form(net, b"\r\n" + body)) == {"model": "whisper-1", "file": {"file_bytes": 2}, "n": 2}


def test_a_form_without_parts_is_empty() -> None:
    read = read_form(TYPE, b"--xyz--\r\n")
    assert decoded(read) == {}
    assert decoded(read_form(TYPE, read.replace("model", "m"))) == {"model": "m"}


def test_replacing_a_text_keeps_all_other_bytes() -> None:
    data = {"prompt": "whisper-1", "model": "whisper-1", "z": "1"}
    kind, body = sent(data=data, files={"file": ("whisper-1", b"whisper-1")})
    out = read_form(kind, body).replace("model", "gpt-4o-transcribe")
    at = body.index(b'name="model"\r\n\r\n') + len(b'name="model"\r\n\r\n')
    assert out == body[:at] + b"gpt-4o-transcribe" + body[at + len("whisper-1") :]
    assert decoded(read_form(kind, out))["model"] == "gpt-4o-transcribe"


def test_replacing_changes_every_part_of_the_name_and_the_length_it_states() -> None:
    body = form(part("model", "a"), part("model", "a", headers="content-length: 1\r\n"), part("n", "1"))
    out = read_form(TYPE, body).replace("model", "longer-é")
    assert out == form(
        part("model", "longer-é"), part("model", "longer-é", headers="content-length: 9\r\n"), part("n", "1")
    )


def test_a_missing_text_is_added_at_the_end() -> None:
    kind, body = sent(data={"n": "1"}, files={"file": b"x"})
    out = read_form(kind, body).replace("model", "m")
    assert decoded(read_form(kind, out)) == {**decoded(read_form(kind, body)), "model": "m"}
    assert out.startswith(body[: body.rindex(b"--")].rpartition(b"--")[0])


@pytest.mark.parametrize(("name", "value"), [("model", "a--xyz"), ('mo"del', "a")])
def test_what_a_form_cannot_hold_is_not_written(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        read_form(TYPE, form(part("model"))).replace(name, value)


AMBIGUOUS = {
    "text before the first part": b"x\r\n" + form(part("model")),
    "a part before the first delimiter": b'Content-Disposition: form-data; name="model"\r\n\r\nb\r\n'
    + form(part("model")),
    "text behind the last part": form(part("model")) + b"x",
    "parts behind the last part": form(part("model")) + form(part("model", "other")),
    "a delimiter after a bare line feed": form(
        part("n", b'1\n--xyz\nContent-Disposition: form-data; name="model"\n\nb')
    ),
    "a delimiter with more behind it": form(part("n", b"1\r\n--xyzw")),
    "a padded delimiter": form(part("model")).replace(b"--xyz\r\n", b"--xyz \r\n") + form(part("model", "b")),
    "a delimiter within a line": form(part("n", b"1--xyz")),
    "two values of one name": form(part("model", "a"), part("model", "b")),
    "a list of a name that has one value": form(part("model[]", "b"), part("model", "a")),
    "a numbered list of such": form(part("model[0]", "b")),
    "a name in capitals": form(part("Model", "b"), part("model", "a")),
    "a name with spaces": form(part("model ", "b"), part("model", "a")),
    "an escaped name": form(part("mode%6C", "b"), part("model", "a")),
    "a name with a backslash": form(part("mod\\el", "b")),
    "an empty name": form(part("", "b")),
    "a name that ends in NUL": form(part("model\0", "b")),
    "a very long name": form(part("x" * 200, "b")),
    "an extended name": form(part("", "b", disposition="form-data; name=\"x\"; name*=utf-8''model")),
    "two names": form(part("", "b", disposition='form-data; name="x"; name="model"')),
    "a name in capital letters": form(part("", "b", disposition='form-data; Name="model"; name="x"')),
    "a file name before the name": form(part("", "b", disposition='form-data; filename="model"; name="x"')),
    "an unclosed quote": form(part("", "b", disposition='form-data; name="model')),
    "text behind a quote": form(part("", "b", disposition='form-data; name="x"y; name=model')),
    "a quote within a quote": form(part("", "b", disposition='form-data; name="x\\"; name=\\"model"')),
    "a name within a file name": form(part("", "b", disposition='form-data; name="x"; filename="; name=model"')),
    "an unknown parameter": form(part("", "b", disposition='form-data; name="x"; size=3')),
    "no name": form(part("", "b", disposition="form-data")),
    "another disposition": form(part("", "b", disposition='attachment; name="model"')),
    "no disposition": b"--xyz\r\nContent-Type: text/plain\r\n\r\nb\r\n" + form(),
    "no headers": b"--xyz\r\n\r\nb\r\n" + form(),
    "a header twice": form(part("x", "b", headers='content-disposition: form-data; name="model"\r\n')),
    "a folded header": form(part("", "b", disposition='form-data;\r\n name="model"')),
    "a header split by a line feed": form(
        part("x", "b", headers='X: y\ncontent-disposition: form-data; name="model"\r\n')
    ),
    "an encoded text": form(part("model", "Yg==", headers="Content-Transfer-Encoding: base64\r\n")),
    "a wrong length": form(part("model", "abc", headers="Content-Length: 1\r\n")),
    "another charset": form(part("model", "+AGE-", headers="Content-Type: text/plain; charset=utf-7\r\n")),
    "a charset for all": form(part("_charset_", "utf-16"), part("model", "a")),
    "a text that is no UTF-8": form(part("model", b"\xff")),
    "a header that is no UTF-8": form(part("x")).replace(b'name="x"', b'name="\xff"'),
    "a file where a text bounds the call": form(part("", "b", disposition='form-data; name="model"; filename="x"')),
    "a nested form where a text bounds the call": form(
        part("model", headers="Content-Type: multipart/mixed; boundary=z\r\n")
    ),
    "a name both as text and file": form(
        part("image"), part("", "b", disposition='form-data; name="image"; filename="x"')
    ),
    "no end": form(part("model"), end=b""),
    "half an end": form(part("model"), end=b"--xyz-"),
    "an unfinished part": b'--xyz\r\nContent-Disposition: form-data; name="model"\r\n\r\nabc',
    "an unfinished header": b"--xyz\r\nContent-Dis",
    "nothing": b"",
    "no form at all": b'{"model": "m"}',
}


@pytest.mark.parametrize("body", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_servers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        read_form(TYPE, body)


@pytest.mark.parametrize(
    "kind",
    [
        *(b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/mixed; boundary=xyz", b"", b";"),
        *(b"multipart/form-data; boundary=xyz; boundary=abc", b"multipart/form-data; boundary*=utf-8''xyz"),
        *(b"multipart/form-data; BOUNDARY=xyz", b'multipart/form-data; boundary="x\\yz"', b"application/json"),
        *(b"multipart/form-data; boundary=x\x00", b"multipart/form-data; boundary=" + b"x" * 71),
    ],
)
def test_a_content_type_without_one_certain_boundary_is_refused(kind: bytes) -> None:
    with pytest.raises(UnreadableBodyError):
        read_form(kind, form(part("model")))


def test_equal_values_of_one_name_are_one() -> None:
    assert decoded(read_form(TYPE, form(part("model", "a"), part("model", "a")))) == {"model": "a"}


def test_too_many_parts_are_refused_and_no_more_read() -> None:
    many = [part(f"f{i}", "") for i in range(MAX_FORM_FIELDS)]
    assert len(read_form(TYPE, form(*many)).fields) == MAX_FORM_FIELDS
    with pytest.raises(UnreadableBodyError, match="more than 1000"):
        read_form(TYPE, form(*many, part("last")))


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("python_multipart", "python_multipart.multipart", "python_multipart.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"askii-middleware\[forms\]"):
        read_form(TYPE, form(part("model")))


NAMES = st.text("abcdefgh_-.", min_size=1, max_size=8).filter(lambda name: name not in BOUNDING)


@given(
    st.dictionaries(NAMES, st.text(max_size=20), max_size=5),
    st.lists(st.binary(max_size=40), max_size=3),
    st.text(min_size=1, max_size=10),
)
def test_what_an_encoder_writes_comes_back(texts: dict[str, str], files: list[bytes], model: str) -> None:
    arguments = [("FILE[]", ("a.bin", data)) for data in files] or None
    if not texts and arguments is None:
        return
    kind, body = sent(data=texts, files=arguments or [("FILE[]", ("a.bin", b""))])
    read = read_form(kind, body)
    for name, text in texts.items():
        value = json.loads(bytes(read.fields[name]))
        assert value == text or json.dumps(value) == text
    assert json.loads(bytes(read.fields["FILE"]))["file_bytes"] == sum(map(len, files))
    again = read_form(kind, read.replace("model", model))
    changed = json.loads(bytes(again.fields["model"]))
    assert changed == model or json.dumps(changed) == model
    assert {**again.fields, "model": None}.keys() == {**read.fields, "model": None}.keys()


PIECES = st.sampled_from(
    [
        *(
            b"--xyz",
            b"\r\n",
            b"\n",
            b"\r",
            b"--",
            b"--xyz--",
            b'Content-Disposition: form-data; name="model"',
            b"\r\n\r\n",
        ),
        *(b'Content-Disposition: form-data; name="x"; filename="y"', b"abc", b" ", b"-", b"Content-Length: 3", b"\xff"),
        part("n", "1"),
    ]
)


def lenient(body: bytes) -> list[tuple[str, bytes]]:
    """What Starlette's way of reading finds: its parser and its options, without any check of ours."""
    found: list[tuple[str, bytes]] = []
    header: dict[bytes, bytes] = {}
    field, value, data = b"", b"", b""

    def name(chunk: bytes, start: int, end: int) -> None:
        nonlocal field
        field += chunk[start:end]

    def content(chunk: bytes, start: int, end: int) -> None:
        nonlocal value
        value += chunk[start:end]

    def header_end() -> None:
        nonlocal field, value
        header[field.lower()] = value
        field = value = b""

    def part_data(chunk: bytes, start: int, end: int) -> None:
        nonlocal data
        data += chunk[start:end]

    def part_end() -> None:
        nonlocal data
        options = multipart.parse_options_header(header.get(b"content-disposition", b""))[1]
        found.append((options.get(b"name", b"").decode("latin-1"), data))
        header.clear()
        data = b""

    parser = multipart.MultipartParser(
        b"xyz",
        {
            "on_header_field": name,
            "on_header_value": content,
            "on_header_end": header_end,
            "on_part_data": part_data,
            "on_part_end": part_end,
        },
    )
    try:
        parser.write(body)
    except MultipartParseError:
        return []
    return found


@given(
    st.lists(PIECES, max_size=14).map(lambda pieces: form(*pieces))
    | st.lists(PIECES | st.binary(max_size=9)).map(b"".join)
)
def test_any_bytes_are_read_as_a_lenient_server_reads_them_or_refused(body: bytes) -> None:
    try:
        read = read_form(TYPE, body)
    except UnreadableBodyError:
        return
    models = {value for name, value in lenient(body) if name == "model"}
    assert {json.loads(bytes(raw)) for name, raw in read.fields.items() if name == "model"} == {
        json.loads(value) if value.isdigit() else value.decode() for value in models
    }
