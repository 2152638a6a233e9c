"""`python -m metarun` is `metarun`."""

from metarun.cli import main

main()
