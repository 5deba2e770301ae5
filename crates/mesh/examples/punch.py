#!/usr/bin/env python3
"""Punches holes in the NAT laboratory with `lab_node` and prints a table.

    punch.py LAB_NODE [--tries N] [--rtt MS] [--cell NAME]...

Needs root (see tests/netlab/README.md). Every try starts both nodes afresh on new ports.
"""
import argparse, json, pathlib, statistics, subprocess, sys, tempfile, time

NETLAB = pathlib.Path(__file__).resolve().parents[3] / "tests" / "netlab" / "netlab"
KINDS = {
    "cone": '[gateways.{g}]\nnat = "port-restricted"\n',
    "remap": '[gateways.{g}]\nnat = "port-restricted"\npreserve_ports = false\n',
    "symmetric": '[gateways.{g}]\nnat = "symmetric"\n',
    "restricted": '[gateways.{g}]\nnat = "address-restricted"\n',
    "firewall": '[gateways.{g}]\nnat = "firewall"\n',
    "noudp": '[gateways.{g}]\nnat = "port-restricted"\nblock_udp = true\n',
    "cgnat": '[gateways.isp{g}]\nnat = "port-restricted"\nlan4 = "100.64.0.0/24"\n'
             '[gateways.{g}]\nnat = "port-restricted"\nbehind = "isp{g}"\n',
}
CELLS = {
    "cone x cone": ("cone", "cone"),
    "cgnat x firewall": ("cgnat", "firewall"),
    "remap x remap": ("remap", "remap"),
    "cone x symmetric": ("cone", "symmetric"),
    "restricted x symmetric": ("restricted", "symmetric"),
    "noudp x cone": ("noudp", "cone"),
    "symmetric x symmetric": ("symmetric", "symmetric"),
}


def netlab(*args, **kwargs):
    return subprocess.run([str(NETLAB), *args], check=True, capture_output=True, text=True, **kwargs).stdout


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def wait_for(path, what, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and any(line["what"] == what for line in lines(path)):
            return True
        time.sleep(0.05)
    return False


def cell(binary, name, tries, rtt):
    left, right = CELLS[name]
    topology = KINDS[left].format(g="home") + KINDS[right].format(g="office") + (
        '[hosts.relay]\n[hosts.alice]\nbehind = "home"\n[hosts.bob]\nbehind = "office"\n')
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(topology)
        file.flush()
        lab = netlab("up", file.name).split()[0]
    try:
        state = json.loads(netlab("list", "--json"))
        mine = next(one for one in state if one["lab"] == lab)
        relay_ip = mine["hosts"]["relay"]["ipv4"]
        logs = pathlib.Path(mine["dir"])
        if rtt:
            for host in ("alice", "bob"):
                netlab("--lab", lab, "latency", host, "any", f"{rtt / 2}ms")
        direct, punched, connected, replies = 0, [], [], []
        quic, tcp = f"/ip4/{relay_ip}/udp/4001/quic-v1", f"/ip4/{relay_ip}/tcp/4001"
        netlab("--lab", lab, "start", "relay", "--", binary, "seed=1", "role=relay", "port=4001", f"external={quic}",
               f"external={tcp}", *[f"member={seed}" for seed in range(2, 250)], "keep=3600")
        for number in range(tries):
            alice, bob, port = 2 + 2 * number, 3 + 2 * number, 5000 + number
            service = f"t{number}"
            netlab("--lab", lab, "start", "bob", "--service", service, "--", binary, f"seed={bob}", f"port={port}",
                   f"reserve=1@{quic}", f"reserve=1@{tcp}", f"member={alice}", "member=1", "keep=3600")
            log = logs / f"bob.{service}.log"
            if not wait_for(log, "reserved"):
                print(f"  {name}: no reservation", log.read_text(), file=sys.stderr)
                continue
            # The relay's other transport, and what it sees of us, take a moment more.
            time.sleep(0.6 + 6 * rtt / 1000)
            run = subprocess.run([str(NETLAB), "--lab", lab, "exec", "alice", "--", binary, f"seed={alice}", f"port={port}",
                                  f"member={bob}", f"dial={bob}", f"via=1@{quic}", f"via=1@{tcp}", "wait=12"],
                                 capture_output=True, text=True)
            said = {}
            for line in run.stdout.splitlines():
                if line.startswith("{"):
                    line = json.loads(line)
                    said.setdefault(line["what"], line)
            last = said.get("last reply", {"detail": "none"})["detail"]
            direct += last.startswith("direct")
            for what, values in (("upgraded", punched), ("connected", connected), ("first reply", replies)):
                if what in said:
                    values.append(said[what]["ms"])
            if number == 0 or not last.startswith("direct"):
                print(f"  {name} #{number}: {last}", file=sys.stderr)
                if not last.startswith("direct"):
                    print(run.stdout[:4000], file=sys.stderr)
            netlab("--lab", lab, "kill", "bob")
        middle = lambda values: f"{statistics.median(values):.0f}" if values else "-"
        print(f"| {name} | {direct}/{tries} | {middle(connected)} | {middle(replies)} | {middle(punched)} |", flush=True)
    finally:
        netlab("--lab", lab, "down")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--rtt", type=float, default=0)
    parser.add_argument("--cell", action="append")
    options = parser.parse_args()
    binary = str(pathlib.Path(options.binary).resolve())
    print("| cell | direct | connected ms | first reply ms | punched ms |\n|---|---|---|---|---|", flush=True)
    for name in options.cell or CELLS:
        cell(binary, name, options.tries, options.rtt)


main()
