"""Network namespaces: created, entered and deleted on the real kernel."""

from __future__ import annotations

import errno
import os
import socket
import threading
import uuid
from pathlib import Path

import pytest

from calipy.errors import InvalidInputError, KernelError
from calipy.kernel import netns as kernel_netns
from calipy.kernel import process

pytestmark = pytest.mark.kernel


def test_a_created_namespace_is_one_that_ip_knows(make_netns):
    """`ip netns` lists it by name and finds only a loopback in it."""
    namespace = make_netns()
    assert namespace.path.name in process.run(["ip", "netns", "list"]).check().stdout
    assert [link.name for link in namespace.links.list_links()] == ["lo"]


def test_creating_twice_says_that_it_exists(netns):
    """The second creation fails with EEXIST and leaves the first one alone."""
    with pytest.raises(KernelError) as caught:
        kernel_netns.create(netns.path)
    assert caught.value.code == errno.EEXIST
    assert netns.links.list_links()


def test_delete_is_repeatable():
    """Deleting tells whether there was something, and leaves neither file nor mount."""
    path = Path(f"/run/netns/cltest-{uuid.uuid4().hex[:8]}")
    kernel_netns.create(path)
    assert kernel_netns.delete(path)
    assert not kernel_netns.delete(path)
    assert not path.exists()
    assert str(path) not in Path("/proc/self/mounts").read_text()


def test_a_namespace_may_live_outside_run_netns(tmp_path):
    """Any path will do, as for container runtimes."""
    path = tmp_path / "ns"
    kernel_netns.create(path)
    try:
        fd = kernel_netns.open_fd(path)
        assert not kernel_netns.is_current(fd)
        os.close(fd)
    finally:
        assert kernel_netns.delete(path)


def test_run_in_changes_only_the_worker(netns):
    """The function sees the namespace; the caller's thread stays where it was, and no thread is left."""
    before = (Path("/proc/thread-self/ns/net").stat().st_ino, threading.active_count())
    inside = kernel_netns.run_in(netns.fd, lambda: Path("/proc/thread-self/ns/net").stat().st_ino)
    assert inside == os.fstat(netns.fd).st_ino
    assert (Path("/proc/thread-self/ns/net").stat().st_ino, threading.active_count()) == before


def test_run_in_hands_exceptions_to_the_caller(netns):
    """An error inside is raised outside."""
    with pytest.raises(ZeroDivisionError):
        kernel_netns.run_in(netns.fd, lambda: 1 // 0)


@pytest.mark.parametrize("path", ["/proc/self/ns/mnt", "/etc/hostname"])
def test_other_files_are_not_namespaces(path):
    """Only a network namespace is accepted, and the message names what was given."""
    with pytest.raises(InvalidInputError, match=path):
        kernel_netns.open_fd(path)


def test_a_missing_path_is_an_error_with_its_errno():
    """ENOENT is told apart from other trouble."""
    with pytest.raises(KernelError) as caught:
        kernel_netns.open_fd("/run/netns/does-not-exist")
    assert caught.value.code == errno.ENOENT


def test_programs_run_inside(netns):
    """A program started in a namespace sees that namespace."""
    assert "lo" in netns.run("ip", "-o", "link")
    assert len(netns.run("ip", "-o", "link").splitlines()) == 1


def test_a_socket_keeps_its_namespace(netns):
    """A socket opened inside stays inside: binding the same port twice proves it."""

    def listen() -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        return sock

    with netns.call(listen) as inside, socket.socket() as outside:
        outside.bind(("127.0.0.1", inside.getsockname()[1]))


def test_a_failing_program_is_reported_with_its_words():
    """The message has the program and what it said."""
    with pytest.raises(KernelError, match=r"ip link show dev.*does not exist"):
        process.run(["ip", "link", "show", "dev", "nope0"]).check()


def test_a_program_that_is_missing_or_hangs_is_an_error():
    """Not found has a remedy; out of time is killed."""
    with pytest.raises(KernelError, match="install the package"):
        process.run(["calipy-no-such-program"])
    with pytest.raises(KernelError, match="did not end") as caught:
        process.run(["sleep", "30"], timeout=0.1)
    assert caught.value.code == errno.ETIMEDOUT


def own_mounts() -> list[str]:
    """The mounts, without the namespaces that tests make at the same time."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return [line for line in mounts if not line.startswith(("nsfs /run/netns/cltest-", "nsfs /run/netns/clab-"))]


def test_an_unnamed_namespace_leaves_nothing():
    """It is a namespace of its own, with no name and no mount, and gone when its descriptor is closed."""
    mounts = own_mounts()
    fd = kernel_netns.create_unnamed()
    try:
        assert not kernel_netns.is_current(fd)
        assert kernel_netns.run_in(fd, lambda: kernel_netns.is_current(fd))
        assert kernel_netns.run_in(fd, socket.if_nameindex) == [(1, "lo")]
        assert own_mounts() == mounts
    finally:
        os.close(fd)
