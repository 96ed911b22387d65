"""The runner of documents finds what is not so."""

from __future__ import annotations

from pathlib import Path

import documents
import pytest
from documents import ADDRESS, DocumentRunner


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a document of this text, as if a server were at `there:1`."""
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(text: str) -> int:
        (tmp_path / "page.md").write_text(text)
        documents.tokens.cache_clear()
        return DocumentRunner("page.md", "there:1", tmp_path).run()

    yield run
    documents.tokens.cache_clear()


def block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n\n"


def test_blocks_share_a_folder_and_names_and_have_the_address(run):
    text = (
        block("sh", "echo 3 > number")
        + block("python", "from pathlib import Path\nn = int(Path('number').read_text())\nprint(n)")
        + block("", "3")
    )
    assert run(text + block("python", f"print(n + 1, '{ADDRESS}')") + block("", "4 there:1")) == 3
    assert run(block("sh", "echo $SIDELIGHT_ADDRESS") + block("", "there:1")) == 1


@pytest.mark.parametrize(
    "text",
    [
        block("python", "print(3)") + block("", "4"),
        block("sh", "echo 3") + block("", "4"),
        block("sh", "false\necho 3") + block("", "3"),  # a command before the last one fails
        block("sh", "false | cat"),
        block("sh", "sidelight serve --max-slots none"),
    ],
)
def test_what_is_not_so_is_found(run, text):
    with pytest.raises(AssertionError):
        run(text)


def test_an_error_in_python_is_found(run):
    with pytest.raises(ZeroDivisionError):
        run(block("python", "1 / 0"))
