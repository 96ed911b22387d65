"""The programs of client/examples: how each is built, and how it is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from google.rpc import error_details_pb2

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "client" / "examples"
PROTO = ROOT / "proto"
SECONDS = 900  # for a build on a busy machine

# The Python package of google.rpc brings its .proto files along.
GOOGLEAPIS = Path(error_details_pb2.__file__).parents[2]


class ToolchainError(Exception):
    """The toolchain of a language is not there, or cannot be had. Says what is missing."""


@dataclass(frozen=True)
class Program:
    """A program in one language.

    Attributes:
        folder: Its folder in client/examples.
        sources: Patterns of the files that people have written.
        tools: The commands that building it needs.
        build: Builds it in a folder; gives the command that runs it. May raise ToolchainError.
    """

    folder: str
    sources: Sequence[str]
    tools: Sequence[str]
    build: Callable[[Path, Path], list[str]]

    def make(self, build_folder: Path) -> list[str]:
        """Builds the program; gives the command that runs it. Raises ToolchainError."""
        if missing := [tool for tool in self.tools if shutil.which(tool) is None]:
            raise ToolchainError(f"there is no {', no '.join(missing)}: `make test-clients` installs what Debian has")
        return self.build(EXAMPLES / self.folder, build_folder)


def count_lines(program: Program) -> int:
    """The lines of a program without its build files."""
    files = [path for pattern in program.sources for path in (EXAMPLES / program.folder).glob(pattern)]
    return sum(path.read_text(encoding="utf-8").count("\n") for path in files)


def run(command: Sequence[str | Path], folder: Path) -> None:
    """Runs a command of a build. Raises ToolchainError with the end of what it printed."""
    process = subprocess.run(
        [*map(str, command)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS
    )
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{process.stdout[-3000:]}")


def _build_python(source: Path, _: Path) -> list[str]:
    return [sys.executable, str(source / "sidelight_example.py")]


def _build_go(source: Path, build: Path) -> list[str]:
    if not Path("/usr/share/gocode/src/google.golang.org/grpc").exists():
        raise ToolchainError("there is no golang-google-grpc-dev")
    run(["make", "debian", f"BUILD={build}", f"PROTO={PROTO}"], source)
    return [str(build / "sidelight")]


def _build_node(source: Path, build: Path) -> list[str]:
    package = build / "package.json"
    is_installed = package.exists() and package.read_bytes() == (source / "package.json").read_bytes()
    for path in (*source.glob("*.ts"), source / "package.json", source / "tsconfig.json"):
        shutil.copy(path, build)
    if not is_installed or not (build / "node_modules").exists():
        try:
            run(["npm", "install", "--no-audit", "--no-fund"], build)
        except RuntimeError as error:
            raise ToolchainError(f"the packages of npm cannot be had: {error}") from None
    run(["env", f"PROTO={PROTO}", "npm", "run", "build"], build)
    return ["node", str(build / "build" / "main.js")]


def _build_cpp(source: Path, build: Path) -> list[str]:
    if not Path("/usr/include/grpcpp/grpcpp.h").exists() or not Path("/usr/include/nlohmann/json.hpp").exists():
        raise ToolchainError("there is no libgrpc++-dev or no nlohmann-json3-dev")
    run(["cmake", "-S", source, "-B", build, f"-DGOOGLEAPIS={GOOGLEAPIS}"], source)
    run(["cmake", "--build", build, "-j2"], source)
    return [str(build / "sidelight")]


def _build_java(source: Path, build: Path) -> list[str]:
    for package, jar in (
        ("libgrpc-java", "grpc-netty"),
        ("libnetty-java", "netty-all"),
        ("libnetty-tcnative-java", "netty-tcnative"),
        ("libgoogle-gson-java", "gson"),
    ):
        if not Path(f"/usr/share/java/{jar}.jar").exists():
            raise ToolchainError(f"there is no {package}")
    run(["make", f"BUILD={build}", f"PROTO={PROTO}", f"GOOGLEAPIS={GOOGLEAPIS}"], source)
    return ["java", "-cp", (build / "classpath").read_text(encoding="utf-8").strip(), "Main"]


def _build_ruby(source: Path, build: Path) -> list[str]:
    run(["make", f"BUILD={build}", f"PROTO={PROTO}"], source)
    return ["ruby", "-I", str(build), str(source / "sidelight_example.rb")]


PROGRAMS = {
    "Python": Program("python", ["*.py"], [], _build_python),
    "TypeScript": Program("node", ["*.ts"], ["node", "npm", "protoc"], _build_node),
    "Go": Program("go", ["*.go"], ["go", "protoc", "protoc-gen-go-grpc", "dpkg"], _build_go),
    "C++": Program("cpp", ["*.cc", "*.h"], ["cmake", "g++", "protoc", "grpc_cpp_plugin"], _build_cpp),
    "Java": Program("java", ["*.java"], ["javac", "protoc", "grpc_java_plugin"], _build_java),
    "Ruby": Program("ruby", ["*.rb"], ["ruby", "grpc_tools_ruby_protoc"], _build_ruby),
}
