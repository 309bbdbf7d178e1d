"""A program `rnp-hub` that need not import torch anew each time.

A server imports everything once, in the environment of a Hub's client. The program that lies on
the action's PATH hands it its words, its folder, its environment and its three streams; the command
runs in a fork, with the real entry point, and the program ends with its exit code.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.worker import exit_code

ROOT = Path(__file__).parents[2]

PROGRAM = """#!{python} -S
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(order).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(order)
    sys.exit(int(server.makefile().read()))
"""


@contextmanager
def warm_program(environment: Mapping[str, str], place: Path) -> Iterator[Path]:
    """A folder with `rnp-hub` and `python` in it."""
    bin = place / "bin"
    bin.mkdir(parents=True)
    address = str(place / "socket")
    (bin / "rnp-hub").write_text(PROGRAM.format(python=sys.executable, address=address))
    (bin / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in bin.iterdir():
        program.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.action.warm", address],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield bin
    finally:
        process.stdin.close()
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def serve(address: str) -> None:
    """Import once, then one fork for each connection, one after the other."""
    import onnxruntime  # noqa: F401
    import timm  # noqa: F401

    import rnp_hub.cli.terminal
    import rnp_hub.gate  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while True:
            client, _ = listening.accept()
            with client:
                code = _in_fork(client)
                client.sendall(str(code).encode())


def _in_fork(client: socket.socket) -> int:
    length, streams, _, _ = socket.recv_fds(client, 8, 3)
    raw = b""
    while len(raw) < int.from_bytes(length, "big"):
        raw += client.recv(2**16)
    if (child := os.fork()) == 0:
        os._exit(_run(json.loads(raw), streams))
    for stream in streams:
        os.close(stream)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _run(order: tuple[list[str], str, dict[str, str]], streams: list[int]) -> int:
    words, folder, environment = order
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    code = exit_code(words)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
