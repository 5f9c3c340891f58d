"""Commands: published, waited for, and quarantined records sent back. The way in is `publishing.router`."""
