"""`python -m gateway`: hears signals before the imports that take long."""

from services import signals, surroundings

signals.leave_at_once()
surroundings.settle("gateway")

from gateway.service import main  # noqa: E402

main()
