# SPDX-License-Identifier: Apache-2.0
"""Heads: that of a request as bytes, that of an answer as fields.

``http.client`` parses a head as one of a mail, by ``email``: for many small blobs that costs
more than all else about a request.  It also stops at a malformed line, and takes the fields
before it for all; here such a head is an error, as it is for Go.

RFC 9112, 2 to 5.
"""
import re
from typing import BinaryIO, Dict, List, Mapping, NamedTuple

MAX_LINE = 64 << 10  # bytes
MAX_LINES = 100
_BLANKS = " \t"
# One run of any characters in each: with blanks apart, a line of blanks would take days.
_STATUS = r"HTTP/1\.([0-9]{1,9})[ \t]+([1-9][0-9]{2})(|[ \t][^\r\n\0]*)\r?\n"
_FIELD = r"([!-9;-~]+):([^\r\n\0]*)\r?\n"
_FOLDED = r"[ \t]([^\r\n\0]*)\r?\n"


class MalformedHead(ValueError):
    """A head that is none of HTTP/1; the text is its line."""


class NoAnswer(ConnectionError):
    """A connection that ended before the head of an answer did."""


class Head(NamedTuple):
    """The head of an answer; fields by their names in lower case, each as often as it was sent."""
    status: int
    reason: str
    fields: Dict[str, List[str]]
    bodiless: bool  # whatever the fields say
    closes: bool  # the connection, after this answer

    @classmethod
    def read(cls, file: BinaryIO, method: str) -> "Head":
        """Read the next head of an answer to a ``method``; raises MalformedHead, NoAnswer."""
        line = _line(file)
        match = re.fullmatch(_STATUS, line)
        if match is None:
            raise MalformedHead(line)
        status, fields = int(match.group(2)), _fields(file)
        connection = ",".join(fields.get("connection", []) + fields.get("proxy-connection", [])).lower()
        old = match.group(1) == "0" and "keep-alive" not in connection and "keep-alive" not in fields
        return cls(status, match.group(3).strip(_BLANKS), fields,
                   method == "HEAD" or status < 200 or status in (204, 304), old or "close" in connection)


def _line(file: BinaryIO) -> str:
    line = file.readline(MAX_LINE)
    if not line:
        raise NoAnswer("the connection ended")
    return line.decode("latin-1")


def _fields(file: BinaryIO) -> Dict[str, List[str]]:
    fields: Dict[str, List[str]] = {}
    values: List[str] = []  # of the last field, which may go on
    for _ in range(MAX_LINES + 1):
        line = _line(file)
        if line in ("\r\n", "\n"):
            return fields
        field, folded = re.fullmatch(_FIELD, line), re.fullmatch(_FOLDED, line)
        if field:
            values = fields.setdefault(field.group(1).lower(), [])
            values.append(field.group(2).strip(_BLANKS))
        elif folded and values:
            values[-1] = ("%s %s" % (values[-1], folded.group(1).strip(_BLANKS))).strip(_BLANKS)
        elif line.endswith("\n") or len(line) == MAX_LINE:
            raise MalformedHead(line)
        else:
            raise NoAnswer("the connection ended in a head")
    raise MalformedHead("more than %d fields" % MAX_LINES)


def request_head(method: str, target: str, fields: Mapping[str, str]) -> bytes:
    """Make the head of a request; raises ValueError for a target or a field that is more than that."""
    lines = ["%s %s HTTP/1.1" % (method, target)]
    for name, value in fields.items():
        if not re.fullmatch(r"[!-9;-~]+", name) or re.search("[\r\n\0]", value):
            raise ValueError("field %s is more than one line" % ascii(name))
        lines.append("%s: %s" % (name, value))
    if not re.fullmatch("[!-~]+", target):
        raise ValueError("target %s has a blank or a control character" % ascii(target))
    return "\r\n".join(lines + ["", ""]).encode("latin-1")
