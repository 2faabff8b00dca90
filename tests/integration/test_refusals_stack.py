"""What `evenload up` refuses by itself, before any service is started, with exit code 2 and one line."""

import socket

import pytest
from harness.refusal import ENDS_WITHIN_S

pytestmark = pytest.mark.timeout(ENDS_WITHIN_S, func_only=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"EVENLOAD_ADMIN_HOST": "0.0.0.0"}, "EVENLOAD_ADMIN_HOST: the local stack serves on 127.0.0.1 only"),
        ({"EVENLOAD_DATA_DIR": "/dev/null"}, "EVENLOAD_DATA_DIR: /dev/null cannot be written"),
    ],
)
def test_a_value_that_a_local_stack_cannot_have(refusal, settings, told):
    assert told in refusal("up", **settings)


def test_a_data_folder_in_a_loop_of_links(refusal, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")

    assert refusal("up", EVENLOAD_DATA_DIR=str(tmp_path / "a/data")) == (
        f"evenload: EVENLOAD_DATA_DIR: {tmp_path}/a/data leads through a loop of symbolic links: name another folder"
    )


@pytest.mark.parametrize("name", ["EVENLOAD_DATA_DIR", "EVENLOAD_CACHE_DIR"])
def test_a_relative_path_in_a_working_folder_that_was_deleted(refusal, tmp_path, monkeypatch, name):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    assert refusal("up", EVENLOAD_PROMETHEUS="auto", **{name: "own"}) == (
        f"evenload: {name}: own is a relative path, and the working folder is gone: "
        "change to a folder that is there, or name an absolute path"
    )


def test_a_file_that_holds_no_address_of_a_broker(refusal, tmp_path):
    said = refusal("up", EVENLOAD_AMQP_URL_FILE=str(tmp_path / "nowhere"))

    assert "EVENLOAD_AMQP_URL_FILE: " in said
    assert "cannot be read (No such file or directory): name a file that this user may read" in said


def test_a_taken_port_is_named_with_its_setting_and_a_free_one(refusal, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        said = refusal("up", EVENLOAD_GATEWAY_PORT=str(port))

    assert f"port {port} " in said
    assert "EVENLOAD_GATEWAY_PORT=" in said


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda folder: str(folder / "nowhere"), "is no program"),
        (str, "is no program"),
        (lambda folder: script(folder / "other", "echo other, version 1"), "is not Prometheus"),
        (lambda folder: script(folder / "broken", "exit 1"), "is not Prometheus"),
        (lambda _folder: "atuo", "is no program"),
    ],
    ids=["missing", "folder", "another program", "broken", "misspelt"],
)
def test_a_program_that_is_no_prometheus(refusal, tmp_path, make, told):
    wish = make(tmp_path)

    said = refusal("up", EVENLOAD_PROMETHEUS=wish)

    assert "EVENLOAD_PROMETHEUS" in said
    assert told in said
    assert "apt install prometheus" in said
