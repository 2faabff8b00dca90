from services.local.packages import package_names
from services.local.supervisor import LAST_LINES, last_lines

URIS = """\
Reading package lists...
'file:/archive/rabbitmq-server_3.10.8-1.1_all.deb' rabbitmq-server_3.10.8-1.1_all.deb 15153240 SHA256:aa
'file:/archive/erlang-base_25.2.3%2bdfsg-1_amd64.deb' erlang-base_1%3a25.2.3+dfsg-1_amd64.deb 9143556 SHA256:bb
'file:/archive/libstdc++6_12.2.0-14_amd64.deb' libstdc++6_12.2.0-14_amd64.deb 613000
"""


def test_the_packages_of_a_plan_are_read_out_of_apts_lines():
    assert package_names(URIS) == {"rabbitmq-server", "erlang-base", "libstdc++6"}


def test_an_empty_plan_has_no_packages():
    assert package_names("") == set()


def test_the_end_of_a_log_is_shown_indented(tmp_path):
    log = tmp_path / "balancer.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))

    assert last_lines(log).splitlines() == [f"    line {number}" for number in range(100 - LAST_LINES, 100)]


def test_a_short_log_is_shown_whole_whatever_bytes_it_holds(tmp_path):
    log = tmp_path / "balancer.log"
    log.write_bytes(b"fine\n\xff\xfe broken")

    assert last_lines(log) == "    fine\n    \ufffd\ufffd broken"


def test_a_log_that_is_not_there_is_no_second_fault(tmp_path):
    assert last_lines(tmp_path / "none.log") == "    (no log)"
