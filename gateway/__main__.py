"""`python -m gateway`: hears signals before the imports that take long."""

from services import files, signals

signals.leave_at_once()
files.refuse_key_log("gateway")

from gateway.service import main  # noqa: E402

main()
