"""Machines that hold a model together: their names, checks and links."""

from __future__ import annotations

import io
import json
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from magistral_mlx import __version__
from magistral_mlx.errors import InvalidOption, MachineError
from magistral_mlx.machines.agent import ANSWER, run_agent
from magistral_mlx.machines.checks import (
    RingLink,
    check_alike,
    gather_facts,
    measure_ring,
    ring_of,
)
from magistral_mlx.machines.connection import Connection, close_all, connect
from magistral_mlx.machines.facts import hardware_ports, link_kind, rdma_names
from magistral_mlx.machines.hosts import Host, first_is_here, parse_hosts
from magistral_mlx.machines.launch import RankCommand
from magistral_mlx.machines.links import LinkListener, LinkSpeed, measure_link
from magistral_mlx.memory.choose_split import make_split_plan
from magistral_mlx.memory.known import MAGISTRAL_SMALL, NAME, quantized_sizes
from magistral_mlx.memory.machine import named_machine
from magistral_mlx.memory.machines import SplitModel
from magistral_mlx.memory.peak import GPU
from magistral_mlx.paths import demo_dir
from magistral_mlx.quantization import Quantization
from tests.command_line import run
from tests.fake_ssh import fake_ssh  # noqa: F401

HERE = "127.0.0.1"


def test_names_users_and_ports_are_read():
    assert parse_hosts("localhost,me@mac2.local:5000, 10.0.0.7") == [
        Host("localhost"),
        Host("me@mac2.local", 5000),
        Host("10.0.0.7"),
    ]
    assert parse_hosts("mac2.local,me@mac3").pop().name == "mac3"
    assert [host.is_local for host in parse_hosts("localhost,localhost")] == [True, True]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "two machines or more"),
        ("mac1.local", "two machines or more"),
        ("mac1.local,", "no name of a machine"),
        ("localhost,-oProxyCommand=x", "no name of a machine"),
        ("localhost,mac 2", "no name of a machine"),
        ("localhost,mac2;rm", "no name of a machine"),
        ("localhost,::1", "no name of a machine"),
        ("localhost,mac2:80", "from 1024 to 65535"),
        ("localhost,mac2:port", "from 1024 to 65535"),
        ("localhost,mac2:", "from 1024 to 65535"),
        ("localhost,mac2,mac2", "names mac2 twice"),
        ("localhost,mac2,me@mac2", "names mac2 twice"),
        ("localhost:5000,localhost:5000", "port 5000 of localhost twice"),
        (",".join(["localhost"] * 65), "64 are the most"),
    ],
)
def test_a_list_that_is_none_is_refused(text: str, expected: str):
    with pytest.raises(InvalidOption, match=expected):
        parse_hosts(text)
    assert expected in run("doctor", "--machines", text).refusal


MESH = [
    {"ssh": "127.0.0.1", "ips": ["127.0.0.1"], "rdma": [None, "rdma_en2"]},
    {"ssh": "me@mac2", "ips": ["10.0.0.2"], "rdma": ["rdma_en3", None]},
]


def test_a_host_file_gives_addresses_and_rdma(tmp_path: Path):
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps({"backend": "jaccl", "envs": [], "hosts": MESH}))
    first, second = first_is_here(parse_hosts(str(file)))
    assert first.is_local and first.rdma == (None, "rdma_en2")
    assert (second.target, second.address, second.rdma) == (
        "me@mac2",
        "10.0.0.2",
        ("rdma_en3", None),
    )
    command = RankCommand(
        [], [["127.0.0.1:5000"], ["10.0.0.2:5001"]], "tensor", [{}, {}], [first.rdma, second.rdma]
    )
    assert command.files == {"MLX_IBV_DEVICES": [(None, "rdma_en2"), ("rdma_en3", None)]}
    assert command.environment(1)["MLX_JACCL_COORDINATOR"] == "127.0.0.1:5000"
    file.write_text(json.dumps([one | {"rdma": []} for one in MESH]))
    plain = parse_hosts(str(file))
    assert [host.rdma for host in plain] == [(), ()]
    over_tcp = RankCommand([], [["127.0.0.1:5000"], ["10.0.0.2:5001"]], "tensor", [{}, {}])
    assert list(over_tcp.files) == ["MLX_HOSTFILE"]
    assert "MLX_JACCL_COORDINATOR" not in over_tcp.environment(0)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is no host file"),
        ("{}", "is no host file"),
        ("[1, 2]", "is no host file"),
        ('[{"ips": ["10.0.0.1"]}]', "is no host file"),
        ('[{"ssh": "mac1"}]', "two machines or more"),
        ('[{"ssh": "mac1"}, {"ssh": "mac1"}]', "names mac1 twice"),
        ('[{"ssh": "mac1"}, {"ssh": "-x"}]', "no name of a machine"),
    ],
)
def test_a_host_file_that_is_none_is_refused(content: str, expected: str, tmp_path: Path):
    file = tmp_path / "hosts.json"
    file.write_text(content)
    assert expected in run("doctor", "--machines", str(file)).refusal
    assert "host file" in run("doctor", "--machines", str(tmp_path / "none.json")).refusal


def test_the_first_machine_is_this_one():
    own = socket.gethostname()
    assert first_is_here([Host(own, 5000), Host("mac2")]) == [Host("localhost", 5000), Host("mac2")]
    assert first_is_here([Host(HERE), Host("mac2")])[0].is_local
    with pytest.raises(InvalidOption, match=r"192\.0\.2\.1, which is not this machine"):
        first_is_here([Host("192.0.2.1"), Host(own)])


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("unknown", "its name is not known"),
        ("locked", r"ssh-copy-id locked@127\.0\.0\.1"),
        ("closed", "turn on Remote Login"),
        ("asleep", "on, awake and on this network"),
        ("stranger", r"run `ssh stranger@127\.0\.0\.1` once by hand"),
        ("bare", "magistral-mlx was not found there"),
        ("early", f"another version of magistral-mlx: install the same checkout.*{__version__}"),
        ("odd", "something else"),
    ],
)
def test_what_ssh_says_becomes_advice(fake_ssh, user: str, expected: str):  # noqa: F811
    connection = Connection(Host(f"{user}@{HERE}"), 1, lambda line: None)
    try:
        with pytest.raises(MachineError, match=expected) as refused:
            connection.ask("facts", models=[])
        assert str(refused.value).count("\n") == 0
    finally:
        connection.close()


def test_without_ssh_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="ssh is not installed here"):
        connect([Host("mac2.local")], lambda rank, line: None)


def test_machines_that_differ_are_refused_all_at_once(fake_ssh):  # noqa: F811
    hosts = [Host("localhost"), *(Host(f"{user}@{HERE}") for user in ("old", "other", "empty"))]
    connections = connect(hosts, lambda rank, line: None)
    try:
        found = gather_facts(connections, [("demo", str(demo_dir()))])
        with pytest.raises(MachineError) as refused:
            check_alike(connections, found)
        alike = check_alike(connections[:1], found[:1])
        assert alike[0]["version"] == __version__
    finally:
        close_all(connections)
    words = str(refused.value)
    assert f"has magistral-mlx 0.0.9, and this machine has {__version__}" in words
    assert f"{__version__}: install the same checkout there, as the README says." in words
    assert f"--with mlx=={version('mlx')} .` in the checkout there" in words
    assert "has other weights" in words and "empty" not in words
    assert f"rsync -a {demo_dir()}/ other@{HERE}:{demo_dir()}/" in words
    assert "\n" not in words


def test_a_ring_is_measured_and_listens_where_it_was_told(fake_ssh):  # noqa: F811
    connections = connect([Host("localhost"), Host(f"me@{HERE}")], lambda rank, line: None)
    try:
        facts = check_alike(connections, gather_facts(connections))
        links = measure_ring(connections, facts, 0.01)
    finally:
        close_all(connections)
    assert [link.address for link in links] == [HERE, HERE]
    assert len({link.port for link in links}) == 2
    assert all(0 < one.link.latency < 10 and one.link.bandwidth > 0 for one in links)
    assert ring_of(links) == [[f"{HERE}:{links[1].port}"], [f"{HERE}:{links[0].port}"]]


def test_a_listener_answers_only_who_knows_the_token():
    listener = LinkListener(HERE)
    try:
        with pytest.raises((EOFError, OSError)):
            measure_link(HERE, listener.port, "0" * 32, 0.01)
        assert measure_link(HERE, listener.port, listener.token, 0.01).bandwidth > 0
    finally:
        listener.close()
    with pytest.raises(ConnectionRefusedError):
        measure_link(HERE, listener.port, listener.token, 0.01)
    with pytest.raises(OSError, match="assign"):
        LinkListener("192.0.2.1")


def test_an_agent_survives_what_cannot_be_done():
    asked = [
        {"do": "listen", "with": {"address": "192.0.2.1", "port": 0}},
        {"do": "measure", "with": {"address": HERE, "port": 1, "token": "", "seconds": 0.01}},
        {"do": "listen", "with": {"address": HERE, "port": 0}},
        {"do": "close", "with": {}},
    ]
    answers = io.StringIO()
    lines = io.StringIO("".join(json.dumps(one) + "\n" for one in asked) + "no JSON\n")
    assert run_agent(lines, answers) == 0
    told = [json.loads(line)[ANSWER] for line in answers.getvalue().splitlines()]
    assert ["error" in one for one in told] == [True, True, False, False]


def test_doctor_shows_a_table_and_what_is_wrong(fake_ssh):  # noqa: F811
    told = json.loads(run("doctor", "--machines", f"localhost,locked@{HERE}", "--json").stdout)
    assert not told["good"] and "ssh-copy-id" in told["problem"]
    assert [row["reachable"] for row in told["machines"]] == [True, False]
    assert told["machines"][0]["memory"] > 0
    assert "leave --check" in run("doctor", "--machines", "localhost,localhost", "--check").refusal


def test_links_of_a_mac_are_told_apart():
    ports = hardware_ports(
        "\nHardware Port: Ethernet\nDevice: en0\nEthernet Address: 00:00\n\n"
        "Hardware Port: Wi-Fi\nDevice: en1\nEthernet Address: 00:01\n\n"
        "Hardware Port: Thunderbolt Bridge\nDevice: bridge0\nEthernet Address: 00:02\n\n"
        "Hardware Port: Thunderbolt 2\nDevice: en3\nEthernet Address: 00:03\n\n"
        "Hardware Port: Thunderbolt Ethernet Slot 1\nDevice: en7\nEthernet Address: 00:04\n"
    )
    assert {device: link_kind(port) for device, port in ports.items()} == {
        "en0": "ethernet",
        "en1": "wifi",
        "bridge0": "thunderbolt",
        "en3": "thunderbolt",
        "en7": "ethernet",
    }
    listed = (
        "    device          \t   node GUID\n    ------          \t----------------\n"
        "    rdma_en2        \t4ee4b0b5b0d2a1c3\n    rdma_en3        \t4ee4b0b5b0d2a1c4\n"
    )
    assert rdma_names(listed) == ["rdma_en2", "rdma_en3"]
    assert rdma_names("") == []


@pytest.mark.parametrize(
    ("latency", "split"),
    [(50e-6, "tensor"), (300e-6, "tensor"), (3e-3, "pipeline"), (20e-3, "pipeline")],
)
def test_the_link_decides_the_split(latency: float, split: str):
    sizes = quantized_sizes(MAGISTRAL_SMALL, Quantization(), 2)
    model = SplitModel(NAME, MAGISTRAL_SMALL, sizes)
    machines = [named_machine("M4 32GB")] * 2
    assert make_split_plan(model, machines, GPU, latency=latency).kind == split
    assert make_split_plan(model, machines, GPU, split="tensor", latency=1.0).kind == "tensor"


def test_the_ring_of_three_begins_with_the_last_link():
    links = [RingLink(f"10.0.0.{n}", 5000 + n, None, LinkSpeed(1e-3, 1e9)) for n in (2, 3, 1)]
    assert ring_of(links) == [["10.0.0.1:5001"], ["10.0.0.2:5002"], ["10.0.0.3:5003"]]
