"""Uploads that no well-meaning caller sends, the same in every run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

BOUNDARY = b"b0undary"
#: What the server is told to allow, so that going beyond costs little.
MOST_BYTES = 200_000
MOST_FILES = 5
#: Accepted as far as it goes: its template has no task, and says to fail.
ACCEPTED = {503}
REFUSED = {422}
#: Seconds after which a body that does not come has come to its end.
PATIENCE = 0.3


@dataclass(frozen=True)
class Hostile:
    """One call: what is sent, piece by piece with ``pause`` seconds in between, and the statuses
    that are an answer to it. No statuses: the caller leaves without waiting for one."""

    what: str
    pieces: tuple[bytes, ...]
    statuses: frozenset[int]
    pause: float = 0.0


def part(headers: bytes, content: bytes = b"x") -> bytes:
    return b"--" + BOUNDARY + b"\r\n" + headers + b"\r\n\r\n" + content + b"\r\n"


def field(name: bytes, value: bytes) -> bytes:
    return part(b'Content-Disposition: form-data; name="' + name + b'"', value)


def file(name: bytes, content: bytes = b"x") -> bytes:
    disposition = b'Content-Disposition: form-data; name="files"; filename="' + name + b'"'
    return part(disposition + b"\r\nContent-Type: image/jpeg", content)


TEMPLATE = field(b"template", b"strict")
END = b"--" + BOUNDARY + b"--\r\n"
GOOD = TEMPLATE + file(b"a.jpg") + END


def request(
    body: bytes,
    *,
    length: bytes | None = None,
    content_type: bytes = b"multipart/form-data; boundary=" + BOUNDARY,
    headers: bytes = b"",
) -> bytes:
    said = str(len(body)).encode() if length is None else length
    return (
        b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + content_type + b"\r\n"
        b"Content-Length: " + said + b"\r\n" + headers + b"\r\n" + body
    )


def chunked(body: bytes) -> bytes:
    return (
        b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
        b"boundary=" + BOUNDARY + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def everything() -> list[Hostile]:
    groups = (names, part_headers, boundaries, fields, lengths, chunks, cuts, slow_ones, crowds)
    return [case for group in groups for case in group()]


def one(what: str, sent: bytes, statuses: set[int], *further: bytes, pause: float = 0) -> Hostile:
    return Hostile(what, (sent, *further), frozenset(statuses), pause)


def form(what: str, body: bytes, statuses: set[int]) -> Hostile:
    return one(what, request(body + END), statuses)


# --- The groups -----------------------------------------------------------------------------------


def names() -> Iterator[Hostile]:
    """Names of files."""
    refused = (
        b"",
        b" ",
        b".",
        b"..",
        b"/",
        b"../../etc/passwd",
        b"/etc/passwd",
        b"a\x00.jpg",
        b"a.jpg ",
        "\ufeff.jpg".encode(),
        b"\xff\xfe.jpg",
        b"\xed\xa0\x80.jpg",
        b"\xc0\xaf.jpg",
        b"x" * 256,
        b"x" * 5000,
        "ä".encode() * 128 + b".jpg",
        b"&#46;&#46;",
        b"&#47;",
        b"a/&#x2e;&#x2e;",
        b"%2e%2e%2fetc%2fpasswd",
        b"0000",
        b".hidden",
    )
    for name in refused:
        yield form(f"name {name[:40]!r}, {len(name)}", TEMPLATE + file(name), REFUSED)
    # Odd, and nobody's harm: none of them is ever a path of this machine.
    harmless = (
        b"42.zip",
        b"bomb.tar.gz",
        b"zbxl.zip",
        b"a.zip.zip.zip",
        b"x" * 251 + b".jpg",
        b"x" * 1000 + b".jpg",
        b"a/../../b.jpg",
        b"..\\\\..\\\\windows\\\\system.ini",
        b"a\x01.jpg",
        b"a\x7f.jpg",
        b"a\x1b[2J.jpg",
        b"a\t.jpg",
        "\u202egpj.exe".encode(),
        "a\u2028b.jpg".encode(),
        b"%2e%2e%2fetc%2fpasswd.jpg",
        b"$(reboot).jpg",
        b"a;rm -rf ~.jpg",
        b"' OR 1=1 --.jpg",
        b"<script>alert(1)</script>.jpg",
        b"con.jpg",
        b"0000.jpg",
        b"manifest.json",
        b"manifest.tmp",
        b".hidden.jpg",
        b"C:a.jpg",
        b"deep/" * 20 + b"a.jpg",
        "ä\u0301☃.jpg".encode(),
    )
    for name in harmless:
        yield form(f"name {name[:40]!r}, {len(name)}", TEMPLATE + file(name), ACCEPTED)
    for first, second in ((b"a.jpg", b"a.jpg"), (b"a.jpg", b"b/a.jpg"), (b"a.jpg", b"&#97;.jpg")):
        body = TEMPLATE + file(first) + file(second)
        yield form(f"two files {first!r} and {second!r}", body, ACCEPTED)


def part_headers() -> Iterator[Hostile]:
    """Headers of parts."""
    disposition = b'Content-Disposition: form-data; name="files"; filename="a.jpg"'
    bad = {
        "none": b"X: y",
        "no name": b"Content-Disposition: form-data",
        "an attachment": b'Content-Disposition: attachment; name="files"; filename="a.jpg"',
        "two dispositions": disposition + b"\r\n" + disposition,
        "no colon": b"Content-Disposition",
        "no file name": b'Content-Disposition: form-data; name="files"',
        "a bad character": b"Content\x00-Disposition: form-data",
        "a header without a name": b": x\r\n" + disposition,
        "a name that is no UTF-8": b'Content-Disposition: form-data; name="\xff"',
        "an empty name": b'Content-Disposition: form-data; name=""',
        "a continued line": b"Content-Disposition: form-data;\r\n name=files; filename=a.jpg",
        "no line end": disposition + b"\rX: y",
        "many headers": b"\r\n".join([disposition, *[b"X: y"] * 500]),
    }
    for what, headers in bad.items():
        yield form(f"part with {what}", TEMPLATE + part(headers), {413, 422})
    for size in (10_000, 50_000, 150_000):
        huge = disposition + b"\r\nX: " + b"x" * size
        yield form(f"part with a header of {size}", TEMPLATE + part(huge), {413, 422})
        huge = disposition + b"\r\n" + b"x" * size + b": y"
        yield form(f"part with a header name of {size}", TEMPLATE + part(huge), {413, 422})
        huge = b'Content-Disposition: form-data; name="' + b"x" * size + b'"'
        yield form(f"part with a name of {size}", TEMPLATE + part(huge), {413, 422})
    extended = (b"filename*=UTF-8''%2Fetc%2Fpasswd", b"filename*=x''a", b"filename*=UTF-8''%ff%00")
    for each in extended:
        headers = b'Content-Disposition: form-data; name="files"; ' + each
        yield form(f"part with {each!r}", TEMPLATE + part(headers), REFUSED | ACCEPTED)


def boundaries() -> Iterator[Hostile]:
    """Boundaries, in the header and in the body."""
    for said in (
        b"multipart/form-data",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary=""',
        b"multipart/form-data; boundary=" + b"x" * 71,
        b"multipart/form-data; boundary=" + b"x" * 5000,
        b"multipart/form-data; boundary=another",
        b"multipart/form-data; boundary=\xff\xfe",
        b"multipart/form-data;;;;",
        b"multipart/form-data; charset=utf-7; boundary",
    ):
        yield one(f"type {said[:60]!r}, {len(said)}", request(GOOD, content_type=said), REFUSED)
    for said in (b"multipart/mixed; boundary=" + BOUNDARY, b"text/html", b"", b"/", b"a" * 1000):
        yield one(f"type {said[:60]!r}, {len(said)}", request(GOOD, content_type=said), {415})
    bodies = {
        "nothing": b"",
        "only the end": END,
        "no end": TEMPLATE + file(b"a.jpg"),
        "no last dashes": TEMPLATE + file(b"a.jpg") + b"--" + BOUNDARY + b"\r\n",
        "a preamble": b"hello\r\n" + GOOD,
        "text": b"just text",
        "zeros": b"\x00" * 10_000,
        "one dash": b"-" + GOOD,
        "bare line feeds": GOOD.replace(b"\r\n", b"\n"),
        "no files": TEMPLATE + END,
        "a boundary within a header": b"--" + BOUNDARY + b"\r\nX: --" + BOUNDARY + b"--\r\n",
        "half a boundary": b"--" + BOUNDARY[:4],
    }
    for what, body in bodies.items():
        yield one(f"body with {what}", request(body), REFUSED)
    yield one("body with an epilogue", request(GOOD + b"x" * 1000), ACCEPTED | REFUSED)
    almost = b"\r\n--" + BOUNDARY[:-1] + b"X" + b"\r\n--"
    yield form("content like a boundary", TEMPLATE + file(b"a.jpg", almost * 500), ACCEPTED)


def fields() -> Iterator[Hostile]:
    """Fields beside the files."""
    good = TEMPLATE + file(b"a.jpg")
    nested = b"[" * 30_000
    for name, value in (
        (b"template", b"strict"),
        (b"unknown", b"x"),
        (b"files[]", b"x"),
        (b"__class__", b"x"),
        (b"server_files", b"/etc/passwd"),
        (b"client_files[0]", b"x"),
        (b"share", b"/etc"),
        (b"urls", b"file:///etc/passwd"),
        (b"name", b""),
        (b"name", b"x" * 257),
        (b"name", b"a\x00b"),
        (b"name", b"\xff"),
        (b"assignee", b"-1"),
        (b"assignee", b" ann"),
        (b"assignee", b"9" * 10_000),
        (b"assignee", "٣".encode()),
        (b"params", b""),
        (b"params", b"null"),
        (b"params", nested),
        (b"params", b'{"image_quality": 1e400}'),
        (b"params", b'{"client_files": ["/etc/passwd"]}'),
        (b"params", b'{"server_files": ["/etc/passwd"]}'),
        (b"params", b'{"remote_files": ["http://169.254.169.254/"]}'),
        (b"params", b'{"job_file_mapping": [["other.jpg"]]}'),
        (b"params", b'{"use_cache": "yes"}'),
        (b"params", b'{"frame_filter": "step=1; rm"}'),
        (b"params", json.dumps({"x" * 100: "y"}).encode()),
    ):
        body = good + field(name, value)
        yield form(f"field {name!r} {value[:40]!r}, {len(value)}", body, {413, 422})
    for size in (70_000, 150_000):
        yield form(f"field of {size}", good + field(b"name", b"x" * size), {413})
    yield form("lease of nobody", file(b"a.jpg") + field(b"lease_id", b"x"), {404})
    yield form("lease with a path", file(b"a.jpg") + field(b"lease_id", b"../x"), {404, 422})
    yield form("no template", file(b"a.jpg"), REFUSED)
    yield form("an unknown template", file(b"a.jpg") + field(b"template", b"../x"), {404})
    yield form("an empty file", TEMPLATE + file(b"a.jpg", b""), REFUSED)


def lengths() -> Iterator[Hostile]:
    """Lengths that are not those of the body."""
    for said in (b"-1", b"x", b"1.5", b"0x10", b"", b"9" * 30, b"+5", b"5, 6"):
        # Some are no length at all, and some are one that nobody sends.
        yield one(f"length {said[:20]!r}", request(GOOD, length=said), {400, 408, 413, 422})
    for more in (1, 100, 100_000):
        said = str(len(GOOD) + more).encode()
        yield one(f"{more} bytes too few", request(GOOD, length=said), {408})
    for fewer in (1, 5, 50):
        said = str(len(GOOD) - fewer).encode()
        # What is too much is no request, and is noticed before or after the form is.
        sent = request(GOOD, length=said)
        yield one(f"{fewer} bytes too many", sent, {400} | REFUSED | ACCEPTED)
    yield one("no bytes at all", request(b"", length=b"1000"), {408})
    big = TEMPLATE + file(b"a.jpg", b"x" * MOST_BYTES) + END
    yield one("too large, and it says so", request(big), {413})
    yield one("far too large", request(b"", length=b"10000000000000"), {413})
    yield one(
        "a body of JSON that is too large",
        request(b"", length=b"99999999", content_type=b"application/json"),
        {413},
    )


def chunks() -> Iterator[Hostile]:
    """Bodies in chunks."""
    whole = chunk(GOOD) + b"0\r\n\r\n"
    yield one("one good chunk", chunked(whole), ACCEPTED)
    yield one(
        "a byte each", chunked(b"".join(chunk(bytes([c])) for c in GOOD) + b"0\r\n\r\n"), ACCEPTED
    )
    big = b"".join(chunk(b"x" * 50_000) for _ in range(5))
    yield one("too large, and it does not say so", chunked(chunk(GOOD[:-20]) + big), {413, 422})
    name = file(b"a.jpg", b"x")[:-3]
    yield one("a file that goes on and on", chunked(chunk(TEMPLATE + name) + big), {413})
    for what, body in {
        "no size": b"\r\n" + whole,
        "a size that is none": b"zz\r\n" + whole,
        "a size below zero": b"-5\r\n" + whole,
        "a huge size": b"f" * 40 + b"\r\n" + whole,
        "no line end": chunk(GOOD)[:-2] + b"xx" + b"0\r\n\r\n",
        "a wrong size": b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD) - 5, GOOD),
    }.items():
        yield one(f"chunks with {what}", chunked(body), {400})
    yield one("chunks without an end", chunked(chunk(GOOD)), {408})
    yield one("chunks with an empty end", chunked(b"0\r\n\r\n"), REFUSED)
    yield one("chunks with a trailer", chunked(chunk(GOOD) + b"0\r\nX: y\r\n\r\n"), ACCEPTED)
    both = request(GOOD, headers=b"Transfer-Encoding: chunked\r\n")
    yield one("chunks and a length", both, {400})
    other = request(GOOD, headers=b"Transfer-Encoding: gzip\r\n")
    yield one("an encoding that nobody knows", other, {400})


def cuts() -> Iterator[Hostile]:
    """Callers that leave in the middle."""
    body = TEMPLATE + file(b"a.jpg", b"x" * 1000) + file(b"b.jpg", b"y" * 1000) + END
    whole = request(body, headers=b"Idempotency-Key: cut\r\n")
    for position in range(0, len(whole) - 1, len(whole) // 30):
        yield Hostile(f"cut after {position}", (whole[:position],), frozenset())
    large = request(TEMPLATE + file(b"a.jpg", b"x" * 190_000) + END)
    for position in (70_000, 130_000, 190_000):
        yield Hostile(f"cut after {position}", (large[:position],), frozenset())


def slow_ones() -> Iterator[Hostile]:
    """Callers that take their time."""
    whole = request(GOOD)
    head = whole.index(b"\r\n\r\n") + 4
    for position in (head, head + 10, head + 100, len(whole) - 5):
        yield one(f"nothing more after {position}", whole[:position], {408})
    drip = tuple(bytes([c]) for c in GOOD[:20])
    yield one("a byte now and then", whole[:head], {408}, *drip, pause=0.04)


def crowds() -> Iterator[Hostile]:
    """Very many parts."""
    several = b"".join(file(b"%d.jpg" % number) for number in range(MOST_FILES + 1))
    yield form("too many files", TEMPLATE + several, REFUSED)
    yield form("many empty parts", part(b"", b"") * 2000, REFUSED)
    yield form("many fields", TEMPLATE * 1500, REFUSED)
    yield form("many boundaries", (b"--" + BOUNDARY + b"\r\n") * 10_000, REFUSED)
    yield form("many names", b"".join(field(b"n%d" % n, b"") for n in range(2000)), REFUSED)
