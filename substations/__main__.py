"""`python -m substations`: hears signals before the imports that take long."""

from services import signals

signals.leave_at_once()

from substations.service import main  # noqa: E402

main()
