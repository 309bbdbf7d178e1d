"""The process of the loopback Hub: where it listens, what it keeps, when it ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.hub.client import REPO_ROOT, Hub, clean_environment
from tests.hub.fixture import running_hub


def test_environment_of_a_client_names_this_hub_and_nothing_else(hub: Hub) -> None:
    foreign = {
        "HF_TOKEN": "hf_real",
        "HUGGING_FACE_HUB_TOKEN": "hf_real",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_CACHE": "/elsewhere",
        "https_proxy": "http://elsewhere",
        "PATH": "/bin",
    }
    assert clean_environment(foreign) == {"PATH": "/bin"}

    env, other = hub.env(token="hf_x"), hub.env()

    assert {name: value for name, value in env.items() if name.startswith("HF_")} == {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": env["HF_HOME"],
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_x",
    }
    assert "HF_TOKEN" not in other
    assert other["HF_HOME"] != env["HF_HOME"]
    assert list(Path(env["HF_HOME"]).iterdir()) == []


def is_open(address: str, port: int) -> bool:
    """Say whether something listens there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0


def test_listens_on_one_address_and_keeps_what_it_has(tmp_path: Path) -> None:
    with running_hub(tmp_path) as first:
        port = int(first.endpoint.rpartition(":")[2])
        first.create_repo("me/kept")
        head = first.add_files("me/kept", {"a.txt": "kept"})
        assert is_open("127.0.0.1", port)
        assert not is_open("127.0.0.2", port)
    assert not is_open("127.0.0.1", port)

    with running_hub(tmp_path) as second:
        assert second.head("me/kept") == head
        assert second.read("me/kept", "a.txt") == b"kept"


def test_dies_with_its_parent(tmp_path: Path) -> None:
    parent_source = (
        "import pathlib, sys, time\n"
        "from tests.hub.fixture import running_hub\n"
        "with running_hub(pathlib.Path(sys.argv[1])) as hub:\n"
        "    print(hub.endpoint, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", parent_source, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPO_ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline().rpartition(":")[2])
        assert is_open("127.0.0.1", port)
        parent.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 5
    while is_open("127.0.0.1", port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_open("127.0.0.1", port)
