"""Token files: what they hold, what is refused, and what a change of the file does."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
from authorities import replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sidelight.server.operations import Identity, TokenFile
from sidelight.server.operations.tokens import TokenFileError

FIRST, SECOND, THIRD = "first-secret-token", "second-secret-token", "third-secret-token"


def write(path, text: str) -> str:
    replace(path, text.encode())
    return str(path)


def test_tokens_and_hashes_name_their_client_and_its_limits(tmp_path):
    digest = hashlib.sha256(SECOND.encode()).hexdigest()
    text = f"[web]\ntokens = ['{FIRST}']\nsha256 = ['{digest}']\nmax_requests = 4\nmax_waiting = 2\n"
    tokens = TokenFile(write(tmp_path / "tokens", f"{text}[batch]\ntokens = ['{THIRD}']\n"))
    for token in (FIRST, SECOND):
        identity = tokens.identify(token)
        assert identity == Identity("token", "web")
        assert (identity.max_requests, identity.max_waiting) == (4, 2)
    assert tokens.identify(THIRD) == Identity("token", "batch")
    for wrong in ("", "x", FIRST[:-1], f"{FIRST} ", digest, "\udc80"):
        assert tokens.identify(wrong) is None


def test_a_token_is_compared_with_all_tokens_whether_it_is_known_or_not(tmp_path, monkeypatch):
    tokens = TokenFile(
        write(tmp_path / "tokens", f"[a]\ntokens = ['{FIRST}', '{SECOND}']\n[b]\ntokens = ['{THIRD}']\n")
    )
    compared = []
    from sidelight.server.operations import tokens as module

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one) == len(other) == 32)
        return one == other

    monkeypatch.setattr(module.hmac, "compare_digest", compare)
    for token in (FIRST, THIRD, "", "wrong"):
        compared.clear()
        tokens.identify(token)
        assert compared == [True] * 3


def test_an_expired_token_is_unknown(tmp_path):
    text = f"[old]\ntokens = ['{FIRST}']\nexpires = 2020-01-01T00:00:00Z\n[new]\ntokens = ['{SECOND}']\n"
    tokens = TokenFile(write(tmp_path / "tokens", f"{text}expires = 2999-01-01T00:00:00+02:00\n"))
    assert tokens.identify(FIRST) is None
    assert tokens.identify(SECOND) is not None


def test_a_changed_file_counts_at_once_and_a_wrong_one_changes_nothing(tmp_path, caplog):
    path = tmp_path / "tokens"
    tokens = TokenFile(write(path, f"[a]\ntokens = ['{FIRST}']"))
    assert tokens.identify(SECOND) is None
    write(path, f"[a]\ntokens = ['{SECOND}']")
    assert tokens.identify(SECOND) is not None
    assert tokens.identify(FIRST) is None
    with caplog.at_level(logging.WARNING):
        write(path, f"[a]\ntokens = ['{THIRD}'")
        assert tokens.identify(SECOND) is not None
        assert tokens.identify(THIRD) is None
        path.unlink()
        assert tokens.identify(SECOND) is not None
    assert [record.levelname for record in caplog.records].count("WARNING") == 2
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no token"),
        ("[a", "is no TOML, at "),
        (f"tokens = ['{FIRST}']", "tokens: must be a table"),
        (f"[a]\ntoken = ['{FIRST}']", "a.token: is no key"),
        ("[a]\n", "a: has neither tokens nor sha256"),
        (f"[a]\ntokens = '{FIRST}'", "a.tokens: must be a list"),
        ("[a]\ntokens = ['secret']", "a.tokens[0]: must be a string of 16"),
        (f"[a]\ntokens = ['{FIRST}', 'secret secret secret']", "a.tokens[1]: must be"),
        ("[a]\nsha256 = ['secret']", "a.sha256[0]: must be a string of 64"),
        (f"[a]\ntokens = ['{FIRST}']\nexpires = 2030-01-01T00:00:00", "a.expires: must be a time with its zone"),
        (f"[a]\ntokens = ['{FIRST}']\nmax_requests = 0", "a.max_requests: must be a whole number"),
        (f"[a]\ntokens = ['{FIRST}']\nmax_waiting = true", "a.max_waiting: must be a whole number"),
        (f"[a]\ntokens = ['{FIRST}']\n[b]\ntokens = ['{FIRST}']", "has one token twice"),
        ("[a]\ntokens = [" + ",".join(f"'token-number-{i:05}'" for i in range(1001)) + "]", "has 1,001 tokens"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_without_its_tokens(tmp_path, text, said):
    with pytest.raises(TokenFileError) as raised:
        TokenFile(write(tmp_path / "tokens", text))
    assert str(raised.value).startswith(f"{tmp_path}/tokens: {said}")
    assert "secret" not in str(raised.value)


# Tokens as people have them, with dots where JSON Web Tokens have them, alone or within a longer name.
_SECRETS = st.from_regex(r"[A-Za-z0-9._~+/-]{16,60}={0,2}", fullmatch=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=_SECRETS, before=st.sampled_from(["", " ", "Bearer ", "ä"]), key=st.sampled_from(["tokens", "limit"]))
def test_no_part_of_a_name_that_may_be_a_token_is_shown(tmp_path_factory, caplog, secret, before, key):
    """Where a token stands as a client's name, or as a key: in the error at the start, and in the log afterwards."""
    path = tmp_path_factory.getbasetemp() / "tokens-of-names"
    name = json.dumps(before + secret)
    parts = [part for part in secret.split(".") if len(part) >= 6]
    expired = f"[{name}]\ntokens = ['{FIRST}']\nexpires = 2020-01-01T00:00:00Z\n"
    caplog.clear()
    TokenFile(write(path, expired))
    for text in (f"[{name}]\n{key} = 5\n", f"[web]\n{name} = 5\n", f"[{name}]\ntokens = ['x']\n", f"{name} = 3\n"):
        with pytest.raises(TokenFileError) as raised:
            TokenFile(write(path, text))
        said = str(raised.value).removeprefix(str(path)) + caplog.text.replace(str(path), "")
        assert secret not in said
        assert not [part for part in parts if part in said and part not in "tokens"]
