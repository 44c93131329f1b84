//! The kinds of events. Wire numbers are for ever: add at the end, never reuse.

use serde::{Deserialize, Serialize};

use crate::ids::Lane;

macro_rules! kinds {
    ($($name:ident = $number:literal $text:literal $lane:ident,)*) => {
        /// What happened. The number is the wire's, the text is SQL's.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
        #[repr(u16)]
        #[allow(missing_docs)]
        pub enum Kind { #[default] $($name = $number,)* }

        impl Kind {
            /// Every kind, in number order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// SQL's lower-case verb.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The kind of a wire number.
            pub fn from_u16(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The kind of SQL's verb.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }

            /// The lane such an event travels in.
            pub fn lane(self) -> Lane {
                match self { $(Self::$name => Lane::$lane,)* }
            }
        }
    };
}

kinds! {
    Exec = 1 "exec" Security,
    Exit = 2 "exit" Security,
    Fork = 3 "fork" Security,
    Connect = 4 "connect" Network,
    Accept = 5 "accept" Network,
    Close = 6 "close" Network,
    Listen = 7 "listen" Network,
    Send = 8 "send" Network,
    Dns = 9 "dns" Network,
    Open = 10 "open" File,
    Write = 11 "write" File,
    Unlink = 12 "unlink" File,
    Rename = 13 "rename" File,
    Link = 14 "link" File,
    Symlink = 15 "symlink" File,
    Chmod = 16 "chmod" File,
    Chown = 17 "chown" File,
    Mkdir = 18 "mkdir" File,
    Mount = 19 "mount" Security,
    Umount = 20 "umount" Security,
    Setuid = 21 "setuid" Security,
    Setgid = 22 "setgid" Security,
    Capset = 23 "capset" Security,
    Ptrace = 24 "ptrace" Security,
    Setns = 25 "setns" Security,
    Unshare = 26 "unshare" Security,
    Chroot = 27 "chroot" Security,
    Bpf = 28 "bpf" Security,
    Module = 29 "module" Security,
    Memfd = 30 "memfd" Security,
    Mprotect = 31 "mprotect" Security,
    Socket = 32 "socket" Security,
    Dup = 33 "dup" Security,
    Kill = 34 "kill" Security,
    Signal = 35 "signal" Security,
    Truncate = 36 "truncate" File,
    Userfaultfd = 37 "userfaultfd" Security,
    IoUring = 38 "io_uring" Security,
    ContainerStart = 39 "container_start" Security,
    ContainerStop = 40 "container_stop" Security,
    HostStart = 41 "host_start" Security,
    HostStop = 42 "host_stop" Security,
    Loss = 43 "loss" Security,
    Sample = 44 "sample" Sample,
    ContainerUpdate = 45 "container_update" Security,
}
