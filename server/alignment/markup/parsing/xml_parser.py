"""XML and the inline elements of XLIFF as pieces.

The parser is Expat, of Python's own library: Expat says at which byte of the text each event begins, so each tag comes
back byte for byte. Expat does not expand entities here: a reference to an entity of one's own is kept as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.parsers import expat

from ....errors import RequestError, invalid
from .html_parser import parse_html
from .pieces import Piece, check_count, malformed

# The element around a fragment, which may have several elements and texts side by side.
_ROOT = b"<fragment>"
_ROOT_END = b"</fragment>"


def parse_xml(text: str, is_strict: bool) -> list[Piece]:
    """Cuts XML into pieces.

    A text that is not well-formed is read as HTML is if not `is_strict`. Raises RequestError otherwise.
    """
    try:
        return _XmlReader(text).read()
    except _NotWellFormedError as error:
        if is_strict:
            raise error.cause from None
    except UnicodeEncodeError:
        raise invalid("source.text", "MALFORMED_MARKUP", "has a lone surrogate") from None
    return parse_html(text, is_strict=False)


class _NotWellFormedError(Exception):
    def __init__(self, cause: RequestError) -> None:
        self.cause = cause


class _XmlReader:
    """Reads one text: notes where each event begins, and cuts the text there."""

    def __init__(self, text: str) -> None:
        self._bytes = text.encode()
        stripped = text.lstrip("\ufeff \t\r\n")
        self._is_document = stripped.startswith(("<?xml ", "<!DOCTYPE"))
        self._shift = 0 if self._is_document else len(_ROOT)
        self._begins: list[int] = []
        self._pieces: list[Piece] = []
        self._depth = 0
        self._num_tags = 0
        self._is_in_doctype = False
        self._cdata: int | None = None  # the number of the piece where a CDATA section begins
        self._parser = parser = expat.ParserCreate("utf-8")
        parser.ordered_attributes = True
        parser.buffer_text = False
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.CommentHandler = self._keep
        parser.ProcessingInstructionHandler = self._keep
        parser.XmlDeclHandler = self._keep
        parser.StartDoctypeDeclHandler = self._start_doctype
        parser.EndDoctypeDeclHandler = self._end_doctype
        parser.StartCdataSectionHandler = self._start_cdata
        parser.EndCdataSectionHandler = self._end_cdata
        parser.DefaultHandler = self._other

    def read(self) -> list[Piece]:
        """Returns the pieces of the text."""
        try:
            if not self._is_document:
                self._parser.Parse(_ROOT, False)
            self._parser.Parse(self._bytes, False)
            self._parser.Parse(b"" if self._is_document else _ROOT_END, True)
        except expat.ExpatError as error:
            raise _NotWellFormedError(self._describe(error)) from None
        if not self._is_document:  # the element around the fragment
            del self._pieces[0], self._begins[0], self._pieces[-1], self._begins[-1]
        if not self._pieces:
            return []
        ends = [*self._begins[1:], len(self._bytes)]
        if self._begins[0] > 0:  # a byte order mark
            self._pieces.insert(0, Piece("empty", ""))
            ends.insert(0, self._begins[0])
            self._begins.insert(0, 0)
        for number, (piece, begin, end) in enumerate(zip(self._pieces, self._begins, ends, strict=True)):
            piece.raw = self._bytes[begin:end].decode()
            if piece.kind == "end" and not piece.raw:  # <x/> ends where its tag ends
                self._pieces[number - 1].kind = "empty"
            piece.is_reference = piece.raw.startswith("&")
        pieces = [piece for piece in self._pieces if piece.raw]
        check_count(sum(piece.kind != "text" for piece in pieces))
        return pieces

    def _describe(self, error: expat.ExpatError) -> RequestError:
        line, column = error.lineno, error.offset
        if line == 1:
            column = max(column - self._shift, 0)
        row = self._bytes.splitlines()[line - 1 : line] or [b""]
        column = len(row[0][:column].decode(errors="ignore"))
        return malformed(f"is not well-formed: {expat.ErrorString(error.code)}", line, column + 1)

    def _add(self, piece: Piece) -> None:
        if self._is_in_doctype:
            return
        self._num_tags += piece.kind not in ("text", "end")  # that an end is no tag of its own shows later
        check_count(self._num_tags)
        self._pieces.append(piece)
        self._begins.append(self._parser.CurrentByteIndex - self._shift)

    def _start(self, name: str, attributes: Sequence[str]) -> None:
        pairs = dict(zip(attributes[::2], attributes[1::2], strict=True))
        self._add(Piece("start", "", "", name, pairs, is_element=True))

    def _end(self, name: str) -> None:
        self._add(Piece("end", "", "", name, is_element=True))

    def _is_at(self, begin: int) -> bool:
        return self._parser.CurrentByteIndex - self._shift == begin

    def _text(self, data: str) -> None:
        if self._pieces and self._pieces[-1].kind == "text" and self._is_at(self._begins[-1]):
            self._pieces[-1].text += data
        else:
            self._add(Piece("text", "", data))

    def _keep(self, *_: object) -> None:
        self._add(Piece("empty", ""))

    def _start_doctype(self, *_: object) -> None:
        self._keep()
        self._is_in_doctype = True

    def _end_doctype(self) -> None:
        self._is_in_doctype = False

    def _start_cdata(self) -> None:
        self._keep()

    def _end_cdata(self) -> None:
        self._keep()

    def _other(self, data: str) -> None:
        """Keeps what no other handler takes: references to entities, and white space outside the root element."""
        if data.isspace():
            self._add(Piece("text", "", data))
        else:
            self._add(Piece("empty", "", data if data.startswith("&") else ""))
