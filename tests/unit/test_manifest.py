"""Files that people write."""

from __future__ import annotations

import pytest

from calipy.cli import manifest, render
from calipy.errors import InvalidInputError

DELETION = "{stagedAction: Delete, types: [], egress: []}"
SET = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata:
  name: {name}
spec:
  nets: [10.0.0.0/8]
"""


def test_several_documents_and_lists() -> None:
    """Documents and lists come out in order."""
    text = SET.format(name="a") + "--- # the second\n" + SET.format(name="b") + "---\n"
    assert [one.name for one in manifest.read(text)] == ["a", "b"]
    tier = '{"kind":"Tier","apiVersion":"projectcalico.org/v3","metadata":{"name":"t"},"spec":{}}'
    listed = f'{{"kind":"TierList","apiVersion":"projectcalico.org/v3","items":[{tier}]}}'
    assert [one.kind for one in manifest.read(listed)] == ["Tier"]


def test_yaml_is_read_as_go_reads_it() -> None:
    """No times, no numbers to the base of 60, texts from plain numbers."""
    text = """
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata:
  name: default
  creationTimestamp: 2026-08-01T10:00:00Z
  annotations: {version: 5, on-time: true, short: n, whole: 5.0, part: 1_0.25, big: 1234567.5}
spec:
  kubeNodePortRanges: [10:20, 8080]
  vxlanPort: 4.789e3
  ipv6Support: no
"""
    (felix,) = manifest.read(text)
    assert felix.metadata.creation_timestamp == "2026-08-01T10:00:00Z"
    assert felix.metadata.annotations == {
        "version": "5", "on-time": "true", "short": "false", "whole": "5", "part": "10.25", "big": "1.2345675e+06",
    }  # fmt: skip
    assert felix.spec.vxlan_port == 4789
    assert felix.spec.kube_node_port_ranges == ("10:20", 8080)
    assert felix.spec.ipv6_support is False


@pytest.mark.parametrize("value", ["n", "Y", "no", "off", "1e3", "+.5", "0o17", "1_000", "null", "~", "12:30", "=", ""])
def test_texts_survive_being_written_and_read_as_yaml(value: str) -> None:
    """What `get -o yaml` prints, a Go client must read as the same text: whatever it would take for more is quoted."""
    metadata = {"name": "x", "labels": {"a": value}}
    text = render.as_yaml({"kind": "GlobalNetworkSet", "apiVersion": "projectcalico.org/v3", "metadata": metadata})
    assert f"a: '{value}'" in text
    assert manifest.read(text)[0].metadata.labels == {"a": value}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [", "not YAML"),
        ("kind: Tier", "apiVersion"),
        ("apiVersion: projectcalico.org/v3\nkind: Nonsense", "no such kind"),
        (SET.format(name="a") + "  future: 1\n", r"spec\.future"),
        (SET.format(name="a") + "spec: {}\n", "stands twice"),
        (SET.format(name="a") + "status: {}\n", "status: no such field"),
        (SET.format(name="a\n  ownerReferences: [{x: 1}]"), r"ownerReferences\[0\].x: no such field"),
        (
            SET.format(name="a")
            .replace("GlobalNetworkSet", "CalicoNodeStatus")
            .replace("nets: [10.0.0.0/8]", "node: a"),
            "classes",
        ),
        (
            SET.format(name="a")
            .replace("GlobalNetworkSet", "StagedNetworkPolicy")
            .replace("nets: [10.0.0.0/8]", DELETION),
            "egress",
        ),
        ('{"kind": ["Tier"], "metadata": {}}', "no such kind"),
        ("---\n---\n" + SET.format(name="a"), "document 1 of 2 holds nothing"),
        ("# licence\n---\n" + SET.format(name="a"), "document 1 of 2 holds nothing"),
        (SET.format(name="a") + "---\nnull", "document 2 of 2 holds nothing"),
        ('{"apiVersion": "projectcalico.org/v3", "kind": "TierList", "items": [{"kind": "Node"}]}', "must be Tier"),
        ('{"kind": "Tier", "kind": "Tier"}', "stands twice"),
        (SET.format(name="a\n  namespace: x"), r"metadata\.namespace"),
        (SET.format(name="a") + "---\n[1]\n", "must be an object"),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    """A file that cannot be read as a whole is refused as a whole."""
    with pytest.raises(InvalidInputError, match=complaint):
        manifest.read(text)


def test_namespaces() -> None:
    """The namespace comes from the file, else from the command line, else it is default; both must agree."""
    text = "apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: a%s}\nspec: {}\n"
    assert manifest.read(text % "")[0].namespace == "default"
    assert manifest.read(text % "", namespace="x")[0].namespace == "x"
    assert manifest.read(text % ", namespace: z")[0].namespace == "z"
    with pytest.raises(InvalidInputError, match="asked for"):
        manifest.read(text % ", namespace: y", namespace="x")


def test_kubernetes_objects_are_converted() -> None:
    """Policies, namespaces and service accounts of Kubernetes become Calico's."""
    text = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: net}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: shop}
"""
    policy, namespace, account = manifest.read(text, namespace="shop")
    assert (policy.kind, policy.name, policy.namespace) == ("NetworkPolicy", "knp.default.web", "shop")
    assert (namespace.name, account.name) == ("kns.shop", "ksa.shop.robot")


def test_copies_of_kubernetes_policies_are_protected() -> None:
    """They are changed by changing the original."""
    text = "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: knp.default.web}\nspec: {}\n"
    with pytest.raises(InvalidInputError, match="Kubernetes"):
        manifest.read(text)


@pytest.mark.parametrize(
    ("spec", "field", "complaint"),
    [("order: abc", "spec.order", "'abc'"), ("ordre: 1", "", "spec.ordre: no such field")],
)
def test_an_error_tells_which_document(spec: str, field: str, complaint: str) -> None:
    """In a file of many, an error names number, kind and name of the document that is wrong."""
    policy = "kind: GlobalNetworkPolicy\napiVersion: projectcalico.org/v3\nmetadata: {name: deny}\nspec: {%s}\n"
    with pytest.raises(InvalidInputError) as caught:
        manifest.read(SET.format(name="a") + "---\n" + policy % spec)
    assert caught.value.field == field
    assert str(caught.value).startswith("document 2, GlobalNetworkPolicy(deny): ")
    assert complaint in str(caught.value)
