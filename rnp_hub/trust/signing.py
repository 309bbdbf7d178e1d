"""Signing a folder that passed the gate, and finding out whether it is still the same.

The signature is that of OpenSSF model signing (https://github.com/sigstore/model-transparency): one
over the SHA-256 of every file, made and checked with a key, offline. The statement of the gate lies
among the files, so that what is signed is a folder *and* that it passed.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnp_hub.errors import RnpHubError, TrustError, reason
from rnp_hub.static import files_of
from rnp_hub.text import one_line
from rnp_hub.trust import statement
from rnp_hub.trust.statement import Statement
from rnp_hub.weights import sha256

SIGNATURE = "model.sig"
"""What the signature is called in the folder that it is over."""

HUBS_OWN = (".gitattributes", "rnp_manifest.json", ".cache/huggingface")
"""What lies in a folder that came back from the Hub and was not in the one that went there. No
loader looks at any of it; where such a file was there when the folder was signed, it is held to
that like all others."""


@dataclass(frozen=True)
class Signed:
    """A folder that was signed."""

    folder: str
    files: int
    signature: str


@dataclass(frozen=True)
class Verified:
    """Whether a folder is what passed the gate.

    Attributes:
        folder: as it was given.
        genuine: it is.
        told: in one line, or what is wrong.
        files: how many were compared.
        gate: what the gate said of them; `None` where that is not known.
    """

    folder: str
    genuine: bool
    told: str
    files: int = 0
    gate: dict[str, Any] | None = None


def sign(folder: Path, key: Path) -> Signed:
    """Sign a folder whose statement says that these very files passed the gate.

    Args:
        folder: with the statement in it; the signature is written beside it.
        key: a private key on an elliptic curve (P-256, P-384, P-521), PEM, without a password.

    Raises:
        TrustError: the files are not those that passed, or the key cannot be used.
        RnpHubError: there is no statement, or the extra is not installed.
    """
    signing = _library().signing
    gated = Statement.read(folder / statement.FILE)
    wrong = _not_gated(folder, gated)
    if wrong is not None:
        raise TrustError(f"{folder} is not what passed the gate: {wrong}; {statement.HOW}")
    with _wrong_key(key):
        config = signing.Config().use_elliptic_key_signer(private_key=_key(key))
        config.set_hashing_config(_hashing(gated))
        config.sign(folder, folder / SIGNATURE)
    return Signed(str(folder), len(gated.files) + 1, str(folder / SIGNATURE))


def verify(folder: Path, key: Path) -> Verified:
    """Find out whether a folder is, to the bit, what passed the gate and was signed.

    Args:
        folder: with the statement and the signature in it.
        key: the public key, PEM.

    Raises:
        RnpHubError: there is no such folder or key, or the extra is not installed.
    """
    library = _library()
    if not folder.is_dir():
        raise TrustError(f"there is no folder at {folder}; give the one that was signed")
    verifier = library.verifying.Config()
    with _wrong_key(key):
        verifier.use_elliptic_key_verifier(public_key=_key(key))
    try:
        gated = Statement.read(folder / statement.FILE)
        verifier.set_hashing_config(_hashing(gated))
        with contextlib.redirect_stdout(io.StringIO()):  # it warns of old signatures there
            verifier.verify(folder, folder / SIGNATURE)
    except RnpHubError as error:
        return Verified(str(folder), False, one_line(str(error)).partition(";")[0])
    except Exception as error:  # a changed signature breaks the library in as many ways as JSON has
        changed = _not_gated(folder, gated) or _told(folder, error)
        return Verified(str(folder), False, changed)
    wrong = _not_gated(folder, gated) or _rewritten(folder / SIGNATURE)
    if wrong is not None:
        return Verified(str(folder), False, wrong)
    return Verified(str(folder), True, _praise(gated), len(gated.files) + 1, gated.predicate)


def _not_gated(folder: Path, gated: Statement) -> str | None:
    """What in a folder is not as a statement says; `None` where everything is."""
    files, links = files_of(folder)
    if links:
        return f"{links[0].file} {links[0].message}"
    there = {name: path for name, path in files.items() if not _unsigned(name, gated)}
    for name in sorted(there.keys() ^ gated.files.keys()):
        return f"{one_line(name)} was added" if name in there else f"{one_line(name)} is missing"
    for name, path in there.items():
        if sha256(path) != gated.files[name]:
            return f"{one_line(name)} was changed"
    return None if gated.passed else "the gate did not let it pass"


def _unsigned(name: str, gated: Statement) -> bool:
    """Whether a file is none that the statement could speak of."""
    hubs = any(name == own or name.startswith(f"{own}/") for own in HUBS_OWN)
    return name in (SIGNATURE, statement.FILE) or (hubs and name not in gated.files)


def _hashing(gated: Statement) -> Any:
    ignored = [SIGNATURE, *(own for own in HUBS_OWN if not _speaks_of(gated, own))]
    config = _library().hashing.Config()
    config.set_ignored_paths(paths=ignored, ignore_git_paths=False)
    return config


def _speaks_of(gated: Statement, own: str) -> bool:
    return any(name == own or name.startswith(f"{own}/") for name in gated.files)


def _rewritten(file: Path) -> str | None:
    """The signature's own bytes: what is not signed in it must be what it always is.

    The library reads base64 and JSON as generously as they allow, so that a changed byte may mean
    the same; here every byte counts.
    """
    raw = file.read_bytes()
    try:
        record = json.loads(raw)
        envelope = record["dsseEnvelope"]
        due = _bundle(
            record["verificationMaterial"]["publicKey"]["hint"],
            envelope["payload"],
            envelope["signatures"][0]["sig"],
        )
    except (ValueError, LookupError, TypeError):
        return f"{file.name} was changed"
    same = raw == json.dumps(due, separators=(",", ":")).encode()
    return None if same else f"{file.name} was changed"


def _bundle(hint: str, payload: str, signature: str) -> dict[str, Any]:
    """What the library writes."""
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint or None}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": _encoded_anew(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": _encoded_anew(signature), "keyid": ""}],
        },
    }


def _encoded_anew(text: str) -> str:
    return base64.b64encode(base64.b64decode(text)).decode()


def _told(folder: Path, error: Exception) -> str:
    if not (folder / SIGNATURE).is_file():
        return f"it holds no {SIGNATURE}"
    said = one_line(reason(error))
    kind = "the signature does not hold"
    return f"{kind} ({said[:160]})" if said and said != type(error).__name__ else kind


def _praise(gated: Statement) -> str:
    data, source = gated.predicate.get("data") or {}, gated.predicate.get("source") or {}
    name = one_line(str(source.get("name")))
    return (
        f"it is what passed the gate: {len(gated.files)} files, made of {name}, measured on "
        f"{one_line(str(data.get('id')))}"
    )


# --- the library and its keys ---------------------------------------------------------------------


def _library() -> Any:
    try:
        import model_signing
        from model_signing import hashing, signing, verifying  # noqa: F401
    except ImportError as error:
        raise RnpHubError(
            "signing needs the extra `signing`; pip install 'rnp-hub[signing]' brings it "
            f"({reason(error)})"
        ) from error
    return model_signing


def _key(file: Path) -> Path:
    if not file.is_file():
        raise TrustError(f"there is no key at {file}; `openssl ecparam -genkey` makes one")
    return file


@contextlib.contextmanager
def _wrong_key(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        raise TrustError(
            f"{file} is no key that can be used here ({one_line(reason(error))}); give one on the "
            "curve P-256, P-384 or P-521, as PEM without a password"
        ) from error
