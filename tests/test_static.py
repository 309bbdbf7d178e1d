"""Files are looked at and never opened as what they say they are."""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from rnp_hub.static import Inspection, files_of, inspect
from rnp_hub.static import finding as bounds
from tests.models import Run

Tensors = dict[str, dict[str, Any]]


class Payload:
    """What an unpickler would turn into a shell command that leaves a canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def looked_at(folder: Path, content: dict[str, bytes]) -> Inspection:
    for name, raw in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    files, found = files_of(folder)
    assert not found
    return inspect(files)


def told(folder: Path, content: dict[str, bytes]) -> list[str]:
    """Findings as `RULE file message`."""
    found = looked_at(folder, content).findings
    return [f"{each.rule} {each.file} {each.message}" for each in found]


def saved(what: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, **options)
    return buffer.getvalue()


def zipped(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, raw in content.items():
            # Without today's time, which would stand in the names of tests.
            archive.writestr(zipfile.ZipInfo(name), raw, compression)
    return buffer.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


# --- what must pass -----------------------------------------------------------------------------


def test_a_sanitized_folder_passes(plain_run: Run) -> None:
    files, links = files_of(plain_run.folder)
    found = inspect(files)
    assert (links, found.findings, found.pickles) == ([], (), ())
    assert found.files == len(files) >= 9
    assert found.safe_to_open


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_of_tensors_are_pickles_and_nothing_worse(legacy: bool, tmp_path: Path) -> None:
    weights = {"a": torch.zeros(3), "b": torch.nn.Parameter(torch.ones(2))}
    raw = saved(weights, _use_new_zipfile_serialization=not legacy)
    found = looked_at(tmp_path, {"pytorch_model.bin": raw, "w.pt": raw, "best.ckpt": raw})
    assert found.findings == ()
    inner = "" if legacy else ":archive/data.pkl"
    assert {name.partition(":")[0] for name in found.pickles} == {
        "pytorch_model.bin", "w.pt", "best.ckpt",
    }  # fmt: skip
    assert all(name.endswith(inner) for name in found.pickles)
    assert found.safe_to_open


def test_tensors_that_look_like_anything_pass(tmp_path: Path) -> None:
    """Bytes of a storage may begin as a pickle, a program or a gzip file do."""
    beginnings = [b"\x80\x02cos\nsystem\n", b"\x7fELF", b"\x1f\x8b\x08\x00", b"PK\x03\x04"]
    weights = {
        str(n): torch.frombuffer(bytearray(each.ljust(16)), dtype=torch.uint8)
        for n, each in enumerate(beginnings)
    }
    assert told(tmp_path, {"pytorch_model.bin": saved(weights)}) == []


def test_other_files_of_repositories_pass(tmp_path: Path) -> None:
    arrays = io.BytesIO()
    np.savez(arrays, a=np.zeros(3), b=np.ones(2))
    content = {
        "README.md": "# Ümlaut\n".encode(),
        ".gitattributes": b"*.bin filter=lfs\n",
        "LICENSE": b"Apache",
        "arrays.npz": arrays.getvalue(),
        "openvino.bin": bytes(range(1, 200)) * 9,
        "notes.txt": b"I am no pickle.\n",
        "data/empty.txt": b"",
    }
    assert told(tmp_path, content) == []


# --- pickles --------------------------------------------------------------------------------------


def test_a_payload_is_named_and_not_run(tmp_path: Path) -> None:
    """Under every name and in every wrapping that a loader would open."""
    canary = tmp_path / "canary"
    payload = Payload(canary)
    plain, text = pickle.dumps(payload), pickle.dumps(payload, protocol=0)
    content = {
        "pytorch_model.bin": saved({"a": torch.zeros(1), "b": payload}),
        "old.pth": saved(payload, _use_new_zipfile_serialization=False),
        "plain.pkl": plain,
        "text.pkl": text,
        "hidden.txt": text,
        "hidden.safetensors": plain,
        "config.json": plain,
        "nested.zip": zipped({"inner/model.pt": saved(payload)}, zipfile.ZIP_DEFLATED),
        "arrays.npz": zipped({"a.npy": array_of_objects(payload)}),
        "model.dat": plain,
        "noname": plain,
    }
    folder = tmp_path / "model"
    found = looked_at(folder, content)
    for name in content:
        mine = [each for each in found.findings if each.file.partition(":")[0] == name]
        assert any(
            each.rule == "RNP010" and "`posix.system`, which is dangerous" in each.message
            for each in mine
        ), name
    assert not found.safe_to_open
    assert not canary.exists()
    pickle.loads(plain)  # and the payload is a real one
    assert canary.exists()


def array_of_objects(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_an_import_that_nobody_knows_as_dangerous_is_none_that_tensors_need(tmp_path: Path) -> None:
    raw = b"\x80\x02cmy_library.models\nNetwork\n)\x81."
    assert told(tmp_path, {"a.pkl": raw}) == [
        "RNP010 a.pkl is a pickle that imports `my_library.models.Network`, which no tensor needs"
    ]


def test_a_pickle_that_breaks_off_after_its_payload(tmp_path: Path) -> None:
    raw = b"cos\nsystem\n(S'touch x'\ntR\xff\xff"
    assert any("which is dangerous" in line for line in told(tmp_path, {"a.bin": raw}))


def test_opcodes_are_counted_before_they_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnp_hub.static.pickles.MAX_OPCODES", 1000)
    monkeypatch.setattr("picklescan.scanner._list_globals", lambda *_: pytest.fail("it was listed"))
    raw = b"\x80\x02" + b"N0" * 1000 + b"N."
    assert told(tmp_path, {"a.pkl": raw}) == ["RNP010 a.pkl is a pickle of more than 1,000 opcodes"]


def test_within_an_archive_nothing_is_hidden_by_a_second_reading(tmp_path: Path) -> None:
    """What Python's reader and torch's could take for two different archives is none."""
    good = zipped({"archive/data.pkl": pickle.dumps(1)})
    with_comment = bytearray(good + b"abc")
    with_comment[len(good) - 2 : len(good)] = (3).to_bytes(2, "little")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a/data.pkl", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"2")
    lines = told(
        tmp_path,
        {"a.pt": bytes(with_comment), "b.pt": twice.getvalue(), "c.pt": b"PK\x03\x04" + good},
    )
    assert lines == [
        "RNP015 a.pt is a zip with a comment, in which another could be hidden",
        "RNP015 b.pt holds `a/data.pkl` 2 times",
        "RNP015 c.pt is a zip with something before it",
    ]


# --- safetensors ----------------------------------------------------------------------------------


def of(shape: list[Any], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            safetensors(b"{}", length=10**18),
            "says its header is 1,000,000,000,000,000,000 bytes long",
        ),
        (safetensors(b"{}" + b" " * (9 * 2**20)), "has a header of 9,437,186 bytes, more than"),
        (safetensors(b"[]"), "has a header that is no JSON object"),
        (safetensors(b"{]"), "has a header that is no JSON"),
        (safetensors(b'{"a":' * 10**5), "has a header that is no JSON"),
        (safetensors(b'{"a":{},"a":{}}'), "has the key `a` twice in its header"),
        (safetensors(b'{"a":{"dtype":"U8","dtype":"F32"}}'), "has the key `dtype` twice"),
        (safetensors({"__metadata__": {"a": 1}}), "`__metadata__` that is not made of texts"),
        (safetensors({"a": 1}), "does not describe `a` by dtype, shape and data_offsets"),
        (safetensors({"a": of([2], [0, 8]) | {"x": 1}}, bytes(8)), "does not describe `a`"),
        (safetensors({"a": of([2], [0, 8], "F33")}, bytes(8)), "gives `a` a type that there is"),
        (safetensors({"a": of([2], [0, 8], ["F32"])}, bytes(8)), "gives `a` a type that there is"),
        (safetensors({"a": of([-2], [0, 8])}, bytes(8)), "not made of whole numbers"),
        (safetensors({"a": of([2.0], [0, 8])}, bytes(8)), "not made of whole numbers"),
        (safetensors({"a": of([True, 2], [0, 8])}, bytes(8)), "not made of whole numbers"),
        (safetensors({"a": of([2**64], [0, 8])}, bytes(8)), "not made of whole numbers"),
        (safetensors({"a": of([2**40], [0, 8])}, bytes(8)), "need 4,398,046,511,104"),
        (safetensors({"a": of([2], [8, 0])}, bytes(8)), "gives `a` 0 bytes where its shape"),
        (safetensors({"a": of([2], [0, 8]), "b": of([2], [4, 12])}, bytes(12)), "puts `b` over"),
        (safetensors({"a": of([2], [4, 12])}, bytes(12)), "leaves 4 bytes before `a` to no tensor"),
        (safetensors({"a": of([2], [0, 8])}, bytes(7)), "places tensors in 8 bytes, but holds 7"),
        (safetensors({"a": of([2], [0, 8])}, bytes(9)), "holds 1 bytes after its last tensor"),
    ],
)
def test_headers_that_lie(raw: bytes, message: str, tmp_path: Path) -> None:
    lines = told(tmp_path, {"model.safetensors": raw})
    assert len(lines) == 1, lines
    assert lines[0].startswith("RNP012 model.safetensors ")
    assert message in lines[0]


def test_a_zip_behind_the_tensors_is_found(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(4)}, file)
    raw = file.read_bytes() + zipped({"archive/data.pkl": b"x"})
    (line,) = told(tmp_path, {"model.safetensors": raw})
    assert "bytes after its last tensor" in line


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_headers_of_the_library_are_right(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "b": torch.zeros(3, 5).to(dtype),
        "a": torch.zeros(()).to(dtype),
        "c": torch.zeros(0, 4).to(dtype),
        "d": torch.zeros(7).double(),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    files, _ = files_of(tmp_path)
    assert inspect(files).findings == ()


# --- configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"auto_map": {"AutoModel": "m.Net"}}', "RNP013 {} asks for code of its own under `auto_"),
        ('{"a": [{"custom_code": true}]}', "RNP013 {} asks for code of its own under `a.[].custom"),
        ('{"trust_remote_code": true}', "RNP013 {} asks for code of its own under `trust_remote_"),
        (
            '{"attn_implementation": "somebody/kernel"}',
            "RNP013 {} asks for code from `somebody/kernel` under `attn_implementation`",
        ),
        (
            '{"model_args": {"checkpoint_path": "/x"}}',
            "RNP013 {} sends timm to other files under `model_args.checkpoint_path`",
        ),
        (
            '{"pretrained_cfg": {"hf_hub_filename": "x.bin"}}',
            "RNP013 {} sends timm to `x.bin` for the weights",
        ),
        ('{"a": 1, "b": 2, "a": 3}', "RNP011 {} says `a` twice"),
        ("{'a': 1}", "RNP011 {} is no JSON"),
        ('{"a":' * 70 + "1" + "}" * 70, "RNP013 {} is nested deeper than 64 levels"),
        ("[" * 10**5, "RNP011 {} is no JSON"),
        ("", None),
        ('{"auto_map": null, "trust_remote_code": false, "_attn_implementation": "sdpa"}', None),
    ],
)
def test_configurations(text: str, line: str | None, tmp_path: Path) -> None:
    lines = told(tmp_path, {"config.json": text.encode()})
    assert len(lines) == (line is not None)
    assert line is None or lines[0].startswith(line.format("config.json"))


def test_a_keras_layer_that_is_code(tmp_path: Path) -> None:
    layer = b'{"config": {"layers": [{"class_name": "Lambda", "config": {}}]}}'
    content = {
        "model.keras": zipped({"config.json": layer}),
        "model.h5": b"\x89HDF\r\n\x1a\n" + bytes(2**20 - 20) + layer,
    }
    assert [line.split()[0] for line in told(tmp_path, content)] == ["RNP013", "RNP013"]


# --- files that are not what they claim -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("model.safetensors", b"PK\x05\x06" + bytes(18), "a zip archive, which its name does"),
        ("model.safetensors", b"", "is empty"),
        ("photo.png", b"\xff\xd8\xff\xe0", "is a JPEG, which its name does not say"),
        ("README.md", b"\x00\x01\x02\x03", "is something else, which its name does not say"),
        ("weights.npz", b"just text", "is text, which its name does not say"),
        ("tool", b"\x7fELF\x02\x01\x01", "is a program"),
        ("setup.txt", b"MZ" + bytes(58) + b"\x40\0\0\0PE\0\0", "is a program"),
        ("model.onnx", b"\x89PNG\r\n\x1a\n", "is a PNG, which its name does not say"),
        ("model.onnx", b"no model at all", "is no ONNX model"),
    ],
)
def test_names_that_lie(name: str, raw: bytes, message: str, tmp_path: Path) -> None:
    lines = told(tmp_path, {name: raw})
    assert lines[0].startswith(f"RNP011 {name} ")
    assert message in lines[0]


# --- ONNX -----------------------------------------------------------------------------------------


def onnx_with(change: Callable[[onnx.ModelProto], None]) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, "f4").tobytes(), raw=True)
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph)
    change(model)
    raw: bytes = model.SerializeToString()
    return raw


def external(model: onnx.ModelProto, **record: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in record.items():
        tensor.external_data.add(key=key, value=value)


def nested(model: onnx.ModelProto) -> None:
    branch = helper.make_graph(
        [helper.make_node("Evil", [], ["z"], domain="org.evil")], "b", [], []
    )
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: external(m, location="../../etc/passwd"), "`w` outside the folder, in `../../e"),
        (lambda m: external(m, location="/etc/passwd"), "outside the folder, in `/etc/passwd`"),
        (lambda m: external(m, location="C:\\x"), "outside the folder, in `C:\\x`"),
        (lambda m: external(m), "outside the folder, in ``"),
        (lambda m: external(m, location="no.data"), "in `no.data`, which is not there"),
        (lambda m: external(m, location="w.data", length="17"), "beyond the end of `w.data`"),
        (lambda m: external(m, location="w.data", offset="-1"), "does not say where in `w.data`"),
        (nested, "needs the operator `org.evil.Evil`, which is code of somebody's library"),
        (lambda m: m.graph.initializer[0].dims.append(10**12), "a shape that its bytes do not"),
        (lambda m: external(m, location="w.data", offset="0", length="16"), None),
        (lambda _: None, None),
    ],
)
def test_onnx(change: Any, message: str | None, tmp_path: Path) -> None:
    content = {"onnx/model.onnx": onnx_with(change), "onnx/w.data": bytes(16)}
    lines = told(tmp_path, content)
    assert len(lines) == (message is not None)
    if message is not None:
        assert lines[0].startswith("RNP014 onnx/model.onnx ")
        assert message in lines[0]


# --- archives and links ---------------------------------------------------------------------------


def tarred(members: list[tarfile.TarInfo], content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def a_link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def linked_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("a")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.zip", zipped({"../x": b""}), "would unpack `../x` outside its folder"),
        ("a.zip", zipped({"/x": b""}), "would unpack `/x` outside its folder"),
        ("a.zip", zipped({"a\\..\\..\\x": b""}), "outside its folder"),
        ("a.zip", linked_zip(), "holds a link, `a`"),
        ("a.zip", zipped({"a": b"b"})[:-30], "is a zip that cannot be read"),
        ("a.tar", tarred([tarfile.TarInfo("../x")]), "would unpack `../x` outside its folder"),
        ("a.tar", tarred([a_link("x")]), "holds a link, `x`"),
        ("a.tar.gz", b"\x1f\x8b\x08\x00", "is compressed (gzip), and what it holds cannot be"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\x00", "is compressed (7z)"),
    ],
)
def test_archives(name: str, raw: bytes, message: str, tmp_path: Path) -> None:
    lines = told(tmp_path, {name: raw})
    assert lines, name
    assert lines[0].startswith(f"RNP015 {name} ")
    assert message in lines[0]


def test_a_payload_in_a_tar_is_found(tmp_path: Path) -> None:
    raw = tarred([tarfile.TarInfo("x.pkl")], pickle.dumps(Payload(tmp_path / "canary")))
    (line,) = told(tmp_path / "m", {"a.tar": raw})
    assert line.startswith("RNP010 a.tar:x.pkl is a pickle that would run `posix.system`")


def test_an_archive_that_unpacks_to_more_than_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnp_hub.static.archives.MAX_UNPACKED", 10**6)
    raw = zipped({"a": bytes(2 * 10**6)}, zipfile.ZIP_DEFLATED)
    assert told(tmp_path, {"a.zip": raw}) == ["RNP015 a.zip would unpack to 2,000,000 bytes"]


def test_archives_within_archives_come_to_an_end(tmp_path: Path) -> None:
    raw = b"x"
    for _ in range(5):
        raw = zipped({"a.zip": raw})
    (line,) = told(tmp_path, {"a.zip": raw})
    assert line == "RNP015 a.zip:a.zip:a.zip:a.zip is the 4th archive within another"


def test_links(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "same.json").symlink_to("config.json")
    (folder / "out.json").symlink_to("../outside")
    (folder / "gone.json").symlink_to("nowhere")
    (folder / "round.json").symlink_to("round.json")
    (folder / "folder").symlink_to(".")
    os.mkfifo(folder / "pipe")
    files, found = files_of(folder)
    assert sorted(files) == ["config.json", "same.json"]
    assert {(each.rule, each.file) for each in found} == {
        ("RNP016", name) for name in ("out.json", "gone.json", "round.json", "folder", "pipe")
    }


def test_the_cache_of_the_hub_is_a_folder_of_links_within(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--m" / "snapshots" / ("a" * 40)
    blobs = tmp_path / "models--me--m" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/b1")
    assert files_of(snapshot) == ({"config.json": snapshot / "config.json"}, [])


def test_the_bounds_stand_above_what_models_need() -> None:
    """A pickle of the 3,700 tensors of the largest classifiers, and their header."""
    weights = {f"stages.{n}.attn.relative_position.weight": torch.zeros(1) for n in range(3700)}
    raw = zipfile.ZipFile(io.BytesIO(saved(weights))).read("archive/data.pkl")
    assert 10 * sum(1 for _ in pickletools.genops(raw)) < bounds.MAX_OPCODES
    assert 10 * len(json.dumps({name: of([1], [0, 4]) for name in weights})) < bounds.MAX_HEADER
