"""The audit: figures of assembly, occupancy, and planted faults, which it must find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sidelight.client.cli.main import main
from sidelight.kernels.tools.disassembly import read_amd, read_nvidia
from sidelight.kernels.tools.occupancy import LIMITS, resident_warps

NVIDIA = """\
Resource usage:
 Common:
  GLOBAL:0
 Function product:
  REG:168 STACK:8 SHARED:0 LOCAL:16 CONSTANT[0]:400 TEXTURE:0 SURFACE:0 SAMPLER:0

	code for sm_80
		Function : product
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                            /* 0x00000a0000017a02 */
                                                                                     /* 0x000fe40000000f00 */
        /*0010*/                   LDGSTS.E.BYPASS.LTC128B.64 [R30], [R32.64], P2 ;  /* 0x00000000201e7fae */
        /*0020*/                   LDGDEPBAR ;                                       /* 0x00000000000079af */
        /*0030*/              @!P0 LDG.E.128.CONSTANT R4, [R2.64] ;                  /* 0x0000000402048981 */
        /*0040*/              @!P1 LDG.E.128.CONSTANT R8, [R2.64] ;                  /* 0x0000000402089981 */
        /*0050*/                   LDG.E R0, [R2.64] ;                               /* 0x0000000402007981 */
        /*0060*/                   LDG.E.U16 R0, [R2.64] ;                           /* 0x0000000402007981 */
        /*0070*/                   LDS.128 R12, [R4] ;                               /* 0x00000000040c7984 */
        /*0080*/                   HMMA.16816.F32 R12, R104, R20.reuse, R12 ;        /* 0x00000014680c723c */
        /*0090*/              @P0  HGMMA.64x64x16.F32 R56, gdesc[UR8], R56 ;         /* 0x00e00000083879f0 */
        /*00a0*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;       /* 0x00ff0006040075ea */
        /*00b0*/                   UTCBAR [UR4], URZ ;                               /* 0x000000ff040073e9 */
        /*00c0*/                   UTMALDG.2D [UR8], [UR4] ;                         /* 0x00000008040075b4 */
        /*00d0*/                   STG.E.64 [R2.64], R4 ;                            /* 0x0000000402007986 */
        /*00e0*/                   STL [R1], R4 ;                                    /* 0x0000000401007387 */
        /*00f0*/                   EXIT ;                                            /* 0x000000000000794d */
"""

AMD = """\
	s_load_dwordx8 s[4:11], s[0:1], 0x0
	buffer_load_dwordx4 v[2:5], v1, s[8:11], 0 offen
	global_load_dwordx2 v[2:3], v[4:5], off
	global_load_lds_dword v[2:3], off
	global_load_ushort v2, v[4:5], off
	buffer_load_short_d16_hi v2, v1, s[8:11], 0 offen
	buffer_load_ubyte v2, v1, s[8:11], 0 offen
	ds_read_b128 v[2:5], v1
	v_mfma_f32_32x32x8_f16 v[0:15], v[2:3], v[4:5], 0
	v_mfma_f32_32x32x8_f16 v[0:15], v[6:7], v[8:9], v[0:15]
	buffer_store_dword v2, v1, s[8:11], 0 offen
	s_endpgm
amdhsa.kernels:
  - .agpr_count:     16
    .private_segment_fixed_size: 4
    .sgpr_count:     29
    .sgpr_spill_count: 2
    .vgpr_count:     128
    .vgpr_spill_count: 1
"""


def test_reads_the_output_of_cuobjdump() -> None:
    code = read_nvidia(NVIDIA)
    assert code.registers == 168
    assert code.spilled == 24
    assert code.loads == {64: 1, 128: 3, 32: 1, 16: 1}  # LTC128B is no width; TMA counts as 128
    assert code.stores == {64: 1}
    assert code.tensor_cores == {"HMMA": 1, "HGMMA": 1, "UTCHMMA": 1}
    with pytest.raises(ValueError, match="no resource usage"):
        read_nvidia("")


def test_reads_amd_assembly() -> None:
    code = read_amd(AMD)
    assert code.registers == 128
    assert code.spilled == 7
    assert code.loads == {128: 1, 64: 1, 32: 1, 16: 2, 8: 1}
    assert code.stores == {32: 1}
    assert code.tensor_cores == {"MFMA": 2}
    with pytest.raises(ValueError, match="unknown width"):
        read_amd(AMD.replace("dwordx2", "format_xy"))
    with pytest.raises(ValueError, match="no vgpr_count"):
        read_amd(AMD.replace("vgpr_count", "count"))


@pytest.mark.parametrize(
    ("target", "warps", "registers", "shared", "expected"),
    [
        ("sm_80", 4, 32, 0, 64),  # all
        ("sm_80", 1, 32, 0, 32),  # 32 blocks at most
        ("sm_80", 4, 33, 0, 48),  # 40 registers with rounding: 12 of 512 for each of 4 partitions
        ("sm_90", 4, 128, 0, 16),
        ("sm_90", 8, 168, 0, 8),  # 3 warps for each partition, of which the second block would need 4
        ("sm_90", 4, 255, 0, 8),
        ("sm_80", 4, 32, 48 * 1024, 12),  # 3 blocks of 49 KiB in 164
        ("sm_90", 4, 32, 48 * 1024, 16),  # 4 in 228
        ("sm_80", 4, 32, 163 * 1024, 4),  # 1 KiB belongs to the system
        ("sm_80", 4, 32, 163 * 1024 + 1, 0),
        ("sm_86", 4, 32, 0, 48),
        ("sm_86", 1, 32, 0, 16),
        ("sm_89", 1, 32, 0, 24),
        ("gfx942", 4, 64, 0, 32),
        ("gfx942", 4, 65, 0, 28),  # 72 with rounding
        ("gfx942", 4, 128, 0, 16),
        ("gfx942", 1, 32, 0, 16),
        ("gfx942", 4, 32, 16 * 1024, 16),
        ("gfx90a", 4, 512, 64 * 1024, 4),
        ("gfx90a", 4, 512, 64 * 1024 + 1, 0),
    ],
)
def test_resident_warps(target: str, warps: int, registers: int, shared: int, expected: int) -> None:
    assert resident_warps(target, warps, registers, shared) == expected
    assert expected <= LIMITS[target].warps


def test_resident_warps_with_tensor_memory() -> None:
    assert resident_warps("sm_100", 4, 32, 0, tensor_memory=0) == 64
    assert resident_warps("sm_100", 4, 32, 0, tensor_memory=128) == 16


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}


@pytest.mark.slow
def test_finds_planted_faults(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "planted_audit.py", tmp_path],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)  # for failures
    assert done.returncode == 1, done.stderr
    written = json.loads((tmp_path / "audit.json").read_text())
    targets = ["sm_80", "sm_90", "sm_100", "gfx942"]
    raised = "ValueError: no [such] tile"
    wrong = [
        *[f"product, too wide: {target}: loads 128 bits at once, not 1024" for target in targets],
        "product, too few bytes: moves 131,072 bytes, more than 1.05 times the least, 65,536",
        "product, too many bytes: moves 131,072 bytes, fewer than what is said to be the least, 131,073",
        *[f"product, no tensor cores: {target}: uses no tensor cores" for target in targets[:3]],
        *[f"product, raises: {target}: does not compile: {raised}" for target in targets],
        f"product, raises: does not run: {raised}",
    ]
    spills = [line for line in written["wrong"] if line.startswith("product, spills: ")]
    assert [line.split(": ")[1] for line in spills] == targets[:3]
    assert [line for line in written["wrong"] if line not in spills] == wrong
    for line in written["wrong"]:
        assert f"FAILED  {line}\n" in done.stdout
    good, *_ = written["variants"]
    assert good["traffic"] == {"loaded": (128 + 64) * 256 * 2, "stored": 128 * 64 * 4}
    for target, kind in zip(targets, ("HMMA", "HGMMA", "UTCHMMA", "MFMA"), strict=True):
        ((built,),) = [good["built"][target]]
        check_good(built, kind, 32 if target == "gfx942" else 64)
    lines = (tmp_path / "audit.md").read_text().splitlines()
    assert len(lines) == 2 + 7 + 1  # one of them launches twice
    assert all(line.count("|") == 8 for line in lines)


def check_good(built: dict[str, Any], kind: str, most_warps: int) -> None:
    code = built["code"]
    assert built["name"] == "product_kernel"
    assert code["spilled"] == 0
    assert max(map(int, code["loads"])) == 128
    assert max(map(int, code["stores"])) >= 64
    assert list(code["tensor_cores"]) == [kind]
    assert 64 <= code["registers"] <= 256
    assert built["shared"] >= 16 * 1024
    assert built["most_warps"] == most_warps
    assert 4 <= built["resident_warps"] <= 16


def run_cli(arguments: list[str], tmp_path: Path, before: str) -> subprocess.CompletedProcess[str]:
    script = f"import sys\n{before}\nfrom sidelight.client.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["kernels", "--help"], "audit"),
        (["kernels", "audit", "--help"], "--markdown FILE"),
    ],
)
def test_kernels_commands_have_help(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # wide enough for every line
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert not raised.value.code
    written = capsys.readouterr().out
    assert written.startswith("usage: sidelight kernels")
    assert text in written


def test_audit_refuses_unknown_targets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["kernels", "audit", "--target", "sm_20"]) == 1
    assert capsys.readouterr().err.startswith("sidelight: --target: must be one of sm_80, ")


def test_kernels_command_says_that_torch_is_missing(tmp_path: Path) -> None:
    done = run_cli(["kernels", "audit"], tmp_path, before='sys.modules["torch"] = None')
    assert done.returncode == 1
    assert done.stderr == "sidelight: torch is missing; install it with: pip install 'sidelight[server]'\n"
    assert run_cli(["--help"], tmp_path, before='sys.modules["torch"] = None').returncode == 0
