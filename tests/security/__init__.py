"""`make security-check`: attacks a system that `make up` has started, and checks that it resists."""
