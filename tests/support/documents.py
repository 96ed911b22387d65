"""Reads and runs the project's documents: READMEs, guides, CONTRIBUTING.md, the changelog.

Blocks of `python` and `sh` run in order, in one folder. A block without a language right after such a block is what the
block prints. A block of `sh` that ends with `sidelight serve …` starts a server, which serves to the end of the
document.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "client" / "guides"
NAMES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *(
            path
            for folder in ("client", "kernels", "proto", "server", "tests")  # and not what a build has left
            for path in (ROOT / folder).glob("**/README.md")
        ),
        *(path for path in GUIDES.glob("*.md") if path.name != "README.md"),
    )
)
"""All documents, as paths from the root of the repository."""

RUNS_ELSEWHERE = {
    "bash tests/gpu/run.sh OUT --dry": "tests/gpu/test_run.py::test_the_whole_script_runs_dry",
    "sidelight kernels audit --target sm_90": "tests/kernels/tools/test_audit.py::test_finds_planted_faults",
    "sidelight kernels build --target sm_90 --cache DIR": "tests/kernels/tools/test_prebuild.py::test_builds_once",
}
"""Blocks of `sh` that take minutes, and the test that runs what each of them does, of a few kernels."""

ADDRESS, METRICS = "127.0.0.1:50051", "127.0.0.1:9464"
"""The addresses that documents write."""


@cache
def tokens(name: str) -> list[Token]:
    """The Markdown tokens of a document, those inside of paragraphs and cells too."""
    blocks = MarkdownIt("commonmark").enable("table").parse((ROOT / name).read_text(encoding="utf-8"))
    return [token for block in blocks for token in (block, *(block.children or []))]


def has_block(name: str, *languages: str) -> bool:
    return any(token.type == "fence" and token.info in languages for token in tokens(name))


@cache
def anchors(name: str) -> set[str]:
    """The anchors that GitHub gives the headings of a document."""
    everything = tokens(name)
    headings = [after.content for token, after in pairwise(everything) if token.type == "heading_open"]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(name: str) -> list[str]:
    """What a document says to type: the lines of its blocks of commands, and its code in backticks."""
    lines = [token.content for token in tokens(name) if token.type == "code_inline"]
    for token in tokens(name):
        if token.type == "fence" and token.info in ("", "sh"):
            lines += token.content.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").partition("#")[0].strip() for line in lines]


class DocumentRunner:
    """Runs the blocks of one document against the server at `address`, in the folder `folder`.

    Where the document starts a server of its own, `address` is where that server listens.
    """

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self._name, self._folder = name, folder
        starts_server = any(_is_server(token) for token in tokens(name))
        self._addresses = {ADDRESS: free_address() if starts_server else address, METRICS: free_address()}
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._servers: list[subprocess.Popen[str]] = []

    def run(self) -> int:
        """Runs all blocks. Returns their number. Raises AssertionError where a block fails or prints other text."""
        count = 0
        with self._stopping_servers():
            for block, after in pairwise([*tokens(self._name), Token("end", "", 0)]):
                if block.type != "fence" or block.info not in ("python", "sh"):
                    continue
                count += 1
                if block.content.strip() in RUNS_ELSEWHERE:
                    continue
                printed = self._run_block(block)
                if after.type == "fence" and not after.info:
                    assert printed == after.content, block.content
        return count

    def _run_block(self, block: Token) -> str:
        source = block.content
        for written, real in self._addresses.items():
            source = source.replace(written, real)
        if block.info == "python":
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(source, self._name, "exec"), self._namespace)
            return output.getvalue()
        if _is_server(block):
            return self._start_server(source)
        # So that each command of the block must succeed, not the last one alone.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source], **self._options(), capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{block.content}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _options(self) -> dict[str, Any]:
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": paths, "COLUMNS": "80", "SIDELIGHT_ADDRESS": self._addresses[ADDRESS]}
        return {"cwd": self._folder, "env": environment, "text": True}

    def _start_server(self, source: str) -> str:
        before, _, serve = source.replace("\\\n", " ").strip().rpartition("\n")
        command = ["bash", "-euo", "pipefail", "-c", f"{before}\nexec {serve}"]
        log = self._folder / "server.log"
        with log.open("w") as file:
            server = subprocess.Popen(command, **self._options(), stdout=subprocess.PIPE, stderr=file)
        self._servers.append(server)
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line, f"{source}\n{log.read_text()}"
        return line

    @contextlib.contextmanager
    def _stopping_servers(self) -> Iterator[None]:
        try:
            yield
        finally:
            for server in self._servers:
                server.terminate()
                server.communicate(timeout=60)


def _is_server(block: Token) -> bool:
    """Whether a block is one of commands, of which the last one serves."""
    commands = block.content.replace("\\\n", " ").strip().splitlines()
    return block.type == "fence" and block.info == "sh" and commands[-1].startswith("sidelight serve")


def free_address() -> str:
    """A free address of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
