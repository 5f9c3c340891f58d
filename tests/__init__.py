"""Zones are those of the pinned package in tests too, whatever files a machine has."""

import zoneinfo

zoneinfo.reset_tzpath(())
