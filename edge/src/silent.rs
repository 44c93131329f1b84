//! Which kinds of events an agent of a config never sends: a rule that needs them is blind on its host.
//!
//! Only what a config turns off as a whole. Filters within a kind (prefixes of opens, limits a second) and hooks that a kernel refuses are
//! not told here; the latter stand in the column `hooks` of `agents`.

use weir_config::Collector;
use weir_schema::Kind;

use crate::probe::call_table::{CallGroup, CallName};

/// The kinds, each with the key of the config that turns it off.
pub fn silent_kinds(collector: &Collector) -> Vec<(Kind, &'static str)> {
    let Collector { ebpf, exec, network, file, cgroup, calls, udp, .. } = collector;
    let mut silent = Vec::new();
    let mut off = |is_off: bool, key: &'static str, kinds: &[Kind]| {
        silent.extend(kinds.iter().filter(|_| is_off).map(|kind| (*kind, key)));
    };
    let of_calls = |is_on: fn(CallGroup) -> bool| {
        let told = |kind: &Kind| CallName::ALL.iter().any(|call| call.kind() == *kind && is_on(call.group()));
        let called = |kind: &Kind| CallName::ALL.iter().any(|call| call.kind() == *kind);
        Kind::ALL.iter().copied().filter(|kind| called(kind) && !told(kind)).collect::<Vec<_>>()
    };
    if !ebpf {
        // Polls of procfs see processes, TCP sockets and cgroups.
        off(true, "collector.ebpf", &[Kind::Fork, Kind::Open, Kind::Send, Kind::Dns]);
        off(true, "collector.ebpf", &of_calls(|_| false));
        return silent;
    }
    off(!exec, "collector.exec", &[Kind::Exec, Kind::Exit, Kind::Fork]);
    off(!network, "collector.network", &[Kind::Connect, Kind::Accept, Kind::Close, Kind::Listen]);
    off(!file, "collector.file", &[Kind::Open]);
    off(!cgroup, "collector.cgroup", &[Kind::ContainerStart, Kind::ContainerStop]);
    off(!udp.sends, "collector.udp.sends", &[Kind::Send]);
    off(!udp.dns, "collector.udp.dns", &[Kind::Dns]);
    off(!calls.security, "collector.calls.security", &of_calls(|group| group != CallGroup::Security));
    off(!calls.changes, "collector.calls.changes", &of_calls(|group| group != CallGroup::Change));
    off(!calls.memory, "collector.calls.memory", &of_calls(|group| group != CallGroup::Memory));
    silent
}

#[cfg(test)]
mod tests {
    use weir_config::{CallFilter, UdpFilter};

    use super::*;

    #[test]
    fn what_is_turned_off_is_named_with_its_key() {
        assert_eq!(silent_kinds(&Collector::default()), []);
        let udp = UdpFilter { dns: false, ..UdpFilter::default() };
        let calls = CallFilter { security: false, ..CallFilter::default() };
        let silent = silent_kinds(&Collector { exec: false, udp, calls, ..Collector::default() });
        let key = |kind| silent.iter().find(|(silent, _)| *silent == kind).map(|(_, key)| *key);
        assert_eq!((key(Kind::Exec), key(Kind::Dns)), (Some("collector.exec"), Some("collector.udp.dns")));
        assert_eq!((key(Kind::Ptrace), key(Kind::Chmod), key(Kind::Connect)), (Some("collector.calls.security"), None, None));
        let polls = silent_kinds(&Collector { ebpf: false, ..Collector::default() });
        let has = |kind| polls.iter().any(|(silent, _)| *silent == kind);
        assert!(has(Kind::Fork) && has(Kind::Ptrace) && has(Kind::Chmod) && has(Kind::Mprotect));
        assert!(!has(Kind::Exec) && !has(Kind::Connect) && !has(Kind::ContainerStart));
    }
}
