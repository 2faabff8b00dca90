"""`python -m substations`: hears signals before the imports that take long."""

from services import files, signals

signals.leave_at_once()
files.refuse_key_log("substations")

from substations.service import main  # noqa: E402

main()
