"""`python -m balancer`."""

from balancer.service import main

main()
