"""Topology files as text: substitution, scalars, strictness, inheritance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calipy.containerlab import topology
from calipy.containerlab.errors import TopologyError
from calipy.containerlab.model import Node, Topology
from calipy.containerlab.substitute import substitute
from calipy.containerlab.words import parse_env_file, split


class Files:
    """Files that the text may refer to."""

    def __init__(self, **texts: str) -> None:
        self.texts = texts

    def exists(self, path: str) -> bool:
        return path.rsplit("/", 1)[1].replace(".", "_") in self.texts

    def read(self, path: str) -> str:
        try:
            return self.texts[path.rsplit("/", 1)[1].replace(".", "_")]
        except KeyError:
            raise FileNotFoundError(path) from None


def load(text: str, environ: dict[str, str] | None = None, files: Files | None = None, **extra: Any) -> Topology:
    return topology.load(text, file="/labs/x.clab.yml", environ=environ or {}, files=files or Files(), **extra)


def one(definition: str, **extra: Any) -> Node:
    """The node of a topology with one node ``n``."""
    return load(f"name: t\ntopology: {{nodes: {{n: {definition}}}}}", **extra).nodes["n"]


PLAIN = 'kind: linux, image: "calipy/plain:dev"'


def plain(fields: str, **extra: Any) -> Node:
    """A plain node with these fields."""
    return one(f"{{{PLAIN}, {fields}}}", **extra)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$V ${V}", "v v"),
        ("${U:-d} ${U-d} ${U:=d} ${U=d}", "d d d d"),
        ("${E:-d}", "d"),
        ("${E-d}", "$E"),
        ("${V:+o} ${V+o} [${U+o}]", "o o []"),
        ("$U ${U}", "$U $U"),
        ("$$V $1 $(id) ${1} $_", "$V $1 $(id) ${1} $_"),
        ("${U:-$V} ${U:-a-b=c}", "v a-b=c"),
    ],
)
def test_substitution_follows_containerlabs_rules(text: str, expected: str) -> None:
    """Defaults, empty and unset variables, and shell fragments come out as containerlab has them."""
    assert substitute(text, {"V": "v", "E": ""}) == expected


@given(st.text().filter(lambda text: "$" not in text))
def test_substitution_leaves_text_without_dollar_alone(text: str) -> None:
    """Only a dollar means anything."""
    assert substitute(text, {"A": "b"}) == text


def test_an_open_brace_is_refused_with_its_line() -> None:
    """The error names the line and the text."""
    with pytest.raises(TopologyError, match=r"f:2: bad substitution '\$\{open"):
        substitute("a\n${open\n}", {}, place="f")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("echo 'a b' \"c d\"", ("echo", "a b", "c d")),
        (r'a\ b "q\"u" \\', ("a b", 'q"u', "\\")),
        ("echo a#b # comment", ("echo", "a#b")),
        ("sh -c 'x; y' ''", ("sh", "-c", "x; y", "")),
    ],
)
def test_command_lines_are_split_without_a_shell(command: str, words: tuple[str, ...]) -> None:
    """Quotes, backslashes and comments as in Go's shlex."""
    assert split(command) == words


@pytest.mark.parametrize("command", ["'open", '"open', "end\\"])
def test_unbalanced_quotes_are_refused(command: str) -> None:
    """A command line that does not end is no command line."""
    with pytest.raises(ValueError, match=r"closed|backslash"):
        split(command)


def test_env_files_know_quotes_comments_and_export() -> None:
    """The dotenv forms that people write."""
    text = "A=1\n# c\nexport B=two words # c\nC='$A'\nD=\"x\\n$A\"\nE=${A}3\n\nF="
    found = parse_env_file(text)
    assert found == {"A": "1", "B": "two words", "C": "$A", "D": "x\n1", "E": "13", "F": ""}
    with pytest.raises(ValueError, match="line 1"):
        parse_env_file("no assignment")


def test_scalars_stay_the_text_that_was_written() -> None:
    """No YAML type guessing where a text is wanted, and typed fields are typed."""
    node = plain(
        "env: {A: 010, B: 1_000, C: 2026-01-02, D: yes, E: ~, F: 12:34:56, G: 1e3}, cpu: .5, startup-delay: 0x10"
    )
    assert node.env == {"A": "010", "B": "1_000", "C": "2026-01-02", "D": "yes", "E": "", "F": "12:34:56", "G": "1e3"}
    assert (node.cpu, node.startup_delay) == (0.5, 16)


def test_ports_are_no_sexagesimal_numbers() -> None:
    """22:22 is a port binding, for both families unless an address is given."""
    node = plain('ports: [22:22, "127.0.0.1:53:53/udp", 8000-8001:80-81]')
    assert [(p.host_ip, p.host_port, p.port, p.protocol) for p in node.ports] == [
        ("0.0.0.0", 22, 22, "tcp"),
        ("::", 22, 22, "tcp"),
        ("127.0.0.1", 53, 53, "udp"),
        ("0.0.0.0", 8000, 80, "tcp"),
        ("::", 8000, 80, "tcp"),
        ("0.0.0.0", 8001, 81, "tcp"),
        ("::", 8001, 81, "tcp"),
    ]


def test_merge_keys_fill_fields_that_are_mappings_in_both_places() -> None:
    """As Go decodes into what is there already: env of both, kind of the anchor."""
    text = f"""
name: t
topology:
  defaults: &base {{{PLAIN}}}
  nodes:
    a: &a {{<<: *base, env: {{A: 1, C: old}}, exec: [one]}}
    b: {{<<: *a, env: {{B: 2, C: new}}, exec: [two]}}
"""
    node = load(text).nodes["b"]
    assert node.env == {"A": "1", "B": "2", "C": "new"}
    assert node.execs == (("two",),)


LEVELS = """
name: t
topology:
  defaults: {kind: linux, image: d, env: {W: d, D: d}, exec: [d, same], labels: {l: d}, cmd: run d, group: %s,
             binds: ["a:/x", "a:/d"], restart-policy: "no"}
  kinds: {linux: {image: k, env: {W: k, K: k}, exec: [k], labels: {l: k}, binds: ["b:/x:ro"]}}
  groups: {g: {env: {W: g, G: g}, exec: [g], cmd: run g, binds: ["c:/x"]}}
  nodes:
    n: {env: {W: n}, exec: [same, n], binds: ["d:/y"]}
    m: {group: nosuch}
"""


def test_inheritance_goes_node_group_kind_defaults() -> None:
    """Scalars are overwritten, maps merged by key, lists merged with duplicates dropped, binds keyed by target."""
    lab = load(LEVELS % "g", files=Files(a="", b="", c="", d=""))
    node, other = lab.nodes["n"], lab.nodes["m"]
    assert (node.image, node.argv, node.labels, node.restart) == ("k", ("run", "g"), {"l": "k"}, "no")
    assert node.env == {"W": "n", "D": "d", "K": "k", "G": "g"}
    assert node.execs == (("d",), ("same",), ("k",), ("g",), ("n",))
    assert [bind.text for bind in node.binds] == ["a:/d", "c:/x", "d:/y"]
    assert (other.group, other.argv, other.env) == ("nosuch", ("run", "d"), {"W": "k", "D": "d", "K": "k"})


def test_the_kinds_table_is_looked_up_as_written() -> None:
    """``kind: Linux`` is linux, but takes nothing from ``kinds.linux``."""
    nodes = "{n: {kind: Linux, image: i}, m: {kind: linux, image: i}}"
    lab = load(f"name: t\ntopology: {{kinds: {{linux: {{env: {{K: k}}}}}}, nodes: {nodes}}}")
    assert (lab.nodes["n"].kind, lab.nodes["n"].env, lab.nodes["m"].env) == ("linux", {}, {"K": "k"})


def test_a_kind_may_come_from_the_group() -> None:
    """The node's group, then that of the defaults."""
    text = "name: t\ntopology: {groups: {g: {kind: linux, image: i}}, nodes: {n: {group: g}}}"
    assert load(text).nodes["n"].kind == "linux"


def test_env_files_lose_against_env_and_later_ones_win() -> None:
    """base.env, then the node's file, then env."""
    node = plain(
        "env-files: [base.env, more.env], env: {C: node}",
        files=Files(base_env="A=1\nB=1\nC=1", more_env="B=2"),
    )
    assert node.env == {"A": "1", "B": "2", "C": "node"}


def test_the_callers_environment_is_imported_below_everything_of_the_level() -> None:
    """``__IMPORT_ENVS`` brings what the level does not set itself."""
    node = plain('env: {__IMPORT_ENVS: "true", A: own}', environ={"A": "caller", "B": "caller"})
    assert node.env == {"__IMPORT_ENVS": "true", "A": "own", "B": "caller"}


def test_magic_variables_are_replaced_in_bind_sources_and_exec() -> None:
    """Not in bind targets."""
    node = plain(
        "exec: [echo __clabNodeName__ __clabLabName__ __clabNodeDir__ __clabDir__], "
        "binds: [__clabDir__/topology-data.json:/__clabNodeName__]"
    )
    assert node.execs == (("echo", "n", "clab-t", "/labs/clab-t/n", "/labs/clab-t"),)
    assert (node.binds[0].source, node.binds[0].target) == ("/labs/clab-t/topology-data.json", "/__clabNodeName__")


@pytest.mark.parametrize(
    ("prefix", "name"), [("", "nn"), ("__lab-name", "t-nn"), ("acme", "acme-t-nn"), (None, "clab-t-nn")]
)
def test_the_prefix_makes_the_long_name(prefix: str | None, name: str) -> None:
    """Default, empty, the lab's name, any other text."""
    head = "" if prefix is None else f'prefix: "{prefix}"\n'
    assert load(f"name: t\n{head}topology: {{nodes: {{nn: {{{PLAIN}}}}}}}").nodes["nn"].long_name == name


def test_a_node_filter_keeps_links_within() -> None:
    """Links with an end outside go; unknown names are refused."""
    text = f"""
name: t
topology:
  defaults: {{{PLAIN}}}
  nodes: {{a: {{}}, b: {{}}, c: {{}}}}
  links: [{{endpoints: ["a:e1", "b:e1"]}}, {{endpoints: ["b:e2", "c:e2"]}}]
"""
    lab = load(text, node_filter=["a", "b"])
    assert list(lab.nodes) == ["a", "b"]
    assert [str(link) for link in lab.links] == ["a:e1 -- b:e1"]
    with pytest.raises(TopologyError, match="zz"):
        load(text, node_filter=["a", "zz"])


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("", "empty"),
        ("- a", "mapping"),
        ("topology: {nodes: {n: {}}}", "'name' is required"),
        ("name: t", "'topology' is required"),
        ("name: t\ntopology: {}", "'nodes' is required"),
        ("name: a b\ntopology: {nodes: {n: {}}}", "a b"),
        ("name: t\ntopology: {nodes: {n: {kind: linux, image: i}}}\nother: 1", ":3: unknown key 'other'"),
        ("name: t\ntopology: {nodes: {n: {kind: linux, imagee: i}}}", "did you mean image"),
        ("name: t\nname: u", "'name' is given twice"),
        ("name: t\ntopology: {nodes: {n: {image: i}}}", "no kind"),
        ("name: t\ntopology: {nodes: {n: {kind: linux}}}", "'image' is required"),
        ("name: t\ntopology: {nodes: {n: {kind: srl, image: i}}}", "unknown kind 'srl'"),
        ("name: t\ntopology: {nodes: {n: {kind: k8s-kind, image: i}}}", "k8s-kind"),
        ("name: t\ntopology: {nodes: {n@1: {kind: linux, image: i}}}", "n@1"),
        ("name: {{ .name }}", "template"),
        ("name: t\n\ttopology: x", "YAML"),
        ("name: &a [*a]\ntopology: {nodes: {n: {}}}", "name"),
    ],
)
def test_a_file_that_cannot_be_deployed_is_refused_by_name(text: str, element: str) -> None:
    """Each refusal names the file, and what is wrong."""
    with pytest.raises(TopologyError) as caught:
        load(text)
    assert element in str(caught.value)
    assert "x.clab.yml" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "element"),
    [
        ("exec: ip link", "exec: expected a list"),
        ('exec: ["sh -c \'open"]', "exec"),
        ('cmd: "a \'b"', "cmd"),
        ("env: [A=1]", "env: expected a mapping"),
        ("cpu: half", "half"),
        ('startup-delay: "3"', "startup-delay"),
        ("startup-delay: -1", "-1"),
        ("memory: lots", "lots"),
        ("cpu-set: x", "cpu-set"),
        ("auto-remove: maybe", "maybe"),
        ("restart-policy: forever", "forever"),
        ("image-pull-policy: Sometimes", "Sometimes"),
        ("network-mode: bogus", "bogus"),
        ('network-mode: "container:ghost"', "ghost"),
        ('network-mode: "container:n"', "container:n"),
        ("mgmt-ipv4: dhcp", "dhcp"),
        ("mgmt-ipv4: 10.1.1.1", "outside"),
        ("mgmt-ipv4: 172.20.20.1", "gateway"),
        ("mgmt-ipv4: 172.20.20.255", "no host address"),
        ("ports: [nope]", "nope"),
        ('ports: ["70000:1"]', "70000"),
        ('binds: ["a:b:c:d"]', "a:b:c:d"),
        ('binds: ["nosuch:/x"]', "nosuch"),
        ("env-files: [nosuch.env]", "nosuch.env"),
        ("healthcheck: {test: [RUN, x]}", "RUN"),
        ("healthcheck: {test: [CMD, x], every: 3}", "every"),
        ("stages: {links: {}}", "links"),
        ("stages: {create: {wait-for: [{node: n, stage: create}]}}", "cyclic"),
        ("stages: {create: {wait-for: [{node: x, stage: create}]}}", "'x'"),
        ("stages: {create: {wait-for: [{node: n, stage: started}]}}", "started"),
        ("stages: {create: {exec: [{command: x, target: moon}]}}", "moon"),
        ("stages: {create: {exec: [{command: x, phase: during}]}}", "during"),
        ("sysctls: {kernel.panic: 1}", "kernel.panic"),
        ("dns: {server: [1.1.1.1]}", "server"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, element: str) -> None:
    """The message has the node's path and the value or key."""
    with pytest.raises(TopologyError) as caught:
        plain(field)
    assert element in str(caught.value)
    assert "topology.nodes.n" in str(caught.value)
