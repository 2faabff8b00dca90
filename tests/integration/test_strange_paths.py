"""A RabbitMQ whose data and programs lie in folders of any name, and programs that only look like some."""

import re
import shutil
import urllib.request

import pytest
from harness.broker import Node, api, guarded

from services.errors import Misconfigured
from services.local.folders import cache_dir
from services.local.packages import copy_dir
from services.local.plain_paths import WORKING_FOLDER, is_plain, seen_from_inside
from services.local.plan import make_plan
from services.local.ports import free_ports
from services.local.programs import find_program
from services.local.rabbitmq import BrokerPorts, prepare_broker
from services.local.rabbitmq_programs import find_rabbitmq, locate_rabbitmq
from services.settings import LocalSettings

STRANGE = "a b'c\"d$e%f José;#?g:h`i"
OWN_ROOT = re.compile(r"ROOTDIR=/.*")


@pytest.fixture
def moved_cache(tmp_path):
    """The unpacked RabbitMQ, in a cache of another name than the one that it was unpacked into."""
    cache = tmp_path / STRANGE / "cache"
    unpacked = copy_dir(cache_dir(LocalSettings()), "rabbitmq")
    find_rabbitmq(unpacked.parent, print)
    copy = copy_dir(cache, "rabbitmq")
    shutil.copytree(unpacked, copy, symlinks=True)
    script = copy / "usr/lib/erlang/bin/erl"
    # An earlier version wrote the path into it.
    script.write_text(OWN_ROOT.sub('ROOTDIR="$ERL_ROOTDIR"', script.read_text()))
    return cache


def test_a_node_in_folders_of_any_name_measures_its_disk_and_is_scraped(moved_cache, monkeypatch):
    for name, value in {"RABBITMQ_USE_LONGNAME": "true", "ERL_FLAGS": "+no_such_option", "TMPDIR": "/nowhere"}.items():
        monkeypatch.setenv(name, value)  # of the user's, for other nodes
    data = moved_cache.parent / "data"
    data.mkdir()
    broker = prepare_broker(locate_rabbitmq(moved_cache), data, BrokerPorts(*free_ports(5)))
    with guarded(data) as marks:
        node = Node(broker, data, marks)
        try:
            node.start()
            with urllib.request.urlopen(broker.metrics_url, timeout=30) as response:  # noqa: S310
                metrics = response.read().decode()
            assert int(node.ctl("eval", "rabbit_disk_monitor:get_disk_free().")) > 0
            assert {one["name"] for one in api(broker, "GET", "queues")} >= {"charge.intake"}
        finally:
            node.stop()
            node.stop("epmd")

    assert re.search(r"(?m)^rabbitmq_disk_space_available_bytes [0-9.e+]+$", metrics)
    assert (data / "mnesia").is_dir()
    assert any((data / "mnesia").iterdir())


def test_a_path_is_named_as_it_is_where_every_shell_can_read_it(tmp_path):
    assert is_plain(tmp_path / "a-b_c.d+e@f=g,h~i")
    for sign in " '\"$%;#?:`é\\*[](){}<>|&!\n":
        assert seen_from_inside(tmp_path / f"a{sign}b") == WORKING_FOLDER


@pytest.mark.parametrize("script", ["ROOTDIR=/elsewhere/usr/lib/erlang", None], ids=["moved", "without Erlang"])
def test_a_copy_that_was_unpacked_elsewhere_or_lacks_its_parts_is_not_taken(tmp_path, monkeypatch, script):
    monkeypatch.setenv("PATH", str(tmp_path))  # none is installed
    copy = copy_dir(tmp_path, "rabbitmq")
    for part in ("usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server", "usr/lib/erlang/erts-13/bin/epmd"):
        (copy / part).parent.mkdir(parents=True)
        (copy / part).write_text("")
    erl = copy / "usr/lib/erlang/bin/erl"
    erl.parent.mkdir(parents=True)
    erl.write_text(f"    ROOTDIR={copy}/usr/lib/erlang\n")
    assert locate_rabbitmq(tmp_path) is not None

    erl.unlink()
    if script:
        erl.write_text(f"    {script}\n")
    assert locate_rabbitmq(tmp_path) is None


def test_of_several_servers_the_one_of_the_highest_version_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    copy = copy_dir(tmp_path, "rabbitmq")
    for part in (
        "rabbitmq/lib/rabbitmq_server-3.9.13/sbin/rabbitmq-server",
        "rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server",
        "erlang/erts-9/bin/epmd",
        "erlang/erts-13/bin/epmd",
        "erlang/bin/erl",
    ):
        (copy / "usr/lib" / part).parent.mkdir(parents=True)
        (copy / "usr/lib" / part).write_text("")

    found = locate_rabbitmq(tmp_path)

    assert (found.server.parts[-3], found.epmd.parts[-3]) == ("rabbitmq_server-3.10.8", "erts-13")


def test_a_program_that_does_not_run_is_passed_over_and_the_next_of_its_name_is_taken(tmp_path, monkeypatch):
    texts = {"dead": "exit 127", "denied": "exit 126", "good": "echo a version; exit 1"}
    for folder, text in texts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "erl").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / folder / "erl").chmod(0o755)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "erl").write_text("#!/nowhere/interpreter\n")
    (tmp_path / "gone" / "erl").chmod(0o755)
    monkeypatch.setenv("PATH", ":".join(str(tmp_path / one) for one in ("dead", "denied", "gone", "nowhere", "good")))

    assert find_program("erl", "+V") == tmp_path / "good" / "erl"
    assert find_program("epmd", "-names") is None


@pytest.mark.parametrize(
    ("name", "told"),
    [("a\nb", "holds a control character: name a folder without"), ("x" * 250, "is longer than 480 bytes: name a")],
)
def test_a_data_folder_that_the_ledger_cannot_use_is_refused_before_it_is_made(tmp_path, name, told):
    data = tmp_path / name / name[:240]

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_DATA_DIR: ") as caught:
        make_plan(LocalSettings().model_copy(update={"data_dir": data}))
    assert told in str(caught.value)
    assert list(tmp_path.iterdir()) == []
