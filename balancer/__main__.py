"""`python -m balancer`: hears signals before the imports that take long."""

from services import files, signals

signals.leave_at_once()
files.refuse_key_log("balancer")

from balancer.service import main  # noqa: E402

main()
