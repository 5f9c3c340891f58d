"""The key that signs the commands which the API publishes."""

import structlog

from shared.contracts.signatures import CommandSigner
from shared.runtime.settings import BadSettingError, Settings


def configured_signer(settings: Settings) -> CommandSigner | None:
    """Return the signer, or None if there is no key. The ledger then records `via` as `topic`.

    Raises:
        BadSettingError: the file cannot be read, or is not a key.

    """
    path = settings.command_signing_key_file
    if path is None:
        structlog.get_logger().warning("commands are published unsigned: DRAWDOWN_COMMAND_SIGNING_KEY_FILE is not set")
        return None
    try:
        return CommandSigner(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise BadSettingError(f"DRAWDOWN_COMMAND_SIGNING_KEY_FILE: {path}: {error}") from error
