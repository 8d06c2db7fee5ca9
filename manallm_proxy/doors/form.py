"""``multipart/form-data`` (RFC 7578), parsed only as far as routing needs: the position of each field's value.

Parsing is strict: whatever the provider's parser could read differently is refused.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import field

from manallm_proxy.contract.errors import InvalidRequest
from manallm_proxy.contract.provider import Span
from manallm_proxy.contract.records import frozen

FIELDS_LIMIT: Final = 1000
"""Max parts of one form: a limit on its bytes alone would not limit the work of parsing."""
HEAD_LIMIT: Final = 8 * 1024
"""Max bytes of one part's headers, for the same reason."""
_TYPE: Final = re.compile(r"multipart/form-data\s*;\s*(.*)", re.IGNORECASE | re.DOTALL)
_PARAMETER: Final = re.compile(
    r"""\s*;\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\\r\n]|\\[^\r\n])*)"|([^\s;"]*))""", re.ASCII
)
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]", re.ASCII)
_TOKEN: Final = re.compile(r"[0-9A-Za-z'+_.-]+", re.ASCII)
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)", re.ASCII)
"""One header line: no space before the colon, no continuation line, no line end inside."""
_AS_IT_IS: Final = frozenset({"7bit", "8bit", "binary"})
"""Values of ``Content-Transfer-Encoding`` under which a value is its bytes: some parsers decode the others."""


@frozen
class Form:
    """A parsed form. ``spans``: by field name, the positions of its values in ``body``, in order."""

    content_type: str
    body: bytes = field(repr=False)
    spans: dict[str, list[Span]]

    def text(self, name: str) -> str | None:
        """The value of a field; None if it is missing. Raises InvalidRequest if it is repeated or not UTF-8."""
        spans = self.spans.get(name, [])
        if len(spans) > 1:
            raise InvalidRequest(f"the form has '{name}' more than once", param=name)
        try:
            return self.body[slice(*spans[0])].decode() if spans else None
        except UnicodeDecodeError:
            raise InvalidRequest(f"'{name}' is not valid UTF-8", param=name) from None


def is_form(content_type: str) -> bool:
    """Whether `read_form` can read a body of this type."""
    return content_type.lstrip().lower().startswith("multipart/form-data")


def read_form(body: bytes, content_type: str) -> Form:
    """The form in `body`. Raises InvalidRequest if the boundary is missing or wrong, or a part has no name."""
    boundary = _boundary(content_type)
    delimiter = b"--" + boundary.encode()
    body_at = 2 if body.startswith(b"\r\n") else 0
    if not body.startswith(delimiter, body_at):
        raise InvalidRequest("the form does not begin with the boundary that Content-Type names")
    spans: dict[str, list[Span]] = {}
    at = body_at + len(delimiter)
    for _ in range(FIELDS_LIMIT + 1):
        if body.startswith(b"--", at):
            break
        head = body.find(b"\r\n\r\n", at, at + HEAD_LIMIT)
        if head < 0 and len(body) > at + HEAD_LIMIT:
            raise InvalidRequest(f"a part of the form has more than {HEAD_LIMIT} bytes of headers")
        end = body.find(b"\r\n" + delimiter, head + 4)
        # some parsers treat a boundary right after the headers as the end of an empty value
        if not body.startswith(b"\r\n", at) or head < 0 or end < 0 or body.startswith(delimiter, head + 4):
            raise InvalidRequest("the form is broken: a part does not end with the boundary that Content-Type names")
        spans.setdefault(_name(body[at + 2 : head]), []).append((head + 4, end))
        at = end + 2 + len(delimiter)
    else:
        raise InvalidRequest(f"the form has more than {FIELDS_LIMIT} parts")
    if body[at + 2 :].strip():
        raise InvalidRequest("the form goes on after its last boundary")
    value = boundary if _TOKEN.fullmatch(boundary) else f'"{boundary}"'
    return Form(f"multipart/form-data; boundary={value}", body, spans)


def _boundary(content_type: str) -> str:
    match = _TYPE.fullmatch(content_type.strip())
    found = _parameters(";" + match[1]) if match else {}
    boundary = found.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise InvalidRequest("Content-Type names no boundary of the form")
    return boundary


def _name(head: bytes) -> str:
    """The field's name from the headers of a part."""
    values: list[str] = []
    for line in head.decode(errors="replace").split("\r\n") if head else ():
        header = _HEADER.fullmatch(line)
        if header is None:
            raise _ambiguous()
        key = header[1].lower()
        if key == "content-disposition":
            values.append(header[2])
        elif key == "content-transfer-encoding" and header[2].strip().lower() not in _AS_IT_IS:
            raise InvalidRequest("a part of the form has a Content-Transfer-Encoding: send its value as it is")
    kind, _, rest = values[0].partition(";") if len(values) == 1 else ("", "", "")
    name = _parameters(";" + rest).get("name") if kind.strip().lower() == "form-data" else None
    if name is None:
        raise InvalidRequest("a part of the form has no name, or more than one")
    return name


def _ambiguous() -> InvalidRequest:
    return InvalidRequest("the form has a header that could be read in two ways")


def _parameters(text: str) -> dict[str, str]:
    """Parses ``; a=b; c="d"``. Raises InvalidRequest for a duplicate parameter and for anything malformed."""
    found: dict[str, str] = {}
    at = 0
    while text[at:].strip(" ;\t"):
        match = _PARAMETER.match(text, at)
        key = match[1].lower() if match else ""
        if match is None or key in found or key == "name*":
            raise _ambiguous()
        found[key] = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        at = match.end()
    return found
