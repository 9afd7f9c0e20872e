"""TLS and etcd's own users, against a real etcd."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from calipy.datastore.connect import EtcdConfig, connect
from calipy.datastore.etcd import EtcdStore
from calipy.datastore.etcd_transport import Tls
from calipy.datastore.store import Put
from calipy.errors import AccessDeniedError, UnavailableError
from tests.support.etcd import EtcdServer, ServerTls, etcdctl
from tests.support.watching import take_events

pytestmark = pytest.mark.etcd


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a directory, made with openssl."""

    directory: Path

    @classmethod
    def make(cls, directory: Path) -> Authority:
        directory.mkdir()
        made = cls(directory)
        made._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN=ca-{directory.name}", "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip
        return made

    def issue(self, name: str, alternative: str = "") -> Path:
        """A certificate ``name``.pem with ``name``.key; ``alternative`` as in ``IP:127.0.0.1``."""
        self._openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
        )  # fmt: skip
        (self.directory / "extensions").write_text(f"subjectAltName={alternative}\n" if alternative else "")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "extensions", "-out", f"{name}.pem",
        )  # fmt: skip
        return self.directory / f"{name}.pem"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("tls") / "right")
    made.issue("server", "IP:127.0.0.1")
    made.issue("client")
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority, which signed nothing that the server trusts."""
    made = Authority.make(tmp_path_factory.mktemp("tls") / "wrong")
    made.issue("client")
    return made


@pytest.fixture(scope="module")
def tls_etcd(authority: Authority) -> Iterator[EtcdServer]:
    folder = authority.directory
    with EtcdServer(tls=ServerTls(folder / "ca.pem", folder / "server.pem", folder / "server.key")) as server:
        yield server


def client_tls(authority: Authority, signer: Authority) -> Tls:
    """Trusts ``authority``, shows the certificate that ``signer`` signed."""
    return Tls(
        (authority.directory / "ca.pem").read_bytes(),
        (signer.directory / "client.pem").read_bytes(),
        (signer.directory / "client.key").read_bytes(),
    )


async def test_tls_by_calicos_variables(tls_etcd: EtcdServer, authority: Authority):
    """With authority, certificate and key from Calico's variables, everything works."""
    folder = authority.directory
    config = EtcdConfig.from_variables(
        {
            "ETCD_ENDPOINTS": tls_etcd.url,
            "ETCD_CA_CERT_FILE": str(folder / "ca.pem"),
            "ETCD_CERT_FILE": str(folder / "client.pem"),
            "ETCD_KEY_FILE": str(folder / "client.key"),
        }
    )
    store = connect(config)
    revision = await store.put("/a", b"1")
    assert (await store.get("/a")).value == b"1"
    assert (await take_events(store.watch(["/"], start_revision=revision), 1))[0].key == "/a"
    await store.close()


async def refusal(url: str, tls: Tls | None) -> str:
    """The text of the error that a call gives; the call must not take long."""
    store = EtcdStore([url], tls=tls, connect_timeout=1)
    started = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        await store.get("/a")
    assert time.monotonic() - started < 15
    await store.close()
    assert url in str(caught.value)
    return str(caught.value)


async def test_server_of_another_authority(tls_etcd: EtcdServer, authority: Authority, stranger: Authority):
    """A server whose certificate is signed by another authority than configured is refused, and the reason said."""
    assert "not signed by the configured authority (ETCD_CA_CERT_FILE)" in await refusal(
        tls_etcd.url, client_tls(stranger, authority)
    )


async def test_server_of_another_name(authority: Authority):
    """A certificate for another name or address is refused, and the reason said."""
    certificate = authority.issue("elsewhere", "DNS:elsewhere,IP:192.0.2.1")
    files = ServerTls(authority.directory / "ca.pem", certificate, certificate.with_suffix(".key"))
    with EtcdServer(tls=files) as server:
        assert "is for another name" in await refusal(server.url, client_tls(authority, authority))


async def test_client_without_certificate(tls_etcd: EtcdServer, authority: Authority, stranger: Authority):
    """A client certificate that is missing, or signed by a stranger, is refused by the server."""
    ca = (authority.directory / "ca.pem").read_bytes()
    for tls in (Tls(ca), client_tls(authority, stranger)):
        assert "127.0.0.1" in await refusal(tls_etcd.url, tls)


async def test_plain_text_to_a_tls_port(tls_etcd: EtcdServer, own_etcd: EtcdServer):
    """http to a TLS server and https to a plain one both fail with the endpoint named."""
    await refusal(tls_etcd.url.replace("https", "http"), None)
    assert "TLS" in await refusal(own_etcd.url.replace("http", "https"), None)


@pytest.fixture
async def guarded(own_etcd: EtcdServer) -> AsyncIterator[EtcdServer]:
    """An etcd with users: root, and ``node`` who may read /calico/ and write /calico/own/."""
    etcdctl(own_etcd, "user", "add", "root:rootpw")
    etcdctl(own_etcd, "user", "grant-role", "root", "root")
    etcdctl(own_etcd, "role", "add", "node")
    etcdctl(own_etcd, "role", "grant-permission", "node", "--prefix=true", "read", "/calico/")
    etcdctl(own_etcd, "role", "grant-permission", "node", "--prefix=true", "readwrite", "/calico/own/")
    etcdctl(own_etcd, "user", "add", "node:hush")
    etcdctl(own_etcd, "user", "grant-role", "node", "node")
    etcdctl(own_etcd, "auth", "enable")
    return own_etcd


async def test_user_and_password(guarded: EtcdServer):
    """A user does what its role allows, and is refused the rest with a remedy."""
    store = EtcdStore([guarded.url], username="node", password="hush")
    revision = await store.put("/calico/own/a", b"1")
    assert len((await store.list("/calico/")).items) == 1
    events = await take_events(store.watch(["/calico/own/", "/calico/other/"], start_revision=revision), 1)
    assert events[0].revision == revision
    for refused in (store.put("/calico/a", b"1"), store.get("/else"), anext(store.watch(["/"], start_revision=1))):
        with pytest.raises(AccessDeniedError) as caught:
            await refused
        assert "permission denied" in str(caught.value)
        assert "ETCD_USERNAME" in caught.value.remedy
        assert "hush" not in str(caught.value)
    await store.close()


async def test_user_of_some_prefixes_only(guarded: EtcdServer):
    """Who may read the prefixes of a watch, but not what lies between, gets it all the same, in order and whole."""
    root = "root:rootpw"
    etcdctl(guarded, "role", "add", "narrow", user=root)
    for prefix in ("/calico/a/", "/calico/c/"):
        etcdctl(guarded, "role", "grant-permission", "narrow", "--prefix=true", "readwrite", prefix, user=root)
    etcdctl(guarded, "user", "add", "narrow:hush", user=root)
    etcdctl(guarded, "user", "grant-role", "narrow", "narrow", user=root)
    store = EtcdStore([guarded.url], username="narrow", password="hush")
    revision = await store.put("/calico/a/1", b"1")
    for _ in range(2):
        watch = store.watch(["/calico/a/", "/calico/c/"], start_revision=revision)
        result = await store.txn([], [Put("/calico/c/1", b"2"), Put("/calico/a/2", b"2")])
        while True:
            batch = await asyncio.wait_for(anext(watch), 10)
            if batch.events and batch.events[-1].revision == result.revision:
                break
        assert {e.key for e in batch.events if e.revision == result.revision} == {"/calico/a/2", "/calico/c/1"}
        await watch.aclose()
    with pytest.raises(AccessDeniedError):
        await anext(store.watch(["/calico/a/", "/calico/b/"], start_revision=1))
    guarded.kill()
    guarded.start()
    events = await take_events(store.watch(["/calico/a/", "/calico/c/"], start_revision=revision), 5)
    assert len(events) == 5
    await store.close()


@pytest.mark.parametrize(("username", "password"), [("node", "wrong"), ("nobody", "hush"), ("", "")])
async def test_wrong_credentials(guarded: EtcdServer, username: str, password: str):
    """A wrong password, an unknown user, or none at all is denied, for calls and for watches."""
    store = EtcdStore([guarded.url], username=username, password=password)
    for refused in (store.get("/calico/a"), anext(store.watch(["/calico/"], start_revision=1))):
        with pytest.raises(AccessDeniedError) as caught:
            await refused
        assert guarded.url in str(caught.value)
        assert password not in str(caught.value) or not password
    await store.close()


async def test_forgotten_tokens_are_renewed(guarded: EtcdServer):
    """etcd forgets its tokens when it restarts; reads, writes and watches go on with a new one, many at a time."""
    store = EtcdStore([guarded.url], username="node", password="hush")
    revision = await store.put("/calico/own/a", b"1")
    for step in range(3):
        guarded.kill()
        guarded.start()
        if step == 0:
            values = await asyncio.gather(*(store.get("/calico/own/a") for _ in range(10)))
            assert {kv.value for kv in values} == {b"1"}
        elif step == 1:
            await store.put("/calico/own/b", b"2")
        else:
            events = await take_events(store.watch(["/calico/own/"], start_revision=revision), 2)
            assert [event.kv.value for event in events] == [b"1", b"2"]
    await store.close()


async def test_open_watch_outlives_its_token(guarded: EtcdServer):
    """A change of users makes tokens stale, yet an open watch goes on, and calls get a new token."""
    store = EtcdStore([guarded.url], username="node", password="hush")
    revision = await store.put("/calico/own/a", b"1")
    watch = store.watch(["/calico/own/"], start_revision=revision + 1)
    await anext(watch)
    etcdctl(guarded, "user", "add", "other:pw", user="root:rootpw")
    await store.put("/calico/own/a", b"2")
    assert [event.kv.value for event in await take_events(watch, 1)] == [b"2"]
    await watch.aclose()
    await store.close()


async def test_users_switched_on_and_off_under_way(own_etcd: EtcdServer, guarded: EtcdServer):
    """Credentials do no harm while etcd asks for none, and count from the moment it does."""
    etcdctl(guarded, "auth", "disable", user="root:rootpw")
    store = EtcdStore([guarded.url], username="node", password="hush")
    await store.put("/calico/own/a", b"1")
    etcdctl(guarded, "auth", "enable")
    await store.put("/calico/own/a", b"2")
    with pytest.raises(AccessDeniedError):
        await store.put("/else", b"2")
    etcdctl(guarded, "auth", "disable", user="root:rootpw")
    await store.put("/else", b"3")
    await store.close()
