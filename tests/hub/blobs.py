"""File contents, kept once each under their sha256, and the names the clients know them by."""

from __future__ import annotations

import codecs
import fnmatch
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CHUNK = 256 * 1024
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST_REGULAR_FILE = 10 * 1024 * 1024
LFS_SUFFIXES = ("bin", "npy", "npz", "onnx", "parquet", "pkl", "pt", "pth", "safetensors", "zip")
GITATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
)


@dataclass(frozen=True)
class FileEntry:
    """One file of one commit: where its bytes are, and what the clients call them."""

    size: int
    sha256: str
    git_oid: str  # of the content, or of the pointer when the file is in LFS
    lfs: bool

    @property
    def etag(self) -> str:
        """The name that clients cache the file under."""
        return self.sha256 if self.lfs else self.git_oid

    @property
    def pointer_size(self) -> int:
        """Bytes of the text file that stands for an LFS object in git."""
        return len(lfs_pointer(self.sha256, self.size))


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the text file that git keeps in place of an LFS object."""
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def git_oid(content: bytes) -> str:
    """Return the object id that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def lfs_entry(sha256: str, size: int) -> FileEntry:
    """Return the entry of an LFS object."""
    return FileEntry(size, sha256, git_oid(lfs_pointer(sha256, size)), lfs=True)


def regular_entry(content: bytes) -> FileEntry:
    """Return the entry of a file that git keeps itself."""
    sha256 = hashlib.sha256(content).hexdigest()
    return FileEntry(len(content), sha256, git_oid(content), lfs=False)


def belongs_in_lfs(path: str, size: int, sample: bytes, attributes: str) -> bool:
    """Say whether the Hub would ask for a file as an LFS object.

    `sample` is the first 512 bytes of the file, `attributes` the repository's .gitattributes.
    """
    if size > LARGEST_REGULAR_FILE or is_binary(sample):
        return True
    name = PurePosixPath(path).name
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def is_binary(sample: bytes) -> bool:
    """Say whether the start of a file is not UTF-8 text (its last character may be cut off)."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample)
    except UnicodeDecodeError:
        return True
    return b"\0" in sample


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's content in pieces that fit in memory."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


class Blobs:
    """A folder of contents named by their sha256, complete or absent."""

    def __init__(self, root: Path) -> None:
        self._kept = root / "blobs"
        self._incoming = root / "incoming"
        self._kept.mkdir(parents=True, exist_ok=True)
        self._incoming.mkdir(exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the content with this hash is, or would be."""
        return self._kept / sha256[:2] / sha256

    def size(self, sha256: str) -> int | None:
        """Return the size of a content, or None when it is not here."""
        path = self.path(sha256)
        return path.stat().st_size if path.exists() else None

    def read(self, sha256: str) -> bytes:
        """Return a whole content; for small files."""
        return self.path(sha256).read_bytes()

    def keep(self, chunks: Iterable[bytes], expected: str | None = None) -> tuple[str, int]:
        """Store a content and return its sha256 and size.

        Nothing stays behind when `chunks` fails half-way, or when the hash is not `expected`:
        then a ValueError tells the hash of what came.
        """
        draft = self._incoming / uuid.uuid4().hex
        try:
            sha256, size = _write_and_hash(draft, chunks)
            if expected is not None and sha256 != expected:
                raise ValueError(f"content has sha256 {sha256}, not {expected}")
            target = self.path(sha256)
            target.parent.mkdir(exist_ok=True)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return sha256, size


def _write_and_hash(path: Path, chunks: Iterable[bytes]) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
    return digest.hexdigest(), size
