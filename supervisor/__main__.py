"""`python -m supervisor` is `workq-supervise`."""

from supervisor.cli import NAME, main

main(prog_name=NAME)
