"""Creates the key with which the API signs commands, and the public keys with which allocation verifies them."""

from pathlib import Path

from shared.contracts.signatures import new_command_key, public_half
from shared.runtime.settings import Settings

SIGNING_KEY_FILE = "command-signing-key.pem"
KEYS_FILE = "command-keys.pem"


def missing_command_keys(directory: Path) -> dict[str, bytes]:
    """Return the missing content of the two key files, by file name.

    If the signing key was deleted, there is a new one. Signatures of the old key remain valid until its public key is
    removed from the other file.
    """
    signing, known = directory / SIGNING_KEY_FILE, directory / KEYS_FILE
    if not signing.exists():
        secret, public = new_command_key()
        return {SIGNING_KEY_FILE: secret, KEYS_FILE: (known.read_bytes() if known.exists() else b"") + public}
    return {} if known.exists() else {KEYS_FILE: public_half(signing.read_bytes())}


def with_command_keys(settings: Settings) -> Settings:
    """Return the settings with key files in the data directory, created if missing. Settings with key files stay."""
    if settings.command_signing_key_file or settings.command_keys_file:
        return settings
    directory = settings.data_dir
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in missing_command_keys(directory).items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(text)
    files = {"command_signing_key_file": directory / SIGNING_KEY_FILE, "command_keys_file": directory / KEYS_FILE}
    return settings.model_copy(update=files)
