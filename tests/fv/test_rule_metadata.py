"""Theme ``rule_metadata``: a rule's annotations are readable in the kernel, and harmless whatever they say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fv import Lab
from tests.support.objects import Object, global_policy, rule

pytestmark = [pytest.mark.kernel, pytest.mark.etcd]


@pytest.fixture(scope="module", params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two pods on one node, once per backend."""
    with Lab(backend=request.param) as lab:
        for name in ("server", "client"):
            lab.pod(name, app=name)
        yield lab.settled()


def annotated(annotations: dict[str, str], action: str = "Allow") -> Object:
    """The server's policy: TCP 80, with annotations."""
    web = rule(action, protocol="TCP", destination={"ports": [80]}, metadata={"annotations": annotations})
    return global_policy("meta", selector="app == 'server'", types=["Ingress"], ingress=[web])


def comments(lab: Lab) -> list[str]:
    """Comments of the policy's rules in both families' chains, without hashes and the owner's name."""
    found = []
    for family in (4, 6):
        for line in lab.nodes[0].rules(family=family):
            if line.startswith("-A cali-pi-gnp/meta "):
                found += [part.split('"')[0] for part in line.replace('--comment "', "\0").split("\0")[1:]]
    return [text for text in found if not text.startswith(("cali:", "GlobalNetworkPolicy "))]


@pytest.mark.parametrize("action", ["Allow", "Deny", "Pass", "Log"])
def test_annotations_are_comments(lab: Lab, action: str) -> None:
    """Each annotation is one comment ``key=value``, sorted by key, with every action, and they follow changes."""
    lab.apply(annotated({"owner": "team-a", "example.com/ticket": "web 42"}, action))
    assert comments(lab) == ["example.com/ticket=web 42", "owner=team-a"] * 2
    lab.apply(annotated({"owner": "team-b"}, action))
    assert comments(lab) == ["owner=team-b"] * 2
    lab.apply(annotated({}, action))
    assert comments(lab) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("line\nline", "line_line"),
        ("grüße ☃", "gr__e _"),
        ('a" -j ACCEPT -m comment --comment "b', "a_ -j ACCEPT -m comment --comment _b"),
        ("$(reboot) `x` \\ '", "__reboot_ _x_ _ _"),
        ("COMMIT\n*nat\n:PREROUTING ACCEPT", "COMMIT__nat_:PREROUTING ACCEPT"),
        ("x" * 400, "x" * 251),
        ("", ""),
    ],
    ids=["newline", "unicode", "quotes", "shell", "restore", "long", "empty"],
)
def test_hostile_texts_are_made_harmless(lab: Lab, text: str, shown: str) -> None:
    """Newlines, quotes, other alphabets and lengths do not get out of the comment; traffic is as without them."""
    server, client = lab.pods
    before = {family: len(lab.nodes[0].rules(family=family)) for family in (4, 6)}
    lab.apply(annotated({"key": text}))
    assert comments(lab) == [f"key={shown}"] * 2
    assert not lab.nodes[0].felix()["errors"]
    lab.expect({(client, server): "tcp46/80 !tcp46/81"})
    lab.delete(annotated({}))
    assert {family: len(lab.nodes[0].rules(family=family)) for family in (4, 6)} == before


def test_comments_are_found_unchanged_after_a_restart(lab: Lab) -> None:
    """An agent that starts again takes the sanitised rules for its own and rewrites nothing."""
    lab.apply(annotated({"key": "a\nb", "zone": "ß"}))
    node = lab.nodes[0]
    before = node.rules()
    node.stop()
    node.start()
    lab.sync()
    assert node.rules() == before
    assert node.felix()["drift"] == []
