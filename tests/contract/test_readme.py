"""What the README says of settings and commands is so."""

import re

from harness.stack import ROOT
from settings_table import README, undescribed, with_table


def test_the_configuration_table_is_that_of_the_settings_classes():
    assert undescribed() == []
    is_current = README.read_text() == with_table(README.read_text())
    assert is_current, "run `make readme`"


def test_every_make_target_that_the_readme_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|; |^)make ([a-z-]+)", README.read_text(), re.MULTILINE))
    assert {"run", "test", "check"} <= named <= targets


def test_every_path_that_the_documents_link_exists():
    for document in (README, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md"):
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document, target)
        rooms = "services|gateway|balancer|substations|tests|tools|locustfiles|infra"
        for path in re.findall(rf"`((?:{rooms})/[\w./-]+)`", document.read_text()):
            assert (ROOT / path).exists(), (document, path)
