"""A server finds the kernels that were built ahead, and Triton's launcher."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sidelight.kernels.common.triton_versions import has_one_launcher, launcher_depends_on_driver_folder
from sidelight.kernels.tools import prebuild, prebuild_cli

SCRIPT = Path(__file__).parent / "cached_kernels.py"
TARGETS = ["sm_90", "gfx942"]


def script(*arguments: str | Path, **variables: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=SCRIPT.parent,
        env={**environment, **{name: str(value) for name, value in variables.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case of each kernel, built for two GPUs. Tests that compile must use a copy."""
    folder = tmp_path_factory.mktemp("built") / "cache"
    output = script("build", "--cache", folder, "--target", TARGETS[0], "--target", TARGETS[1])
    print(output)
    for target in TARGETS:
        assert re.search(rf"^{target}  layout_kernel  [0-9a-f]{{16}}  \d+\.\d+ s  \d+ KiB$", output, re.MULTILINE)
    assert f"TRITON_CACHE_DIR={folder} sidelight serve" in output
    return folder


def cache_hits(target: str, case: str, cache: Path) -> list[bool]:
    return json.loads(script("launch", target, case, TRITON_CACHE_DIR=cache))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_launches_find_what_was_built(target: str, cache: Path) -> None:
    hits = cache_hits(target, "every", cache)
    assert hits
    assert all(hits)


@pytest.fixture
def copied(cache: Path, tmp_path: Path) -> Path:
    """A copy of the cache, in which kernels may be compiled. Its index leads to the files of the original."""
    return shutil.copytree(cache, tmp_path / "copied")


@pytest.mark.slow
def test_other_launches_are_compiled(copied: Path) -> None:
    assert cache_hits("sm_90", "first", copied) == [True]
    assert cache_hits("sm_90", "unaligned", copied) == [False]
    assert cache_hits("sm_80", "first", copied) == [False]
    assert cache_hits("sm_80", "first", copied) == [True]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["PTXAS_OPTIONS", "TRITON_DEBUG", "DISABLE_PTXAS_OPT"])
def test_variables_are_in_the_key(variable: str, copied: Path) -> None:
    value = "--verbose" if variable == "PTXAS_OPTIONS" else "1"
    hits = script("launch", "sm_90", "first", TRITON_CACHE_DIR=copied, **{variable: value})
    assert json.loads(hits) == [False]


@pytest.mark.slow
def test_a_moved_cache_is_found_empty(tmp_path: Path) -> None:
    # The documentation says so. If Triton begins to store relative paths, the documentation must change.
    script("build", "--cache", tmp_path / "before", "--target", "sm_90")
    assert cache_hits("sm_90", "first", tmp_path / "before") == [True]
    (tmp_path / "before").rename(tmp_path / "after")
    assert cache_hits("sm_90", "first", tmp_path / "after") == [False]


@pytest.mark.slow
def test_builds_once(cache: Path) -> None:
    output = script("build", "--cache", cache, "--target", "sm_90")
    assert re.search(r"^sm_90  \d+ in all, 0 of them compiled now", output, re.MULTILINE)


@pytest.mark.slow
def test_a_relative_path_becomes_whole(tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path / "cache", SCRIPT.parent)
    assert f"TRITON_CACHE_DIR={tmp_path / 'cache'} " in script("build", "--cache", relative, "--target", "sm_90")
    assert cache_hits("sm_90", "first", tmp_path / "cache") == [True]


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("nm")), reason="needs a C compiler and nm")
@pytest.mark.skipif(not has_one_launcher(), reason="this Triton compiles a launcher for each kernel, on the server")
def test_the_launcher_loads_without_a_compiler(tmp_path: Path) -> None:
    libraries = {"TRITON_LIBCUDA_PATH": tmp_path, "LD_LIBRARY_PATH": tmp_path}
    cache = tmp_path / "cache"
    script("launcher", "sm_90", cache, **libraries)
    module, *_ = cache.glob("*/cuda_utils.*.so")
    # A stub of the driver's library, with all functions that the launcher needs.
    undefined = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", module], capture_output=True, text=True, check=True
    )
    names = re.findall(r" (cu[A-Z]\w+)", undefined.stdout)
    assert names
    source = tmp_path / "driver.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in names))
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source], check=True)
    script("load", TRITON_CACHE_DIR=cache, CC="/bin/false", **libraries)
    script("load", TRITON_CACHE_DIR=cache, CC="/bin/false", PATH="", **libraries)  # as without the program `file`
    with pytest.raises(AssertionError, match="/bin/false"):  # without the cache the compiler is needed
        script("load", TRITON_CACHE_DIR=tmp_path / "empty", CC="/bin/false", **libraries)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")
def test_reports_the_launcher(cache: Path) -> None:
    """The launcher is built with the kernels, or reported as missing; and its requirements are listed."""
    assert any(cache.glob("*/cuda_utils.*.so")) == has_one_launcher()
    text = " ".join(prebuild.requirements("sm_90", cache))
    expected = has_one_launcher() and launcher_depends_on_driver_folder()
    assert ("libcuda.so.1" in text) == expected


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    prebuild_cli.add_arguments(parser)
    return prebuild_cli.run(parser.parse_args(arguments), list)


def test_refuses_unknown_targets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--cache", str(tmp_path / "cache"), "--target", "sm_90", "--target", "h100") == 1
    assert "--target: must be one of sm_80," in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_refuses_where_kernels_are_interpreted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run("--cache", str(tmp_path / "cache"), "--target", "sm_90") == 1
    assert "TRITON_INTERPRET" in capsys.readouterr().err


def test_a_cache_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (tmp_path / "file").touch()
    assert run("--cache", str(tmp_path / "file" / "cache"), "--target", "sm_90") == 1
    assert "file/cache" in capsys.readouterr().err
