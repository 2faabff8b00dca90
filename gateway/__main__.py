"""`python -m gateway`."""

from gateway.service import main

main()
