//! Walks packets through iptables rules as text.

use std::net::Ipv4Addr;

use netlink::IpNet;

use super::{Packet, Ways, is_local};
use crate::iptables::{JUMPS, Table, Text};

#[derive(Debug, Clone)]
enum State {
    Goes(Packet),
    To(Packet, Ipv4Addr, u16),
    Ended(&'static str),
}

pub fn ways(text: &Text, packet: Packet) -> Ways {
    let here = packet.is_from_here();
    let mut found = Ways::new();
    let mut note = |state: State| match state {
        State::Ended(verdict) => found.insert(verdict.to_owned()),
        State::Goes(_) => found.insert("pass".to_owned()),
        State::To(packet, address, port) => {
            let masquerade = if packet.mark & 0x4000 != 0 { " masq" } else { "" };
            found.insert(format!("{address}:{port}{masquerade}"))
        }
    };
    for state in built_in(&text.nat, "nat", if here { "OUTPUT" } else { "PREROUTING" }, packet) {
        let (now, target) = match state {
            State::Goes(packet) => (packet, None),
            State::To(packet, address, port) => {
                (Packet { destination: address, port, ..packet }, Some((address, port)))
            }
            State::Ended(_) => unreachable!("nat rules do not end packets"),
        };
        let chains: &[&str] = match (here, is_local(now.destination)) {
            (true, true) => &["OUTPUT", "INPUT"],
            (true, false) => &["OUTPUT"],
            (false, true) => &["INPUT"],
            (false, false) => &["FORWARD"],
        };
        let mut ended = None;
        for chain in chains {
            for state in built_in(&text.filter, "filter", chain, now) {
                if let State::Ended(verdict) = state {
                    ended = Some(verdict);
                }
            }
        }
        note(match (ended, target) {
            (Some(verdict), _) => State::Ended(verdict),
            (None, Some((address, port))) => State::To(now, address, port),
            (None, None) => State::Goes(now),
        });
    }
    found
}

fn built_in(table: &Table, name: &str, chain: &str, packet: Packet) -> Vec<State> {
    let rules: Vec<String> = JUMPS
        .iter()
        .filter(|(of, from, _)| *of == name && *from == chain)
        .map(|(_, _, rule)| (*rule).to_owned())
        .collect();
    let (mut ended, going) = walk(table, &rules, packet);
    ended.extend(going.into_iter().map(State::Goes));
    ended
}

fn walk(table: &Table, rules: &[String], packet: Packet) -> (Vec<State>, Vec<Packet>) {
    let mut ended = Vec::new();
    let mut going = vec![packet];
    for rule in rules {
        let words = words(rule);
        let mut next = Vec::new();
        for packet in going {
            match matches(&words, &packet) {
                Match::No => next.push(packet),
                Match::Maybe => {
                    next.push(packet);
                    act(table, &words, packet, &mut ended, &mut next);
                }
                Match::Yes => act(table, &words, packet, &mut ended, &mut next),
            }
        }
        going = next;
    }
    (ended, going)
}

fn words(rule: &str) -> Vec<String> {
    let parts = rule.split('"').enumerate();
    parts
        .flat_map(|(at, part)| match at % 2 {
            1 => vec![part.to_owned()],
            _ => part.split_whitespace().map(str::to_owned).collect(),
        })
        .collect()
}

enum Match {
    Yes,
    No,
    Maybe,
}

fn matches(words: &[String], packet: &Packet) -> Match {
    let mut maybe = false;
    let mut negated = false;
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let holds = match word {
            "!" => {
                negated = true;
                continue;
            }
            "-m" | "--comment" | "--name" | "--seconds" | "--to-destination" | "--or-mark" | "--xor-mark" => {
                value();
                true
            }
            "-p" => value() == packet.protocol.name(),
            "-s" => net(value()).contains(packet.source.into()),
            "-d" => net(value()).contains(packet.destination.into()),
            "--dport" => value().parse() == Ok(packet.port),
            "--dst-type" => value() == "LOCAL" && is_local(packet.destination),
            "--src-type" => value() == "LOCAL" && is_local(packet.source),
            "--ctstate" => value().split(',').any(|state| state == "NEW"),
            "--mark" => value() == "0x4000/0x4000" && packet.mark & 0x4000 != 0,
            "--mode" => {
                value();
                true
            }
            "--probability" => {
                value();
                maybe = true;
                true
            }
            "--rcheck" => false,
            "--set" | "--reap" | "--random-fully" => true,
            "-j" => break,
            other => panic!("the walk does not know {other}"),
        };
        if holds == std::mem::take(&mut negated) {
            return Match::No;
        }
    }
    if maybe { Match::Maybe } else { Match::Yes }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn act(table: &Table, words: &[String], mut packet: Packet, ended: &mut Vec<State>, next: &mut Vec<Packet>) {
    let jump = words.iter().position(|word| word == "-j").unwrap();
    match words[jump + 1].as_str() {
        "DROP" => ended.push(State::Ended("drop")),
        "REJECT" => ended.push(State::Ended("reject")),
        "ACCEPT" => ended.push(State::Goes(packet)),
        "RETURN" => {}
        "MARK" => {
            packet.mark |= 0x4000;
            next.push(packet);
        }
        "DNAT" => {
            let (address, port) = words.last().unwrap().split_once(':').unwrap();
            ended.push(State::To(packet, address.parse().unwrap(), port.parse().unwrap()));
        }
        chain => {
            let rules = table.get(chain).unwrap_or_else(|| panic!("no chain {chain}"));
            let (stopped, returned) = walk(table, rules, packet);
            ended.extend(stopped);
            next.extend(returned);
        }
    }
}
