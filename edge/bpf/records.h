/* The records on the ring, little-endian, naturally aligned, no implicit padding. `src/probe/decode.rs` reads them by offset:
 * change both in one commit. Every record begins with struct head and says its own size; text parts are not terminated. */
#pragma once

enum kind { K_NONE, K_EXEC, K_FORK, K_EXIT, K_TCP, K_OPEN, K_CGROUP, K_TASK, K_CALL, K_CHANGE, KINDS = 16 };
enum { K_CALL_LIMITED = K_CHANGE + 1, K_CHANGE_LIMITED }; /* of DROPS only: what a process made beyond its allowance */
enum { K_UDP = K_CHANGE_LIMITED + 1, K_DNS, K_UDP_LIMITED, K_DNS_LIMITED };

struct who { /* 80: a process, see `Who` in src/probe/raw.rs */
	u64 start, parent_start, cgroup_v2, cgroup_v1;
	u32 pid, tid, ppid, uid, ns_pid, mnt_ns, pid_ns, net_ns;
	u8 comm[16];
};

struct head { /* 96 */
	u32 kind, size;
	u64 boot_ns;
	struct who who;
};

enum { EXE_UNLINKED = 1, ARGS_CUT = 2, EXE_CUT = 4, CWD_CUT = 8, EXE_BARE = 16, HAS_LOGIN_UID = 32 };
enum { NAME_MAX = 256, PATH_MAX = 512, ARGS_MAX = 1024 };

struct exec { /* 152 + data: filename, exe, cwd, args one after the other */
	struct head head;
	u64 capabilities;
	u32 euid, gid, login_uid, session_id, flags;
	u16 filename_len, exe_len, cwd_len, args_len;
	u32 pad;
	u8 tty[16];
	u8 data[NAME_MAX + 2 * PATH_MAX + ARGS_MAX];
};

struct fork { /* 112 */
	struct head head;
	u64 child_start;
	u32 child_pid, child_ppid;
};

struct ending { /* 104 */
	struct head head;
	u32 code, pad;
};

enum { OP_CONNECT = 1, OP_FAIL, OP_ACCEPT, OP_CLOSE, OP_LISTEN, OP_SEEN };
enum { ROLE_UNKNOWN, ROLE_CLIENT, ROLE_SERVER, ROLE_LISTENER };
enum { HAS_ISNS = 1, ACCEPTED = 2 };

struct conn { /* 72: what stays the same for a connection's life */
	u64 cookie, opened;
	u32 isn_local, isn_peer, net_ns;
	u16 family, local_port, peer_port;
	u8 role, flags;
	u8 local[16], peer[16];
	u32 pad;
};

struct tcp { /* 208 */
	struct head head;
	struct conn conn;
	u64 sent, received, inode;
	u32 op, error, srtt_us, retransmits;
};

enum { OPEN_CUT = 1, OPEN_BARE = 2 };

struct open { /* 120 + path */
	struct head head;
	u64 inode;
	u32 flags, mode, cut, path_len;
	u8 path[PATH_MAX];
};

enum { CGROUP_MKDIR = 1, CGROUP_RMDIR, CGROUP_ATTACH };

struct group { /* 136 + path */
	struct head head;
	u64 id, task_start;
	u32 op, hierarchy, task_pid, path_len, cut, pad;
	u8 path[PATH_MAX];
};

enum { PATH_CUT = 1, BASE_CUT = 2, TO_CUT = 4, TO_BASE_CUT = 8, NO_ARGUMENTS = 16 };

struct call { /* 336 + data: path, base, to, to_base one after the other; `src/probe/call.rs` */
	struct head head;
	u64 args[6];
	s64 result;
	u64 caps_before, caps, target_start, inode;
	u32 before[4], after[4]; /* uid, euid, gid, egid */
	u32 mnt_before, net_before, target_pid, call, flags, extra;
	u16 path_len, base_len, to_len, to_base_len;
	struct conn conn;
	u8 text[16];
	u8 data[4 * PATH_MAX];
};

struct udp { /* 184 */
	struct head head;
	struct conn conn;
	u64 bytes, datagrams;
};

enum { DNS_SMALL = 512, DNS_LARGE = 1280 }; /* room for the message: two sizes, for most are small */

struct dns { /* 184 + room */
	struct head head;
	struct conn conn;
	u32 inward, len, whole, pad;
	u8 payload[DNS_LARGE];
};
