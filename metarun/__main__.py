"""`python -m metarun` is `metarun`."""

from metarun.cli.main import main

main()
