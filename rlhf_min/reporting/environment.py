"""What a run ran on: versions, commit, device, threads, processes and time."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from rlhf_min.hardware import ranks

CPU_KEYS = ("model name", "cpu family", "model")  # of /proc/cpuinfo


def environment() -> dict:
    """Versions, git commit, device, threads and time: what run.json says beside the settings."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    commit = subprocess.run([*git, "--dirty=+changes"], capture_output=True, text=True).stdout
    gpu = torch.cuda.is_available()
    packages = ("torch", "transformers", "tokenizers")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "commit": commit.strip() or "unknown",
        "device": torch.cuda.get_device_name() if gpu else f"{cpu_name()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processes": ranks.size(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name; on Linux with its family and model, because virtual machines hide the name.

    "AMD EPYC (family 25, model 17)" is Zen 4; others of that name multiply bfloat16 twice as fast.
    """
    text = info.read_text() if info.exists() else ""  # there is none outside Linux
    found = [re.search(rf"^{key}\s*: (.+)$", text, re.M) for key in CPU_KEYS]
    name, family, model = (match and match[1] for match in found)
    name = name or platform.processor() or platform.machine()
    return f"{name} (family {family}, model {model})" if family and model else name
