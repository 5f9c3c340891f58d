"""`make security-check`: attacks on a system that `make up` has started, and what it must answer to them."""
