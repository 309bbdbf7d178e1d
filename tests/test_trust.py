"""A folder that passed the gate, signed: the same to the bit, or it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from rnp_hub.trust.signing import SIGNATURE, sign, verify
from rnp_hub.trust.statement import FILE, Statement
from tests.models import Run, invoke
from tests.pushing import hashes

Keys = tuple[Path, Path]


def write_keys(folder: Path, private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> Keys:
    folder.mkdir(parents=True, exist_ok=True)
    key, public = folder / "key.pem", folder / "pub.pem"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(pem, spki))
    return key, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return write_keys(tmp_path_factory.mktemp("keys"), ec.generate_private_key(ec.SECP256R1()))


def gated(folder: Path, verdict: str = "pass") -> Path:
    """Write the statement that the gate would have written into a folder."""
    predicate = {"verdict": verdict, "source": {"name": "org/m"}, "data": {"id": "digits"}}
    (folder / FILE).write_text(Statement.of(hashes(folder), predicate).to_json())
    return folder


@pytest.fixture(scope="module")
def signed(plain_run: Run, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sanitized folder that was signed."""
    folder = tmp_path_factory.mktemp("signed") / "out"
    shutil.copytree(plain_run.folder, folder)
    sign(gated(folder), keys[0])
    return folder


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "copy"))


def test_a_folder_that_was_signed_is_genuine_wherever_it_lies(
    signed: Path, copy: Path, keys: Keys
) -> None:
    for folder in (signed, copy):
        found = verify(folder, keys[1])
        assert found.genuine, found.told
        assert found.told == (
            f"it is what passed the gate: {found.files - 1} files, made of org/m, "
            "measured on digits"
        )
        assert found.files == len(hashes(folder)) - 1  # the signature is over all but itself


def test_on_the_command_line(copy: Path, keys: Keys, tmp_path: Path) -> None:
    (copy / SIGNATURE).unlink()
    done = invoke("sign", copy, "--key", keys[0])
    assert done.exit_code == 0, done.stderr
    done = invoke("verify", copy, "--key", keys[1])
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.startswith(f"genuine: {copy}: it is what passed the gate: ")
    (copy / "config.json").write_text("{}")
    done = invoke("verify", copy, "--key", keys[1])
    assert (done.exit_code, done.stdout) == (
        1, f"NOT genuine: {copy}: config.json was changed\n",
    )  # fmt: skip
    assert json.loads(invoke("verify", copy, "--key", keys[1], "--json").stdout)["genuine"] is False
    other = write_keys(tmp_path / "other", ec.generate_private_key(ec.SECP384R1()))
    shutil.copy(signed_config(copy), copy / "config.json")
    assert invoke("verify", copy, "--key", other[1]).exit_code == 1


def signed_config(copy: Path) -> Path:
    return copy / "slim" / "config.json"


def test_a_flipped_bit_in_any_file_is_found(copy: Path, keys: Keys) -> None:
    """In every file: its first, last and some bit in between."""
    for name in hashes(copy):
        file = copy / name
        raw = file.read_bytes()
        places = {0, 8 * len(raw) - 1, 4 * len(raw) + 3}
        for place in sorted(places):
            changed = bytearray(raw)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            found = verify(copy, keys[1])
            assert not found.genuine, (name, place)
        file.write_bytes(raw)
    assert verify(copy, keys[1]).genuine


@pytest.mark.slow
def test_any_flipped_bit_of_the_signature_is_found(copy: Path, keys: Keys) -> None:
    """The signature is not signed itself, and readers of base64 and JSON are generous."""
    file = copy / SIGNATURE
    raw = file.read_bytes()
    for place in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        assert not verify(copy, keys[1]).genuine, place


def test_a_removed_file_is_found(copy: Path, keys: Keys) -> None:
    for name in hashes(copy):
        file = copy / name
        raw = file.read_bytes()
        file.unlink()
        found = verify(copy, keys[1])
        assert not found.genuine, name
        assert name in found.told
        file.write_bytes(raw)


@pytest.mark.parametrize(
    "name", ["extra.txt", ".hidden", "slim/more.json", "new/deep/model.bin", ".git/config",
             ".gitignore", "model.sig.bak", "rnp_manifest.json.bin"]
)  # fmt: skip
def test_an_added_file_is_found(name: str, copy: Path, keys: Keys) -> None:
    file = copy / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    found = verify(copy, keys[1])
    assert not found.genuine
    assert name in found.told or name.startswith(".git/")


def test_a_link_in_the_place_of_a_file_is_found(copy: Path, keys: Keys, tmp_path: Path) -> None:
    shutil.move(copy / "config.json", tmp_path / "config.json")
    (copy / "config.json").symlink_to(tmp_path / "config.json")
    assert not verify(copy, keys[1]).genuine


def test_what_the_hub_adds_is_no_change(copy: Path, keys: Keys) -> None:
    (copy / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (copy / "rnp_manifest.json").write_text("{}")
    (copy / ".cache/huggingface/download").mkdir(parents=True)
    (copy / ".cache/huggingface/download/x.lock").write_text("")
    found = verify(copy, keys[1])
    assert found.genuine, found.told


def test_a_statement_cannot_be_exchanged(copy: Path, keys: Keys) -> None:
    """Neither for one that speaks of other files, nor together with them."""
    (copy / "config.json").write_text("{}")
    (copy / FILE).unlink()
    saved = (copy / SIGNATURE).read_bytes()
    (copy / SIGNATURE).unlink()
    gated(copy)
    (copy / SIGNATURE).write_bytes(saved)
    assert not verify(copy, keys[1]).genuine


def test_another_key_did_not_sign(copy: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    found = verify(copy, other[1])
    assert not found.genuine
    assert "does not hold" in found.told


def small(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_only_what_passed_is_signed(tmp_path: Path, keys: Keys) -> None:
    folder = small(tmp_path / "m")
    refused = invoke("sign", folder, "--key", keys[0])
    assert refused.exit_code == 2
    assert "there is no gate.intoto.json in" in refused.stderr
    gated(folder, "fail")
    refused = invoke("sign", folder, "--key", keys[0])
    assert "is not what passed the gate: the gate did not let it pass; `rnp-hub gate" in (
        refused.stderr
    )
    (folder / FILE).unlink()
    gated(folder)
    (folder / "config.json").write_text("[]")
    refused = invoke("sign", folder, "--key", keys[0])
    assert "config.json was changed" in refused.stderr
    assert not (folder / SIGNATURE).exists()


def test_keys_that_do_not_do(tmp_path: Path, keys: Keys) -> None:
    folder = gated(small(tmp_path / "m"))
    (tmp_path / "no.pem").write_text("no key")
    rsa_keys = write_keys(
        tmp_path / "rsa", rsa.generate_private_key(public_exponent=65537, key_size=2048)
    )
    for key in (tmp_path / "no.pem", rsa_keys[0], keys[1]):
        refused = invoke("sign", folder, "--key", key)
        assert refused.exit_code == 2, key
        assert "is no key that can be used here" in refused.stderr
    sign(folder, keys[0])
    for key in (tmp_path / "no.pem", rsa_keys[1]):
        assert "is no key that can be used here" in invoke("verify", folder, "--key", key).stderr
    assert "there is no key at" in invoke("verify", folder, "--key", tmp_path / "x").stderr
    assert "there is no folder at" in invoke("verify", tmp_path / "x", "--key", keys[1]).stderr


def test_without_the_extra_it_is_named(
    tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "model_signing", None)
    refused = invoke("verify", tmp_path, "--key", keys[1])
    assert refused.exit_code == 2
    assert "signing needs the extra `signing`; pip install 'rnp-hub[signing]'" in refused.stderr
