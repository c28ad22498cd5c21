"""What a figure is of: the processor, what it can multiply with, and torch."""

from pathlib import Path

import torch


def described() -> str:
    """In a line, such as "AMD EPYC, AVX2, torch 2.13.0"."""
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in _cpuinfo())}
    flags = told.get("flags", "").split()
    units = [name for flag, name in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512_BF16")) if flag in flags]
    name = told.get("model name", "unknown CPU")
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *units, f"torch {torch.__version__}"])


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return []


if __name__ == "__main__":
    print(described())
