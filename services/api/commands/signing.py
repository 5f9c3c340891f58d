"""The key with which the API signs the commands that it publishes."""

import structlog

from shared.contracts.signatures import CommandSigner
from shared.runtime.settings import BadSettingError, Settings


def configured_signer(settings: Settings) -> CommandSigner | None:
    """What signs; None: the ledger will say that commands came by the topic. Raises BadSettingError: it is no key."""
    path = settings.command_signing_key_file
    if path is None:
        structlog.get_logger().warning(
            "commands are published unsigned: DRAWDOWN_COMMAND_SIGNING_KEY_FILE names no key"
        )
        return None
    try:
        return CommandSigner(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise BadSettingError(f"DRAWDOWN_COMMAND_SIGNING_KEY_FILE: {path}: {error}") from error
