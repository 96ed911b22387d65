"""Bearer tokens in a TOML file: a table for each client, with its tokens or their SHA-256, and its limits.

The file may be replaced while the server runs. The next call is checked against the new file. A file that is wrong
changes nothing. Neither the log nor an error has a token.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .identities import Identity
from .watched_files import WatchedFiles

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

log = logging.getLogger(__name__)

# The tokens of RFC 6750, of a length that nobody guesses.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_POSITION = re.compile(r"at line \d+, column \d+|at end of document")
_KEYS = ("tokens", "sha256", "expires", "max_requests", "max_waiting")

# Each call compares its token with all of the file.
_MAX_TOKENS = 1000


class TokenFileError(Exception):
    """The file is wrong. The message names the file and the place, for the person who starts the server."""


@dataclass(frozen=True)
class _Entry:
    digest: bytes  # SHA-256 of the token
    identity: Identity
    expires: datetime | None


class TokenFile:
    """The tokens of a file. For one thread at a time."""

    def __init__(self, path: str) -> None:
        """Reads the file. Raises TokenFileError."""
        self._path = path
        self._file = WatchedFiles([path])
        self._file.have_changed()
        self._entries = self._read()

    def identify(self, token: str) -> Identity | None:
        """Returns whose token this is; None for a token that is wrong or expired.

        The time that this takes says nothing about the tokens of the file: all are compared, by their SHA-256, each in
        constant time.
        """
        if self._file.have_changed():
            self._renew()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = datetime.now(timezone.utc)
        matches = [hmac.compare_digest(digest, entry.digest) and _is_valid(entry, now) for entry in self._entries]
        return self._entries[matches.index(True)].identity if True in matches else None

    def _renew(self) -> None:
        try:
            self._entries = self._read()
        except TokenFileError as error:
            log.warning("the tokens stay as they are: %s", error)
            return
        log.info("%s: read again, %d tokens", self._path, len(self._entries))

    def _read(self) -> list[_Entry]:
        try:
            document = tomllib.loads(Path(self._path).read_bytes().decode())
        except OSError as error:
            raise self._error((), error.strerror or "cannot be read") from None
        except tomllib.TOMLDecodeError as error:  # its message may quote the file
            position = _POSITION.search(str(error))
            raise self._error((), f"is no TOML{f', {position[0]}' if position else ''}") from None
        except ValueError:
            raise self._error((), "is no text in UTF-8") from None
        entries = [entry for name, table in document.items() for entry in self._read_client(name, table)]
        if not entries:
            raise self._error((), "has no token, so that nobody could call")
        if len(entries) > _MAX_TOKENS:
            raise self._error((), f"has {len(entries):,} tokens, and {_MAX_TOKENS:,} are allowed")
        if len({entry.digest for entry in entries}) < len(entries):
            raise self._error((), "has one token twice")
        return entries

    def _read_client(self, name: str, table: object) -> list[_Entry]:
        if not isinstance(table, dict):
            raise self._error((name,), "must be a table: [NAME], then its tokens")
        values: Mapping[str, Any] = table
        if unknown := [key for key in values if key not in _KEYS]:
            raise self._error((name, unknown[0]), f"is no key of a client; the keys are {', '.join(_KEYS)}")
        tokens = self._read_list(name, values, "tokens", _TOKEN, "16 or more letters, digits and -._~+/")
        hashes = self._read_list(name, values, "sha256", _SHA256, "64 hexadecimal digits")
        digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        digests += [bytes.fromhex(digest) for digest in hashes]
        if not digests:
            raise self._error((name,), "has neither tokens nor sha256")
        expires = values.get("expires")
        if expires is not None and not (isinstance(expires, datetime) and expires.tzinfo is not None):
            raise self._error((name, "expires"), "must be a time with its zone, such as 2030-12-31T00:00:00Z")
        if expires is not None and expires <= datetime.now(timezone.utc):
            log.warning("%s: %s has expired", self._path, _show(name))
        limits = {key: self._read_limit(name, values, key) for key in ("max_requests", "max_waiting")}
        identity = Identity("token", name, **limits)
        return [_Entry(digest, identity, expires) for digest in digests]

    def _read_list(
        self, name: str, values: Mapping[str, Any], key: str, pattern: re.Pattern[str], form: str
    ) -> list[str]:
        items = values.get(key, [])
        if not isinstance(items, list):
            raise self._error((name, key), "must be a list of strings")
        for index, item in enumerate(items):
            if not isinstance(item, str) or not pattern.fullmatch(item):
                raise self._error((name, f"{key}[{index}]"), f"must be a string of {form}")
        return items

    def _read_limit(self, name: str, values: Mapping[str, Any], key: str) -> int | None:
        limit = values.get(key)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise self._error((name, key), "must be a whole number above 0")
        return limit

    def _error(self, path: Sequence[str], message: str) -> TokenFileError:
        """`path` has the names of tables and keys, each as it stands in the file."""
        place = ".".join(map(_show, path))
        return TokenFileError(f"{self._path}: {place}{': ' if place else ''}{message}")


def _show(name: str) -> str:
    """Returns a name, unless it may be a token, as where names and tokens have changed places."""
    return "a name that is not shown here" if _TOKEN.search(name) else name


def _is_valid(entry: _Entry, now: datetime) -> bool:
    return entry.expires is None or now < entry.expires
