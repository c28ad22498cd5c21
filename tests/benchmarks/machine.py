"""What a figure is of: the processor, what it can multiply with, and torch."""

from pathlib import Path

import torch


def described() -> str:
    """In a line, such as "AMD EPYC, AVX2, torch 2.13.0"."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    units = [name for flag, name in (("amx_tile", "AMX"), ("avx512_bf16", "AVX512_BF16")) if flag in _flags()]
    return ", ".join([*names[:1], torch.backends.cpu.get_cpu_capability(), *units, f"torch {torch.__version__}"])


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        return []


def _flags() -> set[str]:
    return {flag for line in _cpuinfo() if line.startswith("flags") for flag in line.split()}


if __name__ == "__main__":
    print(described())
