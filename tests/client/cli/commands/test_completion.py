"""`sidelight completion`: shells complete commands, options, choices and file names with its scripts."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from sidelight.client.cli.main import main

# What is typed, and what is offered.
WORDS = {
    "sidelight at": {"attribute"},
    "sidelight attribute --reduce-h": {"--reduce-heads"},
    "sidelight attribute --row ": {"predicting", "reading"},
    "sidelight serve --log-": {"--log-format", "--log-level", "--log-texts"},
    "sidelight completion ": {"bash", "fish", "zsh"},
    "sidelight kernels b": {"bench", "build"},
    "sidelight attribute --file te": {"texts.txt"},
    "sidelight serve mo": {"model/"},
}

# Bash calls the function of the script with what was typed, as it does when Tab is pressed.
BASH = """
source ./script
read -r -a COMP_WORDS <<<"$1"
[[ $1 == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}
function=$(complete -p sidelight | sed -E 's/.*-F ([^ ]+).*/\\1/')
"$function" sidelight "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, another folder, and nothing that begins as these do."""
    (tmp_path / "texts.txt").touch()
    (tmp_path / "model").mkdir()
    return tmp_path


def write_script(shell: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    (folder / "script").write_text(capsys.readouterr().out)


def run(folder: Path, *command: str) -> set[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


def test_bash_completes(folder, capsys):
    write_script("bash", folder, capsys)
    for words, wanted in WORDS.items():
        offered = {word.strip() for word in run(folder, "bash", "--norc", "-c", BASH, "bash", words)}
        assert {word.removesuffix("/") for word in wanted} <= {word.removesuffix("/") for word in offered}, words
        assert not any(word.startswith("--no-c") for word in offered), words


def test_fish_completes(folder, capsys):
    write_script("fish", folder, capsys)
    for words, wanted in WORDS.items():
        assert wanted <= run(folder, "fish", "--no-config", "-c", "source ./script; complete -C $argv[1]", words), words


def test_zsh_completes(folder, capsys):
    """Zsh completes in a terminal only."""
    write_script("zsh", folder, capsys)
    (folder / "script").rename(folder / "_sidelight")
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"], cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "TERM": "dumb", "HOME": str(folder)},
    )  # fmt: skip
    os.close(terminal)
    try:
        os.write(controller, b"PS1='%%'; fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D; echo re''ady\n")
        read_until(controller, "ready\r\n")
        os.write(controller, b"sidelight attribute --reduce-h\t")
        read_until(controller, "--reduce-heads")
        os.write(controller, b"\x15sidelight calib\t")
        read_until(controller, "calibrate")
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def read_until(controller: int, wanted: str) -> None:
    shown, end = "", time.monotonic() + 60
    while wanted not in shown:
        assert select.select([controller], [], [], max(0.0, end - time.monotonic()))[0], shown
        shown += os.read(controller, 65536).decode()


def test_other_shells_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["completion", "powershell"])
    assert end.value.code == 2
    assert "bash" in capsys.readouterr().err
