"""The command line: the arguments of each command, and its output."""
