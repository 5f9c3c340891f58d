"""Tests use the time zones of the pinned package, whatever zone files the machine has."""

import zoneinfo

zoneinfo.reset_tzpath(())
