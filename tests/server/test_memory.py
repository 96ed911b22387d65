from __future__ import annotations

import torch
from sidelight.server import memory


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(cpu) > 1 << 20
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_anon 1\nactive_file 5\ninactive_file 200000\n")
    for limit, expected in (("1000000\n", 500_000), ("600000\n", 100_000), ("400000\n", 0)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory.free_bytes(cpu) == expected
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(cpu) > 1 << 20
