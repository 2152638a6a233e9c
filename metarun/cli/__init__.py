"""The command line: the one place, with composing.py, that knows Hydra."""
