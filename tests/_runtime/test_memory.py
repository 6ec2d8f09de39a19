"""How much memory is free."""

import pytest
import torch

from skve._runtime import memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
V1 = {"memory/memory.limit_in_bytes": 600_000, "memory/memory.usage_in_bytes": 100_000}


NO_LIMIT_V1 = {**V1, "memory/memory.limit_in_bytes": 9223372036854771712}


def test__available_memory__this_machine__a_number_of_bytes():
    free = memory.available_memory(CPU)
    assert free is None or 10**7 < free < 10**14


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 1_024_000),
        ({"memory.max": 500_000, "memory.current": 200_000}, 300_000),
        ({"memory.max": 500_000, "memory.current": 200_000, "memory.stat": "anon 1\ninactive_file 50000"}, 350_000),
        ({"memory.max": 500_000, "memory.current": 200_000, "memory.stat": "unreadable"}, 300_000),
        ({"memory.max": 5_000_000, "memory.current": 200_000}, 1_024_000),
        ({"memory.max": 500_000, "memory.current": 500_001}, 0),
        ({"memory.max": 500_000}, 1_024_000),
        ({"memory.max": "max", "memory.current": 200_000}, 1_024_000),
        (V1, 500_000),
        ({**V1, "memory/memory.stat": "active_file 30000\ninactive_file 20000"}, 550_000),
        (NO_LIMIT_V1, 1_024_000),
    ],
)
def test__available_memory__containers__what_machine_and_limit_leave(files, free, monkeypatch, tmp_path):
    (tmp_path / "memory").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(f"{content}\n")
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:   1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_memory(CPU) == free


def test__available_memory__nothing_is_told__none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.delattr(memory.os, "sysconf", raising=False)
    assert memory.available_memory(CPU) is None


def test__available_memory__cuda__what_torch_keeps_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert memory.available_memory(CUDA) == 1300


def test__available_memory__cuda_that_does_not_tell_or_mps__none(monkeypatch):
    def fail(device):
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert memory.available_memory(CUDA) is None
    assert memory.available_memory(torch.device("mps")) is None
