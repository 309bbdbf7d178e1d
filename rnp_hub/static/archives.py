"""Archives: where their files would be unpacked to, how large, and what is in them."""

from __future__ import annotations

import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import PurePosixPath
from typing import IO

from rnp_hub.static.finding import MAX_MEMBER, MAX_MEMBERS, MAX_UNPACKED, Finding, Rule
from rnp_hub.text import one_line

RULE: Rule = "RNP015"
Look = Callable[[IO[bytes], str, int], list[Finding]]
"""Looks through a file within an archive: its content, its path behind that of the archive, its
size."""


def check_shut(name: str, kind: str) -> list[Finding]:
    """One whose content cannot be bounded before it is unpacked, or not be read here, is not let
    through."""
    return [Finding(RULE, name, f"is compressed ({kind}), and what it holds cannot be looked at")]


def check_zip(stream: IO[bytes], name: str, size: int, look: Look) -> list[Finding]:
    """Look at the names and sizes in a zip, then at each file in it."""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            found = [
                Finding(RULE, name, told)
                for told in (*_zip_frame(archive), *_zip_listing(members, size))
            ]
            if found:
                return found
            inside = [each for each in members if not _is_storage(each.filename, members)]
            return [each for member in inside for each in _zip_member(archive, member, name, look)]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        return [Finding(RULE, name, f"is a zip that cannot be read ({_told(error)})")]
    except RuntimeError:  # how zipfile says that a password is needed
        return [Finding(RULE, name, "is a zip with a password")]


def _zip_frame(archive: zipfile.ZipFile) -> Iterator[str]:
    """Two readers may find two archives in one file where something stands around it."""
    if archive.comment:
        yield "is a zip with a comment, in which another could be hidden"
    if min((member.header_offset for member in archive.infolist()), default=0) > 0:
        yield "is a zip with something before it"


def _is_storage(name: str, members: list[zipfile.ZipInfo]) -> bool:
    """Whether it is a tensor's bytes in an archive of torch, which may begin like anything."""
    folder, _, number = name.rpartition("/data/")
    return number.isdecimal() and any(m.filename == f"{folder}/data.pkl" for m in members)


def _zip_listing(members: list[zipfile.ZipInfo], size: int) -> Iterator[str]:
    if len(members) > MAX_MEMBERS:
        yield f"holds more than {MAX_MEMBERS:,} files"
        return
    yield from _sizes([member.file_size for member in members], size)
    yield from _names([member.filename for member in members])
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            yield f"holds a link, `{_shown(member.filename)}`"


def _sizes(sizes: list[int], size: int) -> Iterator[str]:
    if sum(sizes) > size + MAX_UNPACKED:
        yield f"would unpack to {sum(sizes):,} bytes"


def _names(names: list[str]) -> Iterator[str]:
    """What unpacks outside its folder, and names that two readers could read differently."""
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\", "~")) or ".." in parts or name[1:2] == ":":
            yield f"would unpack `{_shown(name)}` outside its folder"
    for name, times in Counter(names).items():
        if times > 1:
            yield f"holds `{_shown(name)}` {times} times"


def _zip_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, look: Look
) -> list[Finding]:
    if member.is_dir():
        return []
    with archive.open(member) as content:
        return _member(content, f"{name}:{_shown(member.filename)}", member.file_size, look)


def _member(content: IO[bytes], path: str, size: int, look: Look) -> list[Finding]:
    """A file within is read into memory where it is small; of a larger one, the beginning."""
    raw = content.read(min(size, MAX_MEMBER))
    return look(BytesIO(raw), path, size)


def check_tar(stream: IO[bytes], name: str, look: Look) -> list[Finding]:
    """The same for a tar that is not compressed."""
    stream.seek(0)
    found: list[Finding] = []
    names: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                names.append(member.name)
                if len(names) > MAX_MEMBERS:
                    return [Finding(RULE, name, f"holds more than {MAX_MEMBERS:,} files")]
                found += _tar_member(archive, member, name, look)
    except (tarfile.TarError, ValueError, OSError, EOFError, OverflowError) as error:
        return [Finding(RULE, name, f"is a tar that cannot be read ({_told(error)})")]
    return [*found, *(Finding(RULE, name, told) for told in _names(names))]


def _tar_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, look: Look
) -> list[Finding]:
    if member.isdir():
        return []
    if not member.isreg():
        kind = "a link" if member.issym() or member.islnk() else "a device"
        return [Finding(RULE, name, f"holds {kind}, `{_shown(member.name)}`")]
    content = archive.extractfile(member)
    assert content is not None  # it is a plain file
    with content:
        return _member(content, f"{name}:{_shown(member.name)}", member.size, look)


def _told(error: Exception) -> str:
    return _shown(str(error) or type(error).__name__)


def _shown(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 80 else f"{line[:79]}…"
