"""The present: routes that answer from the read models as they are now. Each module with a `router` is a way in."""
