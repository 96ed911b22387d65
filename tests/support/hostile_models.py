"""Hostile models: each has one field of one JSON file changed, and is loaded and asked for a text in this process.

Run `python tests/support/hostile_models.py FOLDER --seed 0 --count 100` in a process of its own: memory is limited. A
line of JSON is printed for each model. `--only NUMBER` repeats one of them.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from harness import request, serving, stub
from sidelight.server.engine.engine import EngineConfig
from sidelight.server.models.loader import ModelError, load

# How much memory a hostile model may take beyond what the process has. The models have less than 1 MiB.
MAX_BYTES = 4 << 30

# A file of code in the model's folder. It leaves a trace if it is ever imported.
CANARY = "from pathlib import Path\nPath(__file__).with_name('executed').touch()\n"

VALUES: tuple[Any, ...] = (
    None, True, "", "x", "512", -1, 0, 1, 3, 1.5, 10**6, 2**31, 2**63, 10**12, 10**30, 1e308, -1e308, float("nan"),
    float("inf"), [], [1, 2], [None], {}, {"a": 1}, "/etc/passwd", "../other/vocab.json", "https://127.0.0.1/x",
    "evil.Evil", "owner/code", "evil--evil.Evil", "AutoModelForCausalLM", "a\nb\x1b[31m", "\ud800", "x" * 100_000,
    [[[[[[]]]]]], ["x"] * 1000,
)  # fmt: skip

FIELDS: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}),
    ("auto_map", ["evil.Evil", "evil.Evil"]),
    ("trust_remote_code", True),
    ("architectures", ["Evil"]),
    ("tokenizer_class", "Evil"),
    ("tokenizer_class", "AutoModelForSeq2SeqLM"),
    ("attn_implementation", "owner/code"),
    ("_attn_implementation", {"": "owner/code"}),
    ("_attn_implementation_internal", "owner/code"),
    ("experts_implementation", "owner/code"),
    ("quantization_config", {"quant_method": "evil"}),
    ("quantization_config", {"quant_method": "torchao", "quant_type": {"default": {"_type": "evil", "_data": {}}}}),
    ("text_config", {"auto_map": {"AutoConfig": "evil.Evil"}}),
    ("vocab_file", "/etc/passwd"),
    ("source_spm", "../other/source.spm"),
    ("tokenizer_file", "../other/tokenizer.json"),
    ("sp_model_kwargs", {"model_file": "/etc/passwd"}),
    ("init_inputs", ["/etc/passwd"]),
    ("transformers_weights", "pytorch_model.bin"),
    ("custom_generate", "evil"),
    ("cache_implementation", "evil"),
    ("dtype", "load"),
    ("is_decoder", True),
    ("is_encoder_decoder", 3),
    ("per_layer_config", {"0": {"num_attention_heads": 10**9}}),
    ("rope_parameters", {"rope_type": "evil", "factor": 1e308}),
    ("use_return_dict", None),
)  # fmt: skip


class Mutation(NamedTuple):
    """A value in a field of a file. `path` has the names of the fields, from the outermost to the innermost."""

    file: str
    path: tuple[str, ...]
    value: Any


def list_mutations(folder: Path) -> list[Mutation]:
    """Lists the mutations of a model: each field of its JSON files with each value, and further fields."""
    mutations: list[Mutation] = []
    for file in sorted(folder.glob("*.json")):
        fields = json.loads(file.read_text(encoding="utf-8"))
        few = file.name not in ("config.json", "generation_config.json", "tokenizer_config.json")
        for path in list(_paths(fields))[: 20 if few else None]:
            mutations += [Mutation(file.name, path, value) for value in VALUES]
        mutations += [Mutation(file.name, (name,), value) for name, value in FIELDS if not few]
    return mutations


def _paths(fields: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, value in fields.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *path) for path in _paths(value))


def mutate(folder: Path, mutation: Mutation) -> None:
    """Changes a field of a model's file, and puts code beside the file."""
    fields = part = json.loads((folder / mutation.file).read_text(encoding="utf-8"))
    for name in mutation.path[:-1]:
        part = part[name]
    part[mutation.path[-1]] = mutation.value
    (folder / mutation.file).write_text(json.dumps(fields), encoding="utf-8")
    for name in ("evil.py", "modeling_evil.py", "configuration_evil.py", "custom_generate.py"):
        (folder / name).write_text(CANARY, encoding="utf-8")


def judge(folder: Path) -> tuple[str, str]:
    """Loads a model and asks it for a text. Returns what happened: refused, served or answered, and the line for it."""
    try:
        loaded = load(folder)
        with serving(loaded, limits=EngineConfig(max_running=2)) as address, stub(address) as service:
            try:
                list(service.Attribute(request("A dog.", decoding={"max_new_tokens": 4}), timeout=60))
            except grpc.RpcError as error:
                return "answered", f"{error.code().name}: {error.details()}"
    except ModelError as error:
        return "refused", str(error).removeprefix(f"cannot load {folder}: ").removeprefix(f"cannot serve {folder}: ")
    return "served", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    load()  # what every model needs is in memory from here on
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    mutations = list_mutations(arguments.folder)
    numbers = random.Random(arguments.seed).sample(range(len(mutations)), min(arguments.count, len(mutations)))
    for number in numbers if arguments.only is None else [arguments.only]:
        mutation = mutations[number]
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(shutil.copytree(arguments.folder, Path(parent) / "model"))
            mutate(folder, mutation)
            began = time.monotonic()
            try:
                end, line = judge(folder)
            except Exception as error:
                end, line = "raised", repr(error)
            ran_code = any(folder.rglob("executed")) or any(folder.rglob("__pycache__"))
        result = {
            "number": number,
            "file": mutation.file,
            "path": mutation.path,
            "value": json.dumps(mutation.value)[:60],
            "end": "ran code" if ran_code else end,
            "line": line,
            "seconds": round(time.monotonic() - began, 2),
        }
        print(json.dumps(result), flush=True)
    sys.exit()


if __name__ == "__main__":
    main()
