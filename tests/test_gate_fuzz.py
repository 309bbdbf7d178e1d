"""Mutated files: a sentence for each, no traceback, no large allocation, no hang.

Two hundred of each kind here; ten thousand of each in `make bench`. A mutation flips, cuts,
repeats or inserts bytes, or puts an unlikely value in the place of one in the JSON; the same seed
makes the same files.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rnp_hub.errors import RnpHubError
from rnp_hub.gate import Policy, own_report
from rnp_hub.pull import pull
from rnp_hub.report import RunReport
from rnp_hub.static import inspect
from tests.gate_reports import measured
from tests.models import CONFIG, Run

FEW, MANY = 200, 10_000
SECONDS = 2.0
MOST = 256 * 2**20
"""Bytes that a single file may make the process allocate."""

UNLIKELY: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**18, 10**300, -(10**30), 1e308, -0.0, 1e-300,
    float("nan"), float("inf"), "", "a", "\x00", "\ud800", "\u202e", "x" * 5000, "9" * 400, [], {},
    [[]], [None], [0] * 4000, {"": {}}, "../../etc/passwd", "/dev/zero", "vit_giant_patch14_224",
    "resnet152", "model.safetensors", [3, 10**6, 10**6], [1, 1, 1], "F64", [0, 2**60],
]  # fmt: skip

POLICY = b"""# a policy
max_surrogate_asr = 0.2
max_asr = {badnets = 0.05, blend = 0.1}
min_clean_accuracy = 0.9
allow_pickle = false
allowed_licences = ["mit", "apache-2.0"]
"""


def mutated_bytes(raw: bytes, draw: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(draw.randint(1, 6)):
        place, length = draw.randrange(len(data) + 1), draw.randint(1, 12)
        match draw.randrange(7):
            case 0:
                data[place:place] = draw.randbytes(length)
            case 1:
                del data[place : place + length]
            case 2 if data:
                data[min(place, len(data) - 1)] ^= 1 << draw.randrange(8)
            case 3:
                data[place:place] = data[place : place + length] * draw.choice([2, 50, 2000])
            case 4:
                part = draw.choice([b"[", b"{", b'"a":', b"9"])
                data[place : place + length] = part * draw.choice([1, 40, 20_000])
            case 5:
                data[place : place + length] = json.dumps(draw.choice(UNLIKELY)).encode()
            case _:
                del data[place:]
        data = data[:200_000]
    return bytes(data)


def mutated_json(raw: bytes, draw: random.Random) -> bytes:
    """The same, or one value of it exchanged for an unlikely one, or a key for another."""
    if draw.random() < 0.4:
        return mutated_bytes(raw, draw)
    content = json.loads(raw)
    for _ in range(draw.randint(1, 3)):
        places = [*_places(content)]
        if not places:
            break
        holder, key = draw.choice(places)
        if draw.random() < 0.85:
            holder[key] = copy.deepcopy(draw.choice(UNLIKELY))
        elif isinstance(holder, dict):
            holder[draw.choice(["model_args", "num_classes", "auto_map", "x"])] = holder.pop(key)
    return json.dumps(content).encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    keys = content.keys() if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


def fuzz(
    times: int,
    plain: bytes,
    mutate: Callable[[random.Random], bytes],
    take: Callable[[bytes], Any],
) -> int:
    """Feed mutated files to something; only errors that are meant for people may come out.

    The plain file goes first, unmeasured: what is imported for it is no fault of the others. What
    it came to is printed (`pytest -s`).

    Returns:
        How many were refused.
    """
    take(plain)
    refused, slowest, largest, start = 0, 0.0, 0, time.process_time()
    for number in range(times):
        raw = mutate(random.Random(number))
        begun, before = time.process_time(), _resident()
        tracemalloc.start()
        try:
            take(raw)
        except RnpHubError:
            refused += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        spent, grown = time.process_time() - begun, max(peak, _resident() - before)
        assert spent < SECONDS, (number, spent, raw[:500])
        assert grown < MOST, (number, grown, raw[:500])
        slowest, largest = max(slowest, spent), max(largest, grown)
    print(
        f"\n{times:,} files, {refused:,} refused, {time.process_time() - start:.0f} s of the CPU; "
        f"at most {slowest:.2f} s and {largest / 2**20:.1f} MiB for one"
    )
    return refused


def _resident() -> int:
    """Peak of the process so far, in bytes: tensors are allocated past Python."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def weights(plain_model: Path) -> bytes:
    return (plain_model / "model.safetensors").read_bytes()


def fuzz_safetensors(times: int, weights: bytes, folder: Path) -> None:
    """Looked at, then loaded whatever was found: no header brings the reader down either."""
    length = int.from_bytes(weights[:8], "little")
    header, data = weights[8 : 8 + length], weights[8 + length :]
    (folder / "config.json").write_text(json.dumps(CONFIG))
    file = folder / "model.safetensors"

    def mutate(draw: random.Random) -> bytes:
        changed = mutated_json(header, draw)
        stated = len(changed) if draw.random() < 0.9 else draw.getrandbits(draw.choice([8, 32, 64]))
        return stated.to_bytes(8, "little") + changed + data

    def take(raw: bytes) -> None:
        file.write_bytes(raw)
        inspect({file.name: file})
        pull(str(folder))

    assert fuzz(times, weights, mutate, take) > times / 2


def fuzz_configs(times: int, weights: bytes, folder: Path) -> None:
    """Looked at, then followed: the network is built, or a sentence says why not."""
    (folder / "model.safetensors").write_bytes(weights)
    file = folder / "config.json"
    plain = json.dumps(CONFIG).encode()

    def take(raw: bytes) -> None:
        file.write_bytes(raw)
        inspect({file.name: file})
        pull(str(folder))

    assert fuzz(times, plain, lambda draw: mutated_json(plain, draw), take) > times / 3


def fuzz_policies(times: int) -> None:
    refused = fuzz(times, POLICY, lambda draw: mutated_bytes(POLICY, draw), Policy.from_toml)
    assert times / 2 < refused <= times


def fuzz_reports(times: int, run: Run, folder: Path) -> None:
    """Read, and held against a measurement."""
    file = folder / "rnp_report.json"
    files, found = {file.name: file}, measured()
    plain = (run.folder / file.name).read_bytes()

    def take(raw: bytes) -> None:
        file.write_bytes(raw)
        report = own_report.read(files)
        if isinstance(report, RunReport):
            told = own_report.contradiction(report, files, {}, found)
        else:
            told = report
        assert told
        assert "\n" not in told

    fuzz(times, plain, lambda draw: mutated_json(plain, draw), take)


def test_safetensors_headers(weights: bytes, tmp_path: Path) -> None:
    fuzz_safetensors(FEW, weights, tmp_path)


def test_configs(weights: bytes, tmp_path: Path) -> None:
    fuzz_configs(FEW, weights, tmp_path)


def test_policies() -> None:
    fuzz_policies(FEW)


def test_reports(plain_run: Run, tmp_path: Path) -> None:
    fuzz_reports(FEW, plain_run, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
class TestTenThousand:
    def test_safetensors_headers(self, weights: bytes, tmp_path: Path) -> None:
        fuzz_safetensors(MANY, weights, tmp_path)

    def test_configs(self, weights: bytes, tmp_path: Path) -> None:
        fuzz_configs(MANY, weights, tmp_path)

    def test_policies(self) -> None:
        fuzz_policies(MANY)

    def test_reports(self, plain_run: Run, tmp_path: Path) -> None:
        fuzz_reports(MANY, plain_run, tmp_path)
