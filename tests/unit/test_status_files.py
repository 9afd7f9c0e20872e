"""Files tell which endpoints are up, as Calico's CNI plugin expects them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calipy.felix.messages import EndpointID, LocalBGPPeer, WorkloadEndpoint
from calipy.felix.status_files import StatusFiles, content, file_name


def endpoint(name: str, **changes: object) -> WorkloadEndpoint:
    values = {"mac": "02:00:00:00:00:01", "nets": ("10.65.0.1/32", "fd65::1/128"), "tiers": (), "profiles": ()}
    return WorkloadEndpoint(EndpointID("k8s", f"ns1/{name}", "eth0"), f"cali{name}", **{**values, **changes})  # type: ignore[arg-type]


def present(prefix: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (prefix / "endpoint-status").iterdir()}


def test_names_are_escaped_as_in_a_url() -> None:
    """A file's name is the endpoint's id, its parts apart from each other."""
    assert file_name(EndpointID("k8s", "default/web-1.a_b~c", "eth0")) == "k8s default%2Fweb-1.a_b~c eth0"
    assert file_name(EndpointID("a b", "c%d;e", "f$&+=:@g")) == "a%20b c%25d%3Be f$&+=:@g"


def test_content_is_what_felix_writes() -> None:
    """Interface, MAC and addresses by family; nothing for what there is not."""
    assert content(endpoint("a")) == (
        b'{"ifaceName":"calia","mac":"02:00:00:00:00:01","ipv4Nets":["10.65.0.1/32"],"ipv6Nets":["fd65::1/128"]}'
    )
    assert (
        content(endpoint("a", mac="", nets=("10.65.0.1/32",))) == b'{"ifaceName":"calia","ipv4Nets":["10.65.0.1/32"]}'
    )


def test_files_come_change_and_go(tmp_path: Path) -> None:
    """The directory holds a file for each wanted endpoint and nothing else."""
    files = StatusFiles(tmp_path / "run")
    files.reconcile([endpoint("a"), endpoint("b")])
    assert present(tmp_path / "run").keys() == {"k8s ns1%2Fa eth0", "k8s ns1%2Fb eth0"}
    files.reconcile([endpoint("b", nets=("10.65.0.9/32",))])
    [(name, data)] = present(tmp_path / "run").items()
    assert name == "k8s ns1%2Fb eth0"
    assert json.loads(data)["ipv4Nets"] == ["10.65.0.9/32"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["endpoint-status"]


def test_files_of_an_earlier_run_are_used_again(tmp_path: Path) -> None:
    """What is right is not written again; what is stale or broken is put right; a directory is left alone."""
    StatusFiles(tmp_path).reconcile([endpoint("a"), endpoint("b"), endpoint("c")])
    directory = tmp_path / "endpoint-status"
    (directory / file_name(endpoint("b").id)).write_bytes(b"{")
    (directory / "sub").mkdir()
    kept = directory / file_name(endpoint("a").id)
    before = kept.stat()
    StatusFiles(tmp_path).reconcile([endpoint("a"), endpoint("b")])
    assert kept.stat() == before
    (directory / "sub").rmdir()
    assert present(tmp_path) == {file_name(e.id): content(e) for e in (endpoint("a"), endpoint("b"))}


def test_meddling_is_noticed_at_a_recheck(tmp_path: Path) -> None:
    """A file that somebody deleted is back after ``recheck``."""
    files = StatusFiles(tmp_path)
    files.reconcile([endpoint("a")])
    (tmp_path / "endpoint-status" / file_name(endpoint("a").id)).unlink()
    files.recheck()
    files.reconcile([endpoint("a")])
    assert present(tmp_path)


def test_a_directory_that_cannot_be_is_an_error_and_tried_again(tmp_path: Path) -> None:
    """The error is raised; when the cause is gone, all is written."""
    (tmp_path / "endpoint-status").write_text("in the way")
    files = StatusFiles(tmp_path)
    with pytest.raises(OSError, match="endpoint-status"):
        files.reconcile([endpoint("a")])
    (tmp_path / "endpoint-status").unlink()
    files.reconcile([endpoint("a")])
    assert present(tmp_path)


def test_a_link_in_the_way_is_replaced_not_followed(tmp_path: Path) -> None:
    """Nobody has us write elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    directory = tmp_path / "endpoint-status"
    directory.mkdir()
    for name in (directory / file_name(endpoint("a").id), tmp_path / ".endpoint-status.new"):
        name.symlink_to(elsewhere)
    StatusFiles(tmp_path).reconcile([endpoint("a")])
    assert elsewhere.read_text() == "precious"
    assert present(tmp_path) == {file_name(endpoint("a").id): content(endpoint("a"))}
    assert not (directory / file_name(endpoint("a").id)).is_symlink()


def test_the_bgp_peer_of_a_pod_is_told() -> None:
    """A pod that is to have a BGP session names the BGPPeer, as Calico's confd looks for it."""
    told = json.loads(content(endpoint("a", bgp_peer=LocalBGPPeer("red", ("169.254.0.179",)))))
    assert told["bgpPeerName"] == "red"
