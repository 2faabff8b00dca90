"""`python -m gateway`: hears signals before the imports that take long."""

from services import signals

signals.leave_at_once()

from gateway.service import main  # noqa: E402

main()
