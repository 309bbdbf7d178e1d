"""Routes that move file contents: downloads with ranges, and uploads to LFS."""

from __future__ import annotations

import mimetypes
import re
import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tests.hub import access, errors
from tests.hub.blobs import SHA256, FileEntry, read_chunks
from tests.hub.messages import FileSlice, Reply, Request, json_reply
from tests.hub.site import Router, Site, Upload
from tests.hub.storage import Repository

router = Router()
RESOLVE = (
    "/{kind}/{ns}/{name}/resolve/{rev}/{path...}",
    "/{ns}/{name}/resolve/{rev}/{path...}",
)
LFS = (
    "/{kind}/{ns}/{name}.git/info/lfs/objects",
    "/{ns}/{name}.git/info/lfs/objects",
)
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


# --- down


@router.on("GET", *RESOLVE)
@router.on("HEAD", *RESOLVE)
def resolve(site: Site, request: Request) -> Reply:
    """Send a file, or the part of it that a Range header asks for."""
    repo = site.repo(request)
    access.check_downloadable(request.caller, repo)
    commit = repo.commit_at(request.args["rev"])
    entry = commit.files.get(request.args["path"])
    if entry is None:
        raise errors.entry_not_found(request.args["path"], commit.oid)
    headers = {"X-Repo-Commit": commit.oid, **_file_headers(request.args["path"], entry)}
    blob = site.store.blobs.path(entry.sha256)
    asked = request.headers.get("Range") if request.method == "GET" else None
    wanted = _byte_range(asked, entry.size)
    if wanted is None:
        return Reply(200, headers, FileSlice(blob, 0, entry.size))
    start, end = wanted
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{entry.size}"
    return Reply(206, headers, FileSlice(blob, start, end - start))


def _file_headers(path: str, entry: FileEntry) -> dict[str, str]:
    name = quote(path.rpartition("/")[2])
    headers = {
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Type": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{name}; filename=\"{name}\";",
    }
    if entry.lfs:
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    return headers


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return the half-open range that a Range header asks for; None for the whole file."""
    match = RANGE.fullmatch(header or "")
    if not match or match.groups() == ("", ""):
        return None  # several ranges at once may be answered with the whole file
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}"}
        raise errors.HubError(416, f"Range {header} is outside of {size} bytes", headers=headers)
    return start, end


# --- up


@router.on("POST", *(f"{prefix}/batch" for prefix in LFS))
def lfs_batch(site: Site, request: Request) -> Reply:
    """Say where each LFS object goes; those that the repository has need no upload."""
    repo = site.repo(request)
    access.writer(request.caller)
    asked = request.json()
    if asked.get("operation") != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise errors.bad_request("Only uploads with sha256 are understood")
    kind = "basic" if site.tuning.multipart_bytes is None else "multipart"
    objects = [_lfs_object(site, repo, item) for item in asked["objects"]]
    return json_reply({"transfer": kind, "objects": objects})


def _lfs_object(site: Site, repo: Repository, item: dict[str, Any]) -> dict[str, Any]:
    sha256, size = str(item["oid"]), int(item["size"])
    answer = {"oid": sha256, "size": size}
    if not SHA256.fullmatch(sha256):
        return {**answer, "error": {"code": 422, "message": "oid is not a sha256"}}
    if repo.has_lfs(sha256):
        return answer
    secret = secrets.token_hex(16)
    site.uploads[secret] = Upload(repo, sha256, size)
    href = site.url(f"_lfs/{secret}")
    upload = {"href": href, "header": _part_addresses(href, size, site.tuning.multipart_bytes)}
    verify = {"href": site.url(f"{repo.url_path}.git/info/lfs/objects/verify")}
    return {**answer, "actions": {"upload": upload, "verify": verify}}


def _part_addresses(href: str, size: int, part_size: int | None) -> dict[str, str]:
    if part_size is None or size <= part_size:
        return {}
    numbers = range(1, -(-size // part_size) + 1)
    parts = {f"{number:05d}": f"{href}/{number}" for number in numbers}
    return {"chunk_size": str(part_size), **parts}


@router.on("PUT", "/_lfs/{secret}")
def put_object(site: Site, request: Request) -> Reply:
    """Receive an LFS object in one piece."""
    upload = _upload(site, request)
    _keep_object(site, upload, _spool(request))
    return Reply(headers={"ETag": f'"{upload.sha256}"'})


@router.on("PUT", "/_lfs/{secret}/{number}")
def put_part(site: Site, request: Request) -> Reply:
    """Receive one part of an LFS object."""
    upload = _upload(site, request)
    sha256, _ = site.store.blobs.keep(_spool(request))
    upload.parts[int(request.args["number"])] = sha256
    return Reply(headers={"ETag": f'"{sha256}"'})


@router.on("POST", "/_lfs/{secret}")
def complete_parts(site: Site, request: Request) -> Reply:
    """Join the parts of an LFS object, in the order and with the tags that the client names."""
    upload = _upload(site, request)
    claimed = {part["partNumber"]: part["etag"].strip('"') for part in request.json()["parts"]}
    if claimed != upload.parts:
        raise errors.bad_request("The parts named are not the parts received")
    blobs = site.store.blobs
    pieces = (read_chunks(blobs.path(upload.parts[number])) for number in sorted(upload.parts))
    _keep_object(site, upload, (chunk for piece in pieces for chunk in piece))
    return json_reply({})


@router.on("POST", *(f"{prefix}/verify" for prefix in LFS))
def verify(site: Site, request: Request) -> Reply:
    """Confirm that an LFS object arrived."""
    repo = site.repo(request)
    access.writer(request.caller)
    asked = request.json()
    if not repo.has_lfs(asked["oid"]) or site.store.blobs.size(asked["oid"]) != asked["size"]:
        raise errors.HubError(404, f"No LFS object {asked['oid']} of {asked['size']} bytes")
    return json_reply({})


def _upload(site: Site, request: Request) -> Upload:
    upload = site.uploads.get(request.args["secret"])
    if upload is None:
        raise errors.forbidden("This upload address is not valid")
    return upload


def _keep_object(site: Site, upload: Upload, chunks: Iterator[bytes]) -> None:
    try:
        _, size = site.store.blobs.keep(chunks, expected=upload.sha256)
    except ValueError as error:
        raise errors.bad_request(str(error)) from error
    if size != upload.size:
        raise errors.bad_request(f"Object has {size} bytes, not {upload.size}")
    upload.repo.receive_lfs(upload.sha256)


def _spool(request: Request) -> Iterator[bytes]:
    """Yield an upload's bytes until a `disk_full` fault says that there is no room for more."""
    fault = request.fault("disk_full")
    written = 0
    for chunk in request.body.chunks():
        if fault and written + len(chunk) > fault.after_bytes:
            raise errors.HubError(507, "No space left on device")
        written += len(chunk)
        yield chunk
