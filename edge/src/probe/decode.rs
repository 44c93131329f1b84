//! Bytes of the ring to `RawEvent`. The layout is `bpf/records.h`, read by offset, little-endian: change both in one commit.
//!
//! Promise: no input panics and none reads outside its bytes. Lengths inside a record are checked against the record; text is
//! kept as bytes where the kernel allows any byte (paths, arguments) and made UTF-8 with losses where it is a name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::call::call;
use super::raw::{Cgroup, CgroupOp, Dns, Exec, Exit, Fork, Open, RawEvent, Role, Tcp, TcpOp, Udp, What, Who};

/// Why a record is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ends inside a field.
    #[error("a kernel record of {len} bytes ends inside a field at {at}")]
    Short {
        /// Bytes there are.
        len: usize,
        /// Where the field begins.
        at: usize,
    },
    /// The record says another size than it has.
    #[error("a kernel record of {len} bytes says that it has {said}")]
    Size {
        /// Bytes there are.
        len: usize,
        /// Bytes it says.
        said: u32,
    },
    /// A kind that this agent does not know.
    #[error("unknown kind {0} of kernel record")]
    Kind(u32),
    /// A field holds what no program of ours writes.
    #[error("field {field} of a kernel record holds {value}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u32,
    },
}

/// One record of the ring.
pub fn decode(bytes: &[u8]) -> Result<RawEvent, DecodeError> {
    let record = Record { bytes };
    let said = record.u32(4)?;
    if said as usize != bytes.len() {
        return Err(DecodeError::Size { len: bytes.len(), said });
    }
    let what = match record.u32(0)? {
        K_EXEC => What::Exec(Box::new(exec(record)?)),
        K_FORK => What::Fork(Fork {
            child_start_ns: record.u64(BODY)?,
            child_pid: record.u32(BODY + 8)?,
            child_ppid: record.u32(BODY + 12)?,
        }),
        K_EXIT => What::Exit(exit(record.u32(BODY)?)),
        K_TCP => What::Tcp(Box::new(tcp(record)?)),
        K_OPEN => What::Open(open(record)?),
        K_CGROUP => What::Cgroup(cgroup(record)?),
        K_UDP => What::Udp(udp(record)?),
        K_DNS => What::Dns(Box::new(dns(record)?)),
        K_CALL | K_CHANGE => What::Call(Box::new(call(record)?)),
        kind => return Err(DecodeError::Kind(kind)),
    };
    let who = who(record)?;
    Ok(RawEvent { boot_ns: record.u64(8)?, who: (who.pid != 0).then_some(who), what })
}

/// Rows of the task iterator: each is a head alone.
pub(super) fn tasks(bytes: &[u8]) -> Result<Vec<Who>, DecodeError> {
    bytes.chunks(BODY).map(|row| who(Record { bytes: row })).collect()
}

/// Rows of the socket iterator: TCP records of one size.
pub(super) fn sockets(bytes: &[u8]) -> Result<Vec<RawEvent>, DecodeError> {
    bytes.chunks(TCP_BYTES).map(decode).collect()
}

fn who(record: Record<'_>) -> Result<Who, DecodeError> {
    Ok(Who {
        start_ns: record.u64(16)?,
        parent_start_ns: record.u64(24)?,
        cgroup_v2: record.u64(32)?,
        cgroup_v1: record.u64(40)?,
        pid: record.u32(48)?,
        tid: record.u32(52)?,
        ppid: record.u32(56)?,
        uid: record.u32(60)?,
        ns_pid: record.u32(64)?,
        mnt_ns: record.u32(68)?,
        pid_ns: record.u32(72)?,
        net_ns: record.u32(76)?,
        comm: name(record.slice(80, 16)?),
    })
}

fn exec(record: Record<'_>) -> Result<Exec, DecodeError> {
    let flags = record.u32(BODY + 24)?;
    let mut at = EXEC_DATA;
    let mut part = |field: usize| -> Result<&[u8], DecodeError> {
        let len = usize::from(record.u16(field)?);
        at += len;
        record.slice(at - len, len)
    };
    let (filename, exe, cwd, args) = (part(BODY + 28)?, part(BODY + 30)?, part(BODY + 32)?, part(BODY + 34)?);
    Ok(Exec {
        filename: filename.to_vec(),
        exe: path(exe, flags & EXE_CUT != 0),
        cwd: path(cwd, flags & CWD_CUT != 0),
        args: arguments(args),
        args_truncated: flags & ARGS_CUT != 0,
        exe_truncated: flags & EXE_CUT != 0,
        cwd_truncated: flags & CWD_CUT != 0,
        exe_unlinked: flags & (EXE_UNLINKED | EXE_BARE) != 0,
        capabilities: record.u64(BODY)?,
        euid: record.u32(BODY + 8)?,
        gid: record.u32(BODY + 12)?,
        login_uid: Some(record.u32(BODY + 16)?).filter(|uid| flags & HAS_LOGIN_UID != 0 && *uid != u32::MAX),
        session_id: record.u32(BODY + 20)?,
        tty: name(record.slice(BODY + 40, 16)?),
    })
}

/// argv lies as the kernel keeps it: every argument ends with a NUL, an empty one is a NUL alone, a cut one has none.
fn arguments(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut args: Vec<Vec<u8>> = bytes.split(|b| *b == 0).map(<[u8]>::to_vec).collect();
    if bytes.last().is_none_or(|b| *b == 0) {
        args.pop();
    }
    args
}

fn exit(code: u32) -> Exit {
    Exit { code: (code >> 8) as u8, signal: (code & 0x7f) as u8, core_dumped: code & 0x80 != 0 }
}

fn tcp(record: Record<'_>) -> Result<Tcp, DecodeError> {
    let op = match record.u32(BODY + 96)? {
        1 => TcpOp::Connect,
        2 => TcpOp::Fail,
        3 => TcpOp::Accept,
        4 => TcpOp::Close,
        5 => TcpOp::Listen,
        6 => TcpOp::Seen,
        value => return Err(DecodeError::Field { field: "op", value }),
    };
    let role = match record.u8(BODY + 34)? {
        0 => None,
        1 => Some(Role::Client),
        2 => Some(Role::Server),
        3 => Some(Role::Listener),
        value => return Err(DecodeError::Field { field: "role", value: value.into() }),
    };
    let flags = record.u8(BODY + 35)?;
    let isns = flags & HAS_ISNS != 0;
    let family = record.u16(BODY + 28)?;
    Ok(Tcp {
        op,
        role,
        local: (address(family, record.slice(BODY + 36, 16)?)?, record.u16(BODY + 30)?),
        peer: (address(family, record.slice(BODY + 52, 16)?)?, record.u16(BODY + 32)?),
        cookie: Some(record.u64(BODY)?).filter(|c| *c != 0),
        net_ns: record.u32(BODY + 24)?,
        isn_local: Some(record.u32(BODY + 16)?).filter(|_| isns),
        isn_peer: Some(record.u32(BODY + 20)?).filter(|_| isns),
        opened_ns: Some(record.u64(BODY + 8)?).filter(|t| *t != 0),
        bytes_sent: record.u64(BODY + 72)?,
        bytes_received: record.u64(BODY + 80)?,
        inode: Some(record.u64(BODY + 88)?).filter(|i| *i != 0),
        errno: Some(record.u32(BODY + 100)?).filter(|e| *e != 0),
        srtt_us: record.u32(BODY + 104)?,
        retransmits: record.u32(BODY + 108)?,
        unaccepted: op == TcpOp::Close && role == Some(Role::Server) && flags & ACCEPTED == 0,
    })
}

/// Address and port of this end, of the other, and the cookie: `struct conn`.
type Ends = ((IpAddr, u16), (IpAddr, u16), Option<u64>);

fn ends(record: Record<'_>) -> Result<Ends, DecodeError> {
    let family = record.u16(BODY + 28)?;
    Ok((
        (address(family, record.slice(BODY + 36, 16)?)?, record.u16(BODY + 30)?),
        (address(family, record.slice(BODY + 52, 16)?)?, record.u16(BODY + 32)?),
        Some(record.u64(BODY)?).filter(|c| *c != 0),
    ))
}

fn udp(record: Record<'_>) -> Result<Udp, DecodeError> {
    let (local, peer, cookie) = ends(record)?;
    Ok(Udp { local, peer, cookie, bytes: record.u64(BODY + 72)?, datagrams: record.u64(BODY + 80)? })
}

fn dns(record: Record<'_>) -> Result<Dns, DecodeError> {
    let (local, peer, cookie) = ends(record)?;
    let payload = record.slice(DNS_PAYLOAD, record.u32(BODY + 76)? as usize)?.to_vec();
    Ok(Dns { local, peer, cookie, inward: record.u32(BODY + 72)? != 0, payload, whole: record.u32(BODY + 80)? })
}

pub(super) fn address(family: u16, bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let mut six = [0; 16];
    six.copy_from_slice(bytes);
    match family {
        AF_INET => Ok(Ipv4Addr::new(six[0], six[1], six[2], six[3]).into()),
        AF_INET6 => Ok(IpAddr::from(Ipv6Addr::from(six)).to_canonical()),
        value => Err(DecodeError::Field { field: "family", value: value.into() }),
    }
}

fn open(record: Record<'_>) -> Result<Open, DecodeError> {
    let cut = record.u32(BODY + 16)? & 1 != 0;
    let len = record.u32(BODY + 20)? as usize;
    Ok(Open {
        inode: record.u64(BODY)?,
        flags: record.u32(BODY + 8)?,
        mode: record.u32(BODY + 12)?,
        truncated: cut,
        path: path(record.slice(OPEN_PATH, len)?, cut),
    })
}

fn cgroup(record: Record<'_>) -> Result<Cgroup, DecodeError> {
    let op = match record.u32(BODY + 16)? {
        1 => CgroupOp::Mkdir,
        2 => CgroupOp::Rmdir,
        3 => CgroupOp::Attach,
        value => return Err(DecodeError::Field { field: "op", value }),
    };
    let task = (record.u32(BODY + 24)?, record.u64(BODY + 8)?);
    let len = record.u32(BODY + 28)? as usize;
    Ok(Cgroup {
        op,
        id: record.u64(BODY)?,
        hierarchy: record.u32(BODY + 20)?,
        path: record.slice(CGROUP_PATH, len)?.to_vec(),
        truncated: record.u32(BODY + 32)? != 0,
        task: (op == CgroupOp::Attach).then_some(task),
    })
}

/// A path whose front is missing says so to a reader as well.
pub(super) fn path(bytes: &[u8], cut: bool) -> Vec<u8> {
    if cut { [b"...", bytes].concat() } else { bytes.to_vec() }
}

pub(super) fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn slice(self, at: usize, len: usize) -> Result<&'a [u8], DecodeError> {
        let short = DecodeError::Short { len: self.bytes.len(), at };
        self.bytes.get(at..at.checked_add(len).ok_or(short)?).ok_or(short)
    }

    fn array<const N: usize>(self, at: usize) -> Result<[u8; N], DecodeError> {
        let short = DecodeError::Short { len: self.bytes.len(), at };
        self.bytes.get(at..).and_then(<[u8]>::first_chunk).copied().ok_or(short)
    }

    pub(super) fn u8(self, at: usize) -> Result<u8, DecodeError> {
        self.array::<1>(at).map(|b| b[0])
    }

    pub(super) fn u16(self, at: usize) -> Result<u16, DecodeError> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Result<u32, DecodeError> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Result<u64, DecodeError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

pub(super) const K_EXEC: u32 = 1;
pub(super) const K_FORK: u32 = 2;
pub(super) const K_EXIT: u32 = 3;
pub(super) const K_TCP: u32 = 4;
pub(super) const K_OPEN: u32 = 5;
pub(super) const K_CGROUP: u32 = 6;
pub(super) const K_CALL: u32 = 8;
pub(super) const K_CHANGE: u32 = 9;
/// Of the counters only: calls and changes beyond a process's allowance.
pub(super) const K_CALL_LIMITED: u32 = 10;
pub(super) const K_CHANGE_LIMITED: u32 = 11;
pub(super) const K_UDP: u32 = 12;
pub(super) const K_DNS: u32 = 13;
/// Of the counters only, as above.
pub(super) const K_UDP_LIMITED: u32 = 14;
pub(super) const K_DNS_LIMITED: u32 = 15;

/// Where a record's own fields begin: after `struct head`.
pub(super) const BODY: usize = 96;
const EXEC_DATA: usize = BODY + 56;
const TCP_BYTES: usize = BODY + 112;
const OPEN_PATH: usize = BODY + 24;
const CGROUP_PATH: usize = BODY + 40;
const DNS_PAYLOAD: usize = BODY + 88;

const EXE_UNLINKED: u32 = 1;
const ARGS_CUT: u32 = 2;
const EXE_CUT: u32 = 4;
const CWD_CUT: u32 = 8;
const EXE_BARE: u32 = 16;
const HAS_LOGIN_UID: u32 = 32;
const HAS_ISNS: u8 = 1;
const ACCEPTED: u8 = 2;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A record as the kernel writes it: the head of process 42, then `body`.
    pub(in super::super) fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend((BODY as u32 + body.len() as u32).to_le_bytes());
        for word in [7u64, 1000, 900, 1, 55] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [42u32, 43, 41, 1001, 1, 21, 22, 23] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(b"echo\0garbage\0\0\0\0");
        bytes.extend(body);
        bytes
    }

    fn exec_body(flags: u32, parts: [&[u8]; 4]) -> Vec<u8> {
        let mut body = 0xffu64.to_le_bytes().to_vec();
        for word in [5u32, 6, 1001, 40, flags] {
            body.extend(word.to_le_bytes());
        }
        for part in parts {
            body.extend((part.len() as u16).to_le_bytes());
        }
        body.extend([0; 4]);
        body.extend(b"pts0\0\0\0\0\0\0\0\0\0\0\0\0");
        body.extend(parts.concat());
        body
    }

    #[test]
    fn an_exec_is_read_field_by_field() {
        let body = exec_body(HAS_LOGIN_UID | EXE_UNLINKED, [b"/bin/echo", b"/usr/bin/echo", b"/tmp", b"echo\0two words\0\0"]);
        let event = decode(&record(K_EXEC, &body)).unwrap();
        let who = event.who.unwrap();
        assert_eq!((event.boot_ns, who.pid, who.tid, who.ppid, who.uid, who.ns_pid), (7, 42, 43, 41, 1001, 1));
        assert_eq!((who.start_ns, who.parent_start_ns, who.cgroup_v2, who.cgroup_v1), (1000, 900, 1, 55));
        assert_eq!((who.mnt_ns, who.pid_ns, who.net_ns, who.comm.as_str()), (21, 22, 23, "echo"));
        let What::Exec(exec) = event.what else { panic!("an exec") };
        assert_eq!(
            (exec.filename.as_slice(), exec.exe.as_slice(), exec.cwd.as_slice()),
            (&b"/bin/echo"[..], &b"/usr/bin/echo"[..], &b"/tmp"[..])
        );
        assert_eq!(exec.args, [&b"echo"[..], b"two words", b""]);
        assert_eq!((exec.capabilities, exec.euid, exec.gid, exec.login_uid, exec.session_id), (0xff, 5, 6, Some(1001), 40));
        assert_eq!((exec.tty.as_str(), exec.exe_unlinked, exec.args_truncated), ("pts0", true, false));
    }

    #[test]
    fn datagrams_are_read_field_by_field() {
        let conn = |family: u16| {
            let mut conn = 77u64.to_le_bytes().to_vec();
            conn.extend([0; 20]);
            for word in [family, 40_000, 53] {
                conn.extend(word.to_le_bytes());
            }
            conn.extend([1, 0, 10, 0, 0, 1]);
            conn.extend([0; 12]);
            conn.extend([10, 0, 0, 53]);
            conn.extend([0; 16]);
            conn
        };
        let (local, peer) = ((IpAddr::from([10, 0, 0, 1]), 40_000), (IpAddr::from([10, 0, 0, 53]), 53));
        let udp = [conn(AF_INET), 300u64.to_le_bytes().to_vec(), 2u64.to_le_bytes().to_vec()].concat();
        let expected = Udp { local, peer, cookie: Some(77), bytes: 300, datagrams: 2 };
        assert_eq!(decode(&record(K_UDP, &udp)).unwrap().what, What::Udp(expected));
        let mut dns = conn(AF_INET);
        for word in [1u32, 5, 1400, 0] {
            dns.extend(word.to_le_bytes());
        }
        let short = decode(&record(K_DNS, &[&dns[..], b"hell"].concat()));
        assert!(matches!(short, Err(DecodeError::Short { .. })));
        dns.extend(b"hello, and what the ring held before");
        let expected = Dns { local, peer, cookie: Some(77), inward: true, payload: b"hello".to_vec(), whole: 1400 };
        assert_eq!(decode(&record(K_DNS, &dns)).unwrap().what, What::Dns(Box::new(expected)));
    }

    #[test]
    fn arguments_keep_empty_and_cut_entries() {
        let check = |bytes: &[u8], expected: &[&[u8]]| assert_eq!(arguments(bytes), expected);
        check(b"", &[]);
        check(b"\0", &[b""]);
        check(b"a\0\0b\0", &[b"a", b"", b"b"]);
        check(b"a\0cut", &[b"a", b"cut"]);
    }

    #[test]
    fn a_mapped_address_is_shown_as_ipv4() {
        let six: Ipv6Addr = "::ffff:10.1.2.3".parse().unwrap();
        assert_eq!(address(AF_INET6, &six.octets()).unwrap(), IpAddr::from([10, 1, 2, 3]));
        assert_eq!(address(7, &six.octets()), Err(DecodeError::Field { field: "family", value: 7 }));
    }

    #[test]
    fn a_record_of_nobody_has_no_who() {
        let mut bytes = record(K_EXIT, &[9, 0, 0, 0, 0, 0, 0, 0]);
        bytes[48..52].fill(0);
        let event = decode(&bytes).unwrap();
        assert_eq!((event.who, event.what), (None, What::Exit(Exit { code: 0, signal: 9, core_dumped: false })));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let exit = record(K_EXIT, &[0; 8]);
        assert_eq!(decode(&[]), Err(DecodeError::Short { len: 0, at: 4 }));
        assert_eq!(decode(&exit[..100]), Err(DecodeError::Size { len: 100, said: 104 }));
        assert_eq!(decode(&record(99, &[0; 8])), Err(DecodeError::Kind(99)));
        assert_eq!(
            decode(&record(K_EXEC, &exec_body(0, [b"", b"", b"", b""])[..40])),
            Err(DecodeError::Short { len: 136, at: 152 })
        );
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(kind in 0u32..16, body in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..700) {
            let bytes = record(kind, &body);
            let _ = decode(&bytes);
            let _ = decode(&bytes[..cut.min(bytes.len())]);
            let _ = decode(&body);
            let _ = tasks(&body);
            let _ = sockets(&body);
        }

        #[test]
        fn hostile_lengths_never_panic(lens in prop::array::uniform4(any::<u16>()), tail in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut body = exec_body(0, [b"", b"", b"", b""]);
            for (i, len) in lens.iter().enumerate() {
                body[28 + 2 * i..30 + 2 * i].copy_from_slice(&len.to_le_bytes());
            }
            body.extend(tail);
            let _ = decode(&record(K_EXEC, &body));
        }
    }
}
