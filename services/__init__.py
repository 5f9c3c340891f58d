"""The services: each is a process of its own. None imports another, but the API answers with what incentives knows."""
