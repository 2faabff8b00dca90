"""A private broker of another series does not start on the data that it cannot read."""

from pathlib import Path

import pytest

from services.local.rabbitmq import BrokerPorts, prepare_broker
from services.local.rabbitmq_programs import RabbitInstallation

KEPT = ("RABBITMQ_MNESIA_BASE", "RABBITMQ_FEATURE_FLAGS_FILE")


def installed(folder: Path, version: str) -> RabbitInstallation:
    """What an installation of a version looks like, as far as its version goes."""
    (folder / version / "plugins" / f"rabbit-{version}").mkdir(parents=True)
    (folder / version / "plugins" / f"rabbit_common-{version}").mkdir()
    return RabbitInstallation(folder / version / "sbin/rabbitmq-server", folder / version / "epmd")


def kept_by(data: Path, installation: RabbitInstallation) -> list[str]:
    _, node = prepare_broker(installation, data, BrokerPorts(1, 2, 3, 4, 5)).processes(data)
    return [node.environment[one] for one in KEPT]


@pytest.mark.parametrize(
    ("version", "series"), [("3.10.8", "3.10"), ("4.0.5", "4.0"), ("4.3.6", "4.3"), ("4.10.0-rc.1", "4.10")]
)
def test_an_installation_tells_its_series(tmp_path, version, series):
    assert installed(tmp_path, version).series == series


def test_an_installation_that_does_not_tell_its_version_keeps_its_data_too(tmp_path):
    nameless = RabbitInstallation(tmp_path / "sbin/rabbitmq-server", tmp_path / "epmd")

    assert nameless.series == "unknown"
    assert kept_by(tmp_path / "data", nameless) == kept_by(tmp_path / "data", nameless)


def test_a_new_series_begins_anew_and_a_new_release_of_a_series_goes_on(tmp_path):
    old, new, newer = (kept_by(tmp_path / "data", installed(tmp_path, one)) for one in ("3.10.8", "4.0.5", "4.0.9"))

    assert new == newer
    assert not set(old) & set(new)
