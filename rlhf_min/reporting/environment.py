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


def environment() -> dict:
    """Versions, git commit, device, threads and time: what run.json says beside the settings."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*"]
    commit = subprocess.run([*git, "--dirty=+changes"], capture_output=True, text=True).stdout
    cpuinfo = Path("/proc/cpuinfo")  # on Linux only
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cpu = (names or [platform.processor() or platform.machine()])[0]
    gpu = torch.cuda.is_available()
    packages = ("torch", "transformers", "tokenizers")
    return {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "commit": commit.strip() or "unknown",
        "device": torch.cuda.get_device_name() if gpu else f"{cpu}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processes": ranks.size(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
