"""`python -m substations`."""

from substations.service import main

main()
