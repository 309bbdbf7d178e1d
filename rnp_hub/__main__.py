"""`python -m rnp_hub` is the command line."""

from rnp_hub.cli import main

main()
