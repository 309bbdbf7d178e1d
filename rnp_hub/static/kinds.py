"""What a file is by its first bytes, and what its name claims."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from rnp_hub.static.finding import Finding

HEAD = 4096
"""Bytes that are looked at to tell what a file is."""

MAGIC = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!", "rar"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"GGUF", "gguf"),
    (b"\x93NUMPY", "npy"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"GIF8", "gif"),
    (b"PAR1", "parquet"),
    (b"%PDF-", "pdf"),
    (b"\x7fELF", "program"),
    (b"\xfe\xed\xfa\xce", "program"),
    (b"\xfe\xed\xfa\xcf", "program"),
    (b"\xce\xfa\xed\xfe", "program"),
    (b"\xcf\xfa\xed\xfe", "program"),
    (b"\xca\xfe\xba\xbe", "program"),
    (b"\x00asm", "program"),
    (b"version https://git-lfs.github.com/spec/", "lfs"),
)

WORDS = {
    "zip": "a zip archive",
    "7z": "a 7z archive",
    "rar": "a RAR archive",
    "tar": "a tar archive",
    "gzip": "compressed with gzip",
    "bzip2": "compressed with bzip2",
    "xz": "compressed with xz",
    "zstd": "compressed with zstd",
    "hdf5": "an HDF5 file",
    "npy": "a numpy array",
    "gguf": "a GGUF file",
    "png": "a PNG",
    "jpeg": "a JPEG",
    "gif": "a GIF",
    "parquet": "a parquet file",
    "pdf": "a PDF",
    "program": "a program",
    "lfs": "a Git LFS pointer, the file itself is missing",
    "pickle": "a pickle",
    "safetensors": "a safetensors file",
    "text": "text",
    "empty": "empty",
    "data": "something else",
}

CLAIMS: Mapping[str, set[str]] = {
    ".safetensors": {"safetensors"},
    ".json": {"text"},
    ".md": {"text"},
    ".txt": {"text"},
    ".yaml": {"text"},
    ".yml": {"text"},
    ".py": {"text"},
    ".onnx": set(),
    ".npz": {"zip"},
    ".npy": {"npy"},
    ".keras": {"zip"},
    ".h5": {"hdf5"},
    ".hdf5": {"hdf5"},
    ".gguf": {"gguf"},
    ".png": {"png"},
    ".jpg": {"jpeg"},
    ".jpeg": {"jpeg"},
    ".gif": {"gif"},
    ".pdf": {"pdf"},
    ".parquet": {"parquet"},
    ".zip": {"zip"},
    ".7z": {"7z"},
    ".tar": {"tar"},
    ".gz": {"gzip"},
    ".tgz": {"gzip"},
    ".bz2": {"bzip2"},
    ".xz": {"xz"},
    ".zst": {"zstd"},
}
"""What the bytes must be where a name ends so; other endings claim nothing."""

PICKLE_NAMES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".th", ".dill"}
"""Endings under which loaders look for a pickle, whatever its first bytes are."""

PARSED = {".safetensors": {"data", "text"}, ".tar": {"data"}, ".onnx": {"data", "text"}}
"""Formats that do not begin with a sign of their own."""

ARCHIVES = {"zip", "tar", "7z", "rar", "gzip", "bzip2", "xz", "zstd"}
EMPTY_IS_FINE = {".txt", ".md", ".py", ".json", ".yaml", ".yml"}


def suffix_of(name: str) -> str:
    """The ending of a name in a repository, in small letters."""
    return PurePosixPath(name).suffix.lower()


def kind_of(head: bytes, size: int) -> str:
    """What a file is, as a key of `WORDS`.

    Args:
        head: its first bytes, `HEAD` of them where there are as many.
        size: of the whole file, in bytes.
    """
    if not size:
        return "empty"
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    if _is_windows_program(head):
        return "program"
    if _is_safetensors(head, size):
        return "safetensors"
    if is_pickle(head):
        return "pickle"
    return "text" if _is_text(head) else "data"


def _is_windows_program(head: bytes) -> bool:
    place = int.from_bytes(head[0x3C:0x40], "little")
    return head[:2] == b"MZ" and (place >= HEAD or head[place : place + 4] == b"PE\x00\x00")


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return size >= 10 and head[8:9] == b"{" and 2 <= length <= size - 8


def is_pickle(head: bytes) -> bool:
    """Whether an unpickler would make something of the first bytes: by the sign of protocol 2 and
    above, or by opcodes that import or end something."""
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    imports = False
    for name in _opcodes(head):
        imports |= name in ("GLOBAL", "INST", "STACK_GLOBAL")
        if imports and name in ("REDUCE", "BUILD", "OBJ", "NEWOBJ", "INST", "STOP"):
            return True
    return False


def _opcodes(head: bytes) -> Iterator[str]:
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            yield opcode.name
    except Exception:  # pickletools raises whatever the bytes made it trip over
        return


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a letter may be cut in two at the end
    return True


def check_claim(kind: str, name: str) -> list[Finding]:
    """Hold what a file is against what its name says."""
    told = _contradiction(kind, suffix_of(name))
    return [Finding("RNP011", name, told)] if told else []


def _contradiction(kind: str, suffix: str) -> str | None:
    wanted = CLAIMS.get(suffix)
    if kind in ("program", "lfs"):
        return f"is {WORDS[kind]}"
    if kind == "empty":
        claims = suffix in CLAIMS.keys() | PICKLE_NAMES and suffix not in EMPTY_IS_FINE
        return "is empty" if claims else None
    if suffix in PARSED and kind in PARSED[suffix]:
        return None  # what is wrong with it is found where it is parsed
    if wanted is None:
        hidden = kind == "pickle" and suffix not in PICKLE_NAMES
        return "is a pickle, which its name does not say" if hidden else None
    return None if kind in wanted else f"is {WORDS[kind]}, which its name does not say"
