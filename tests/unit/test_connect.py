"""The datastore's configuration is read as Calico reads it, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from calipy.datastore import connect as module
from calipy.datastore.connect import EtcdConfig, connect
from calipy.datastore.etcd_transport import Tls
from calipy.errors import InvalidInputError

PEM = "-----BEGIN X-----\nsecret\n-----END X-----\n"
ENDPOINT = {"ETCD_ENDPOINTS": "http://127.0.0.1:2379"}


@pytest.fixture(autouse=True)
def _no_file_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONFIG_FILE", tmp_path / "absent.cfg")


@pytest.fixture
def pems(tmp_path: Path) -> dict[str, str]:
    """Files that look like PEM."""
    for name in ("key", "cert", "ca"):
        (tmp_path / name).write_text(PEM.replace("X", name))
    return {name: str(tmp_path / name) for name in ("key", "cert", "ca")}


def config_file(
    tmp_path: Path, spec: str, head: str = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig"
) -> Path:
    path = tmp_path / "calicoctl.cfg"
    path.write_text(f"{head}\nspec:\n{spec}")
    return path


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("http://127.0.0.1:2379", ("http://127.0.0.1:2379",)),
        ("https://a.example:1, http://b:2,", ("https://a.example:1", "http://b:2")),
        ("https://[fd00::1]:2379/", ("https://[fd00::1]:2379",)),
        ("http://10.0.0.1", ("http://10.0.0.1:2379",)),
    ],
)
def test_endpoints(text, endpoints):
    """Endpoints are a comma-separated list of URLs; a missing port is etcd's own."""
    assert EtcdConfig.from_variables({"ETCD_ENDPOINTS": text}).endpoints == endpoints


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ",
        "127.0.0.1:2379",
        "ftp://a:1",
        "http://",
        "http://a:x",
        "http://a:99999",
        "http://a/v3",
        "http://[fd00::1",
    ],
)
def test_bad_endpoints(text):
    """What is no endpoint is refused, with the variable's name and a remedy."""
    with pytest.raises(InvalidInputError) as caught:
        EtcdConfig.from_variables({"ETCD_ENDPOINTS": text})
    assert "ETCD_ENDPOINTS" in str(caught.value)
    assert "http" in caught.value.remedy


def test_password_in_url_is_refused_and_not_shown():
    """A URL with a password is refused without repeating it."""
    with pytest.raises(InvalidInputError) as caught:
        EtcdConfig.from_variables({"ETCD_ENDPOINTS": "http://root:hush@a:1"})
    assert "hush" not in str(caught.value)
    assert "ETCD_USERNAME" in str(caught.value)


def test_all_variables(pems):
    """Every variable of Calico's has its effect."""
    config = EtcdConfig.from_variables(
        {
            "DATASTORE_TYPE": "etcdv3",
            "ETCD_ENDPOINTS": "https://a:1",
            "ETCD_USERNAME": "root",
            "ETCD_PASSWORD": "hush",
            "ETCD_KEY_FILE": pems["key"],
            "ETCD_CERT_FILE": pems["cert"],
            "ETCD_CA_CERT_FILE": pems["ca"],
        }
    )
    tls = Tls(*(PEM.replace("X", name).encode() for name in ("ca", "cert", "key")))
    assert config == EtcdConfig(("https://a:1",), tls, "root", "hush")


def test_prefixed_variable_wins_over_plain_and_felix():
    """``CALICO_X`` goes before ``X`` before Felix's; an empty one does not count."""
    environ = {
        "FELIX_EtcdEndpoints": "http://felix:1",
        "ETCD_ENDPOINTS": "http://plain:1",
        "CALICO_ETCD_ENDPOINTS": "http://calico:1",
    }
    for expected in ("calico", "plain", "felix"):
        assert EtcdConfig.from_variables(environ).endpoints == (f"http://{expected}:1",)
        name = next(name for name, value in environ.items() if expected in value)
        environ[name] = ""
    with pytest.raises(InvalidInputError):
        EtcdConfig.from_variables(environ)


def test_felix_variables(pems):
    """A node configured for Felix alone works: endpoints, or address and scheme, and files."""
    config = EtcdConfig.from_variables(
        {
            "FELIX_DATASTORETYPE": "etcdv3",
            "FELIX_ETCDADDR": "10.0.0.1:2379",
            "FELIX_ETCDSCHEME": "https",
            "FELIX_ETCDCAFILE": pems["ca"],
            "FELIX_ETCDCERTFILE": pems["cert"],
            "FELIX_ETCDKEYFILE": pems["key"],
        }
    )
    assert config.endpoints == ("https://10.0.0.1:2379",)
    assert config.tls.key.startswith(b"-----BEGIN key")
    assert EtcdConfig.from_variables({"FELIX_ETCDADDR": "[fd00::1]:1"}).endpoints == ("http://[fd00::1]:1",)
    both = {"FELIX_ETCDADDR": "a:1", "FELIX_ETCDENDPOINTS": "http://b:1"}
    assert EtcdConfig.from_variables(both).endpoints == ("http://b:1",)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"DATASTORE_TYPE": "kubernetes"}, "DATASTORE_TYPE"),
        ({"FELIX_DATASTORETYPE": "kubernetes"}, "FELIX_DATASTORETYPE"),
        ({"ETCD_DISCOVERY_SRV": "example.com"}, "ETCD_DISCOVERY_SRV"),
        ({"ETCD_USERNAME": "root"}, "ETCD_PASSWORD"),
        ({"CALICO_ETCD_PASSWORD": "hush"}, "CALICO_ETCD_PASSWORD"),
        ({"ETCD_KEY_FILE": "KEY"}, "ETCD_CERT_FILE"),
        ({"ETCD_CERT_FILE": "CERT"}, "ETCD_KEY_FILE"),
        ({"ETCD_CA_CERT_FILE": "/no/such/file"}, "ETCD_CA_CERT_FILE"),
        ({"ETCD_CA_CERT_FILE": "/dev/null"}, "ETCD_CA_CERT_FILE"),
    ],
)
def test_contradictions_name_the_variable(environ, named, pems):
    """Half of a pair, an unreadable file, another datastore: refused with the variable as the user wrote it."""
    environ = {name: pems.get(value.lower(), value) for name, value in environ.items()}
    with pytest.raises(InvalidInputError) as caught:
        EtcdConfig.from_variables(ENDPOINT | environ)
    assert named in str(caught.value)
    assert caught.value.remedy
    assert "hush" not in str(caught.value)


def test_secrets_do_not_show(pems):
    """Neither password nor key is in a representation."""
    environ = ENDPOINT | {"ETCD_USERNAME": "root", "ETCD_PASSWORD": "hush"}
    config = EtcdConfig.from_variables(environ | {"ETCD_KEY_FILE": pems["key"], "ETCD_CERT_FILE": pems["cert"]})
    assert "hush" not in repr(config)
    assert "secret" not in repr(config)


def test_file_shuts_the_environment_out(tmp_path, monkeypatch):
    """Where the default file exists, no variable counts; where it does not, they do."""
    path = config_file(tmp_path, "  etcdEndpoints: http://file:1\n")
    environ = {"ETCD_ENDPOINTS": "http://env:1", "ETCD_USERNAME": "root", "ETCD_PASSWORD": "hush"}
    assert EtcdConfig.from_environment(environ).endpoints == ("http://env:1",)
    monkeypatch.setattr(module, "CONFIG_FILE", path)
    assert EtcdConfig.from_environment(environ) == EtcdConfig(("http://file:1",))
    assert EtcdConfig.from_variables(environ).endpoints == ("http://env:1",)


def test_named_file_must_exist(tmp_path):
    """A file named by the user is not silently replaced by the environment."""
    with pytest.raises(InvalidInputError, match="--config"):
        EtcdConfig.from_environment(ENDPOINT, config_file=tmp_path / "none")


def test_file_with_inline_keys(tmp_path):
    """A file may hold the key material itself, and keys that only matter to Kubernetes."""
    indented = PEM.replace("\n", "\n      ").rstrip()
    spec = f"""  datastoreType: etcdv3
  etcdEndpoints: https://a:1,https://b:1
  etcdKey: |
      {indented}
  etcdCert: |
      {indented}
  etcdCACert: |
      {indented}
  etcdUsername: root
  etcdPassword: hush
  kubeconfig: ""
"""
    config = EtcdConfig.from_environment({}, config_file=config_file(tmp_path, spec))
    assert config == EtcdConfig(
        ("https://a:1", "https://b:1"), Tls(PEM.encode(), PEM.encode(), PEM.encode()), "root", "hush"
    )


def test_file_in_json_and_in_any_case(tmp_path):
    """JSON is YAML, and Go matches keys without regard to case."""
    path = tmp_path / "c"
    path.write_text(
        '{"apiVersion": "projectcalico.org/v3", "kind": "CalicoAPIConfig", "metadata": {},'
        ' "spec": {"etcdendpoints": "http://a:1"}}'
    )
    assert EtcdConfig.from_file(path).endpoints == ("http://a:1",)


@pytest.mark.parametrize(
    ("spec", "head", "named"),
    [
        ("  etcdEndpoint: http://a:1", None, "spec.etcdEndpoint"),
        ("  etcdEndpoints: http://a:1\n  etcdEndpoints: http://b:1", None, "given twice"),
        ("  etcdEndpoints: 5", None, "spec.etcdEndpoints"),
        ("  etcdEndpoints: [http://a:1]", None, "spec.etcdEndpoints"),
        ("  etcdEndpoints: http://a:1\n  etcdKey: abc\n  etcdKeyFile: /x", None, "etcdKey"),
        ("  etcdEndpoints: http://a:1\n  etcdKey: abc\n  etcdCert: abc", None, "no PEM"),
        ("  etcdEndpoints: http://a:1\n  etcdUsername: root", None, "etcdPassword"),
        ("  datastoreType: kubernetes", None, "datastoreType"),
        ("", None, "spec.etcdEndpoints"),
        ("  etcdPassword: 'hush\n  x", None, "YAML"),
        ("  ? [a]\n  : b", None, "YAML"),
        ("  x: 1", "apiVersion: v1\nkind: CalicoAPIConfig", "apiVersion"),
        ("  x: 1", "apiVersion: projectcalico.org/v3\nkind: IPPool", "kind"),
        ("  x: 1", "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmore: 1", "more"),
    ],
)
def test_bad_files(spec, head, named, tmp_path):
    """A file that is not exactly right is refused: what is wrong is named, and no secret of it shown."""
    path = config_file(tmp_path, spec, *([head] if head else []))
    with pytest.raises(InvalidInputError) as caught:
        EtcdConfig.from_file(path)
    assert named in str(caught.value)
    assert caught.value.remedy
    assert "hush" not in str(caught.value)


def test_connecting_does_not_block():
    """A store is made without touching the network, and without an event loop."""
    store = connect(EtcdConfig(("http://192.0.2.1:2379",), username="root", password="hush"))
    assert repr(store) == "EtcdStore(http://192.0.2.1:2379)"
