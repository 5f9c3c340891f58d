"""The command line, the supervisor and the deployment tools: the only package that knows every service."""
