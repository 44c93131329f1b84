//! A system call as the kernel half tells it, and how its record is read. The layout is `struct call` of `bpf/records.h`.
//!
//! Promise, as everywhere here: no input panics, nothing is guessed. A path is what the caller passed, beside the directory it starts
//! from as the kernel knows it; `Path::joined` puts them together.

use std::net::IpAddr;

use super::call_table::{CallName, Start};
use super::decode::{BODY, DecodeError, Record, address, name, path};
use super::raw::Role;

/// A sensitive system call that has returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which one.
    pub name: CallName,
    /// False where only the number of the call was seen: `args` are zeros then.
    pub has_args: bool,
    /// Its arguments as they were passed; what stands beyond the call's own is noise.
    pub args: [u64; 6],
    /// What it returned: below zero is an errno.
    pub result: i64,
    /// The path it is about, or the object behind a descriptor.
    pub path: Option<Path>,
    /// The second path.
    pub to: Option<Path>,
    /// A short text: a file system's type, a program's name.
    pub text: String,
    /// Who the thread was before.
    pub before: Credentials,
    /// Who it is after.
    pub after: Credentials,
    /// Mount namespace before; after is `Who::mnt_ns`.
    pub mnt_ns_before: u32,
    /// Network namespace before.
    pub net_ns_before: u32,
    /// Pid and start of the process that a signal reached, in the initial pid namespace.
    pub target: Option<(u32, u64)>,
    /// Inode behind the descriptor of setns: of a namespace, its number.
    pub inode: Option<u64>,
    /// A number behind a pointer: flags of io_uring, type of a BPF program or map; the protocol of a socket.
    pub extra: u32,
    /// The ends of a socket that was duplicated.
    pub ends: Option<Ends>,
}

/// Ids and capabilities of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub egid: u32,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
}

/// A path as passed, and where it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path {
    /// As the caller passed it; empty for the object behind a descriptor.
    pub given: Vec<u8>,
    /// The directory (or object) it starts from, resolved by the kernel; empty when it is not needed or not known.
    pub base: Vec<u8>,
    /// What `base` is; nothing where `given` stands alone: absolute, or no path of a file.
    pub start: Option<Start>,
    /// One of the two is not whole.
    pub truncated: bool,
}

impl Path {
    /// Both put together: `.` and empty parts go, and so does a leading `..` with the part of `base` that it leaves, which is exact
    /// because the kernel's path holds no symbolic link. A later `..` stays: what stands before it may be one.
    pub fn joined(&self) -> Vec<u8> {
        if self.base.is_empty() && !self.given.starts_with(b"/") {
            return self.given.clone();
        }
        let mut out: Vec<&[u8]> = self.base.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        let mut resolved = out.len();
        for part in self.given.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." if out.is_empty() => {}
                b".." if out.len() == resolved => {
                    out.pop();
                    resolved = out.len();
                }
                part => out.push(part),
            }
        }
        // An object without a place in the tree (a memfd) is no path from the root.
        let rooted = self.base.is_empty() || self.base.starts_with(b"/");
        let mut joined = Vec::with_capacity(self.base.len() + self.given.len() + 1);
        for (i, part) in out.iter().enumerate() {
            if i > 0 || rooted {
                joined.push(b'/');
            }
            joined.extend_from_slice(part);
        }
        if joined.is_empty() {
            joined.push(b'/');
        }
        joined
    }
}

/// The ends of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Which side this is, where it is known.
    pub role: Option<Role>,
    /// This end.
    pub local: (IpAddr, u16),
    /// The other end.
    pub peer: (IpAddr, u16),
    /// Socket cookie, when it has one.
    pub cookie: Option<u64>,
}

pub(super) fn call(record: Record<'_>) -> Result<Call, DecodeError> {
    let id = record.u32(BODY + 132)?;
    let name_of = CallName::from_u32(id).ok_or(DecodeError::Field { field: "call", value: id })?;
    let mut args = [0; 6];
    for (i, arg) in args.iter_mut().enumerate() {
        *arg = record.u64(BODY + 8 * i)?;
    }
    let flags = record.u32(BODY + 136)?;
    let mut at = DATA;
    let mut part = |field: usize| -> Result<&[u8], DecodeError> {
        let len = usize::from(record.u16(field)?);
        at += len;
        record.slice(at - len, len)
    };
    let (given, base, to, to_base) = (part(BODY + 144)?, part(BODY + 146)?, part(BODY + 148)?, part(BODY + 150)?);
    let target = (record.u32(BODY + 128)?, record.u64(BODY + 72)?);
    Ok(Call {
        name: name_of,
        has_args: flags & NO_ARGUMENTS == 0,
        args,
        result: record.u64(BODY + 48)?.cast_signed(),
        path: passed(given, base, name_of.start(&args), [flags & 1 != 0, flags & 2 != 0]),
        to: passed(to, to_base, name_of.to_start(&args), [flags & 4 != 0, flags & 8 != 0]),
        text: name(record.slice(BODY + 224, 16)?),
        before: credentials(record, BODY + 88, BODY + 56)?,
        after: credentials(record, BODY + 104, BODY + 64)?,
        mnt_ns_before: record.u32(BODY + 120)?,
        net_ns_before: record.u32(BODY + 124)?,
        target: Some(target).filter(|target| target.0 != 0),
        inode: Some(record.u64(BODY + 80)?).filter(|inode| *inode != 0),
        extra: record.u32(BODY + 140)?,
        ends: ends(record, BODY + 152)?,
    })
}

fn credentials(record: Record<'_>, ids: usize, capabilities: usize) -> Result<Credentials, DecodeError> {
    Ok(Credentials {
        uid: record.u32(ids)?,
        euid: record.u32(ids + 4)?,
        gid: record.u32(ids + 8)?,
        egid: record.u32(ids + 12)?,
        capabilities: record.u64(capabilities)?,
    })
}

fn passed(given: &[u8], base: &[u8], start: Option<Start>, [cut, base_cut]: [bool; 2]) -> Option<Path> {
    if given.is_empty() && base.is_empty() {
        return None;
    }
    let start = start.filter(|_| !given.starts_with(b"/"));
    Some(Path { given: given.to_vec(), base: path(base, base_cut), start, truncated: cut || base_cut })
}

/// A connection in the layout of `struct conn`; without a family there is none.
fn ends(record: Record<'_>, at: usize) -> Result<Option<Ends>, DecodeError> {
    let family = record.u16(at + 28)?;
    if family == 0 {
        return Ok(None);
    }
    Ok(Some(Ends {
        role: match record.u8(at + 34)? {
            1 => Some(Role::Client),
            2 => Some(Role::Server),
            3 => Some(Role::Listener),
            _ => None,
        },
        local: (address(family, record.slice(at + 36, 16)?)?, record.u16(at + 30)?),
        peer: (address(family, record.slice(at + 52, 16)?)?, record.u16(at + 32)?),
        cookie: Some(record.u64(at)?).filter(|cookie| *cookie != 0),
    }))
}

const NO_ARGUMENTS: u32 = 16;
const DATA: usize = BODY + 240;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::decode::{K_CALL, K_CHANGE, decode, tests::record};
    use super::super::raw::What;
    use super::*;

    fn body(id: u32, lens: [u16; 4], data: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 240];
        body[8..16].copy_from_slice(&4095_u64.to_le_bytes());
        body[48..56].copy_from_slice(&(-13_i64).to_le_bytes());
        body[88..92].copy_from_slice(&1001_u32.to_le_bytes());
        body[128..132].copy_from_slice(&77_u32.to_le_bytes());
        body[132..136].copy_from_slice(&id.to_le_bytes());
        for (i, len) in lens.iter().enumerate() {
            body[144 + 2 * i..146 + 2 * i].copy_from_slice(&len.to_le_bytes());
        }
        body.extend(data);
        body
    }

    #[test]
    fn a_call_is_read_field_by_field() {
        let bytes = record(K_CHANGE, &body(CallName::Rename as u32, [1, 4, 4, 0], b"a/tmp/x/y"));
        let What::Call(call) = decode(&bytes).unwrap().what else { panic!("a call") };
        assert_eq!((call.name, call.args[1], call.result, call.before.uid), (CallName::Rename, 4095, -13, 1001));
        assert_eq!((call.target, call.inode, call.ends), (Some((77, 0)), None, None));
        let (path, to) = (call.path.unwrap(), call.to.unwrap());
        assert_eq!(
            (path.joined(), path.start, to.joined(), to.start),
            (b"/tmp/a".to_vec(), Some(Start::Cwd), b"/x/y".to_vec(), None)
        );
    }

    #[test]
    fn what_no_program_writes_is_refused() {
        let wrong = |field, value| Err(DecodeError::Field { field, value });
        assert_eq!(decode(&record(K_CALL, &body(0, [0; 4], b""))), wrong("call", 0));
        assert_eq!(decode(&record(K_CALL, &body(9999, [0; 4], b""))), wrong("call", 9999));
        let mut family = body(CallName::Dup2 as u32, [0; 4], b"");
        family[180] = 7;
        assert_eq!(decode(&record(K_CALL, &family)), wrong("family", 7));
        let short = record(K_CALL, &body(CallName::Mount as u32, [3, 3, 0, 0], b"12345"));
        assert_eq!(decode(&short), Err(DecodeError::Short { len: short.len(), at: 96 + 243 }));
    }

    #[test]
    fn a_path_is_joined_where_that_is_exact() {
        let check = |base: &str, given: &str, expected: &str| {
            let path = Path { given: given.into(), base: base.into(), ..Path::default() };
            assert_eq!(String::from_utf8_lossy(&path.joined()), expected, "{base} {given}");
        };
        check("/tmp/d", "x", "/tmp/d/x");
        check("/tmp/d", "../x//y/.", "/tmp/x/y");
        check("/tmp", "../../../x", "/x");
        check("/tmp", "a/../x", "/tmp/a/../x");
        check("", "/etc/../etc/x", "/etc/../etc/x");
        check("", "/../etc", "/etc");
        check("/", "x", "/x");
        check("/", "..", "/");
        check("/tmp/f", "", "/tmp/f");
        check("memfd:x", "", "memfd:x");
        check("", "x", "x");
    }

    proptest! {
        #[test]
        fn hostile_calls_never_panic(id in 0u32..70, lens in prop::array::uniform4(0u16..80), data in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..240, byte in any::<u8>(), cut in 0usize..500) {
            let mut body = body(id, lens, &data);
            body[at] = byte;
            let bytes = record(K_CALL, &body);
            if let Ok(event) = decode(&bytes) && let What::Call(call) = event.what {
                let _ = (call.path.map(|p| p.joined()), call.to.map(|p| p.joined()));
            }
            let mut short = bytes[..cut.clamp(8, bytes.len())].to_vec();
            let len = short.len() as u32;
            short[4..8].copy_from_slice(&len.to_le_bytes());
            let _ = decode(&short);
        }
    }
}
