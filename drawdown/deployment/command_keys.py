"""Makes the key with which the API signs commands, and the keys by which allocation knows what it has signed."""

from pathlib import Path

from shared.contracts.signatures import new_command_key, public_half
from shared.runtime.settings import Settings

SIGNING_KEY_FILE = "command-signing-key.pem"
KEYS_FILE = "command-keys.pem"


def missing_command_keys(directory: Path) -> dict[str, bytes]:
    """What these two files should hold and do not yet, by name.

    Whoever deletes the signing key gets another; what the one before has signed is known on, until its public half is
    taken out of the other file.
    """
    signing, known = directory / SIGNING_KEY_FILE, directory / KEYS_FILE
    if not signing.exists():
        secret, public = new_command_key()
        return {SIGNING_KEY_FILE: secret, KEYS_FILE: (known.read_bytes() if known.exists() else b"") + public}
    return {} if known.exists() else {KEYS_FILE: public_half(signing.read_bytes())}


def with_command_keys(settings: Settings) -> Settings:
    """The settings of a system on this machine: with keys of its own in the data directory, unless some are named."""
    if settings.command_signing_key_file or settings.command_keys_file:
        return settings
    directory = settings.data_dir
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in missing_command_keys(directory).items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_bytes(text)
    files = {"command_signing_key_file": directory / SIGNING_KEY_FILE, "command_keys_file": directory / KEYS_FILE}
    return settings.model_copy(update=files)
