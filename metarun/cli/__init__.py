"""The command line: what is typed, checked before a run, and told of what is refused."""
