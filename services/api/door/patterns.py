"""Patterns of the ids and cursors that the API gives out.

They are for JSON Schema as well as for Python: no flags, no look-around.
"""

from typing import Final

from shared.contracts.fields import IDENTIFIER_PATTERN
from shared.contracts.patterns import DAY

# Where a page begins. An empty cursor means the beginning.
_SHARD: Final = "([0-9]{1,4}|[12][0-9]{4}|3[01][0-9]{3}|32[0-6][0-9]{2}|327[0-5][0-9]|3276[0-7])"
RECORD_ID: Final = f"^{_SHARD}-[0-9]{{1,18}}$"
RECORD_CURSOR: Final = f"^({_SHARD}-[0-9]{{1,18}})?$"
POSITION_CURSOR: Final = "^(([0-9]{1,5}-)?[0-9]{1,19})?$"
ROW_CURSOR: Final = f"^({DAY.strip('^$')}/{IDENTIFIER_PATTERN.strip('^$')})?$"
