/* The kernel half of the agent: processes, TCP connections, file opens and cgroups, as records on one ring.
 *
 * Promises: a record that finds no room is counted per kind in DROPS, never silently lost; the reader is woken once 64 KiB wait
 * (else it looks every 10 ms), which makes a record 2 to 12 times cheaper than a wake-up each; nothing is ever modified or refused.
 * Kernel floor 5.11 (BTF, ring buffer, task and socket helpers in tracing programs). No pt_regs: one object serves every
 * little-endian architecture. Layout of the records: records.h. */
#include "bpf_min.h"
#include "records.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* ---- set by the loader ---- */
const volatile u32 SELF = 0;              /* the agent's tgid: its own opens would feed themselves */
const volatile u32 OPEN_WRITES = 0;       /* 1: report every open for writing */
const volatile u64 OPEN_REPEAT_NS = 0;    /* the same open of the same process again within this time is left out */

/* ---- maps; the loader sets the sizes of EVENTS and SOCKETS ---- */
struct { __uint(type, MAP_RINGBUF); __uint(max_entries, 1 << 23); } EVENTS SEC(".maps");
struct { __uint(type, MAP_PERCPU_ARRAY); __uint(max_entries, KINDS); __type(key, u32); __type(value, u64); } DROPS SEC(".maps");

struct owned { struct who who; struct conn conn; };
struct { __uint(type, MAP_LRU_HASH); __uint(max_entries, 65536); __type(key, u64); __type(value, struct owned); } SOCKETS SEC(".maps");

/* Threads inside connect(2) whose socket has not begun to connect: what is left at the exit failed before a packet. */
struct attempt { u64 address; s64 fd; };
struct { __uint(type, MAP_LRU_HASH); __uint(max_entries, 4096); __type(key, u64); __type(value, struct attempt); } ATTEMPTS SEC(".maps");

struct life { u64 start; u64 pid; };
struct { __uint(type, MAP_LRU_HASH); __uint(max_entries, 4096); __type(key, struct life); __type(value, u64); } ENDED SEC(".maps");

/* Paths that are reported whatever the open's mode: byte prefixes. */
struct prefix { u32 bits; u8 path[64]; };
struct { __uint(type, MAP_LPM_TRIE); __uint(map_flags, BPF_F_NO_PREALLOC); __uint(max_entries, 64); __type(key, struct prefix); __type(value, u32); } OPEN_PREFIXES SEC(".maps");

/* Names that were walked lately and whether a prefix matched: a library opened by every process is walked once. */
struct name { u64 dentry, parent, text, inode; };
struct verdict { u64 until; u64 wanted; };
struct { __uint(type, MAP_LRU_HASH); __uint(max_entries, 8192); __type(key, struct name); __type(value, struct verdict); } VERDICTS SEC(".maps");

struct repeat { u64 start, inode; u32 pid, writes; };
struct { __uint(type, MAP_LRU_HASH); __uint(max_entries, 8192); __type(key, struct repeat); __type(value, u64); } REPEATS SEC(".maps");

/* One per cpu: records of variable size are built here. The hooks that use it run with preemption off and not in interrupts. */
enum { PATH_END = PATH_MAX - 1 };
struct scratch {
	u8 path[PATH_MAX + 256]; /* built from PATH_END downwards */
	union { struct exec exec; struct open open; struct group group; };
	struct prefix prefix;
};
struct { __uint(type, MAP_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, struct scratch); } SCRATCH SEC(".maps");

/* ---- the ring ---- */
INL u64 wake(void)
{
	return bpf_ringbuf_query(&EVENTS, RINGBUF_AVAIL_DATA) >= (1 << 16) ? RINGBUF_FORCE_WAKEUP : RINGBUF_NO_WAKEUP;
}

INL void dropped(u32 kind)
{
	u64 *count = bpf_map_lookup_elem(&DROPS, &kind);
	if (count) (*count)++;
}

INL void *reserve(u32 kind, u32 size)
{
	struct head *head = bpf_ringbuf_reserve(&EVENTS, size, 0);
	if (!head) { dropped(kind); return 0; }
	__builtin_memset(head, 0, size);
	head->kind = kind;
	head->size = size;
	head->boot_ns = bpf_ktime_get_boot_ns();
	return head;
}
#define RESERVE(kind, type) (type *)reserve(kind, sizeof(type))

INL void output(struct head *head, u32 kind, u32 size)
{
	head->kind = kind;
	head->size = size;
	head->boot_ns = bpf_ktime_get_boot_ns();
	if (bpf_ringbuf_output(&EVENTS, head, size, wake())) dropped(kind);
}

INL struct scratch *scratch(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&SCRATCH, &zero);
}

/* ---- who ---- */
/* On hybrid hosts containers live in the v1 hierarchy that carries memory; the controller's index differs per kernel. */
INL u64 memory_cgroup(struct task_struct *task)
{
	struct css_set *set = task->cgroups;
	struct cgroup_subsys_state *css = 0;
	struct cgroup *cgroup = 0;
	struct kernfs_node *node = 0;
	u64 id = 0;
	u32 index = __builtin_preserve_enum_value(*(typeof(enum cgroup_subsys_id) *)memory_cgrp_id, 1);
	if (!set || index > 15) return 0;
	bpf_probe_read_kernel(&css, sizeof(css), ADDRESS(set, subsys) + 8 * index);
	if (!css) return 0;
	READ(cgroup, css, cgroup);
	READ(node, cgroup, kn);
	READ(id, node, id);
	return id;
}

INL void describe(struct who *who, struct task_struct *task)
{
	struct task_struct *parent = task->real_parent;
	struct pid *pid = task->thread_pid;
	struct nsproxy *ns = task->nsproxy;
	struct upid inner = {};
	who->start = task->group_leader->start_boottime;
	who->parent_start = parent->group_leader->start_boottime;
	who->cgroup_v2 = task->cgroups->dfl_cgrp->kn->id;
	who->cgroup_v1 = memory_cgroup(task);
	who->pid = task->tgid;
	who->tid = task->pid;
	who->ppid = parent->tgid;
	who->uid = task->real_cred->uid.val;
	if (pid) {
		u32 level = pid->level;
		bpf_probe_read_kernel(&inner, sizeof(inner), ADDRESS(pid, numbers) + sizeof(inner) * (level & 63));
	}
	who->ns_pid = inner.nr;
	who->pid_ns = 0;
	if (inner.ns) READ(who->pid_ns, inner.ns, ns.inum);
	who->mnt_ns = ns ? ns->mnt_ns->ns.inum : 0;
	who->net_ns = ns ? ns->net_ns->ns.inum : 0;
	bpf_probe_read_kernel_str(who->comm, sizeof(who->comm), ADDRESS(task, comm));
}

/* Shows the verifier that `value` is at most `max`: the barrier keeps the compiler from proving the check away. */
INL u32 at_most(u32 value, u32 max)
{
	asm volatile("" : "+r"(value));
	return value > max ? 0 : value;
}

/* ---- paths ---- */
/* Builds the path of (dentry, mount) in scratch->path, ending at PATH_END; answers where it begins. Names are put in front one by
 * one up to the root of the mount namespace. `cut`: the path is longer; `bare`: a file without a place in the tree (memfd). */
INL u32 walk(struct scratch *s, struct dentry *dentry, struct vfsmount *vfs, u32 *cut, u32 *bare)
{
	struct mount *mount = (void *)vfs - __builtin_preserve_field_info(((struct mount *)0)->mnt, 0), *above = 0;
	u32 at = PATH_END;
	*cut = 1;
	*bare = 0;
	for (int i = 0; i < 40; i++) {
		struct dentry *root = 0, *up = 0;
		const u8 *text = 0;
		u32 len = 0;
		READ(root, vfs, mnt_root);
		READ(up, dentry, d_parent);
		if (dentry == root) {
			READ(above, mount, mnt_parent);
			if (above == mount) { *cut = 0; break; }
			READ(dentry, mount, mnt_mountpoint);
			mount = above;
			vfs = ADDRESS(mount, mnt);
			continue;
		}
		READ(len, dentry, d_name.len);
		READ(text, dentry, d_name.name);
		if (len > 255 || len + 1 > at) break;
		at = (at - len) & PATH_END;
		bpf_probe_read_kernel(s->path + at, len & 255, text);
		if (dentry == up) { *cut = 0; *bare = 1; break; }
		at = (at - 1) & PATH_END;
		s->path[at] = '/';
		dentry = up;
		asm volatile("" : "+r"(at));
	}
	at &= PATH_END;
	if (at == PATH_END && !*cut) { at--; s->path[at] = '/'; }
	return at;
}

INL u32 walk_into(u8 *to, struct scratch *s, struct path *path, u32 *cut, u32 *bare)
{
	struct dentry *dentry = 0;
	struct vfsmount *vfs = 0;
	READ(dentry, path, dentry);
	READ(vfs, path, mnt);
	u32 at = walk(s, dentry, vfs, cut, bare) & PATH_END, len = (PATH_END - at) & PATH_END;
	bpf_probe_read_kernel(to, len, s->path + at);
	return len;
}

/* ---- processes ---- */
INL void exec_identity(struct exec *e, struct task_struct *task)
{
	const struct cred *cred = task->real_cred;
	struct pid *session = task->signal->pids[3];
	struct tty_struct *tty = task->signal->tty;
	e->capabilities = 0;
	e->session_id = 0;
	e->login_uid = 0;
	READ(e->capabilities, cred, cap_effective);
	e->euid = cred->euid.val;
	e->gid = cred->gid.val;
	if (session) READ(e->session_id, session, numbers[0].nr);
	if (EXISTS(task->loginuid)) { e->login_uid = task->loginuid.val; e->flags |= HAS_LOGIN_UID; }
	__builtin_memset(e->tty, 0, sizeof(e->tty));
	if (tty) bpf_probe_read_kernel_str(e->tty, sizeof(e->tty), ADDRESS(tty, name));
}

SEC("tp_btf/sched_process_exec") int on_exec(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct linux_binprm *program = (void *)ctx[2];
	struct mm_struct *mm = task->mm;
	struct scratch *s = scratch();
	if (!s || !mm) return 0;
	struct exec *e = &s->exec;
	struct file *file = mm->exe_file;
	struct fs_struct *fs = task->fs;
	u32 n = 0, len, cut = 0, bare = 0;
	u64 from = mm->arg_start, to = mm->arg_end;
	describe(&e->head.who, task);
	e->flags = 0;
	e->pad = 0;
	exec_identity(e, task);

	long got = bpf_probe_read_kernel_str(e->data, NAME_MAX, program->filename);
	n = at_most(got - 1, NAME_MAX - 1);
	e->filename_len = n;
	e->exe_len = e->cwd_len = e->args_len = 0;
	if (file) {
		if (!file->f_inode->i_nlink) e->flags |= EXE_UNLINKED;
		len = walk_into(e->data + n, s, ADDRESS(file, f_path), &cut, &bare);
		e->exe_len = len;
		e->flags |= (cut ? EXE_CUT : 0) | (bare ? EXE_BARE : 0);
		n = at_most(n + len, NAME_MAX + PATH_MAX);
	}
	if (fs) {
		len = walk_into(e->data + n, s, ADDRESS(fs, pwd), &cut, &bare);
		e->cwd_len = len;
		e->flags |= cut ? CWD_CUT : 0;
		n = at_most(n + len, NAME_MAX + 2 * PATH_MAX);
	}
	len = to - from;
	if (len > ARGS_MAX - 1) { len = ARGS_MAX - 1; e->flags |= ARGS_CUT; }
	len = at_most(len, ARGS_MAX - 1);
	if (!bpf_probe_read_user(e->data + n, len, (void *)from)) { e->args_len = len; n += len; }
	output(&e->head, K_EXEC, offsetof(struct exec, data) + at_most(n, sizeof(e->data)));
	return 0;
}

SEC("tp_btf/sched_process_fork") int on_fork(u64 *ctx)
{
	struct task_struct *child = (void *)ctx[1];
	if (child->pid != child->tgid) return 0;
	struct fork *e = RESERVE(K_FORK, struct fork);
	if (!e) return 0;
	describe(&e->head.who, bpf_get_current_task_btf());
	e->child_start = child->start_boottime;
	e->child_pid = child->tgid;
	e->child_ppid = child->real_parent->tgid;
	bpf_ringbuf_submit(e, wake());
	return 0;
}

/* A process ends with its last thread, whichever that is. Two threads that end at once both see none left: the first tells. */
SEC("tp_btf/sched_process_exit") int on_exit(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0], *leader = task->group_leader;
	struct signal_struct *signal = task->signal;
	if (signal->live.counter > 0) return 0;
	if (signal->nr_threads > 1) {
		struct life life = { .start = leader->start_boottime, .pid = task->tgid };
		u64 one = 1;
		if (bpf_map_update_elem(&ENDED, &life, &one, BPF_NOEXIST)) return 0;
	}
	struct ending *e = RESERVE(K_EXIT, struct ending);
	if (!e) return 0;
	describe(&e->head.who, task);
	e->code = signal->flags & 4 /* SIGNAL_GROUP_EXIT */ ? signal->group_exit_code : leader->exit_code;
	bpf_ringbuf_submit(e, wake());
	return 0;
}

SEC("iter/task") int it_task(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct head row = { .kind = K_TASK, .size = sizeof(row) };
	if (!task || task->pid != task->tgid) return 0;
	row.boot_ns = bpf_ktime_get_boot_ns();
	describe(&row.who, task);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* ---- TCP ---- */
enum { ESTABLISHED = 1, SYN_SENT = 2, FIN_WAIT1 = 4, FIN_WAIT2 = 5, CLOSED = 7, CLOSE_WAIT = 8, LISTEN = 10 };
enum { AF_INET = 2, AF_INET6 = 10, IPPROTO_TCP = 6, SOCK_DONE = 1 };

INL void endpoints(struct conn *c, struct sock *sk)
{
	struct net *net = 0;
	u16 port = 0;
	READ(c->family, sk, __sk_common.skc_family);
	READ(port, (struct inet_sock *)sk, inet_sport); /* skc_num is 0 once closed */
	c->local_port = bswap16(port);
	if (!port) READ(c->local_port, sk, __sk_common.skc_num);
	READ(port, sk, __sk_common.skc_dport);
	c->peer_port = bswap16(port);
	if (c->family == AF_INET6) {
		READ(c->local, sk, __sk_common.skc_v6_rcv_saddr);
		READ(c->peer, sk, __sk_common.skc_v6_daddr);
	} else {
		bpf_probe_read_kernel(c->local, 4, ADDRESS(sk, __sk_common.skc_rcv_saddr));
		bpf_probe_read_kernel(c->peer, 4, ADDRESS(sk, __sk_common.skc_daddr));
	}
	READ(net, sk, __sk_common.skc_net.net);
	if (net) READ(c->net_ns, net, ns.inum);
}

/* Payload, each byte once: retransmissions are taken off what was sent, the FIN off what came. */
INL void measure(struct tcp *e, struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;
	u64 sent = 0, again = 0, received = 0;
	unsigned long flags = 0;
	READ(sent, tcp, bytes_sent);
	READ(again, tcp, bytes_retrans);
	READ(received, tcp, bytes_received);
	READ(flags, sk, __sk_common.skc_flags);
	READ(e->srtt_us, tcp, srtt_us);
	READ(e->retransmits, tcp, total_retrans);
	e->srtt_us >>= 3;
	e->sent = sent - again;
	e->received = received - (received && (flags & (1 << SOCK_DONE)) ? 1 : 0);
}

INL void tell(struct sock *sk, u32 op, struct owned *o)
{
	struct tcp *e = RESERVE(K_TCP, struct tcp);
	if (!e) return;
	e->head.who = o->who;
	e->head.who.tid = 0;
	e->conn = o->conn;
	e->op = op;
	if (op != OP_LISTEN) measure(e, sk);
	if (op == OP_CLOSE || op == OP_FAIL) READ(e->error, sk, sk_err);
	bpf_ringbuf_submit(e, wake());
}

/* The initial sequence numbers, the moment the handshake is done: nothing has been sent or received yet. */
INL void established(struct conn *c, struct sock *sk)
{
	struct tcp_sock *tcp = (void *)sk;
	READ(c->isn_local, tcp, snd_una);
	READ(c->isn_peer, tcp, rcv_nxt);
	c->isn_local--;
	c->isn_peer--;
	c->flags |= HAS_ISNS;
	c->opened = bpf_ktime_get_boot_ns();
	endpoints(c, sk);
}

/* connect(2) and listen(2): the caller owns the socket. */
INL void begin(struct sock *sk, u64 key, u8 role)
{
	struct owned o = {};
	describe(&o.who, bpf_get_current_task_btf());
	o.conn.cookie = bpf_get_socket_cookie(sk);
	o.conn.role = role;
	o.conn.opened = bpf_ktime_get_boot_ns();
	if (role == ROLE_LISTENER) {
		endpoints(&o.conn, sk);
		tell(sk, OP_LISTEN, &o);
	} else {
		u64 thread = bpf_get_current_pid_tgid();
		bpf_map_delete_elem(&ATTEMPTS, &thread);
	}
	bpf_map_update_elem(&SOCKETS, &key, &o, BPF_ANY);
}

INL void closed(struct sock *sk, u64 key, int old)
{
	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key), stranger = {};
	if (old != CLOSED && old != LISTEN && old != 3 /* SYN_RECV: it never was a connection here */ && old != 12) {
		if (known && old == SYN_SENT) endpoints(&known->conn, sk);
		if (!known) { /* older than the agent, or pushed out of SOCKETS */
			stranger.conn.cookie = bpf_get_socket_cookie(sk);
			endpoints(&stranger.conn, sk);
			if (old == SYN_SENT) stranger.conn.role = ROLE_CLIENT;
		}
		tell(sk, old == SYN_SENT ? OP_FAIL : OP_CLOSE, known ? known : &stranger);
	}
	if (known) bpf_map_delete_elem(&SOCKETS, &key);
}

SEC("tp_btf/inet_sock_set_state") int on_state(u64 *ctx)
{
	struct sock *sk = (void *)ctx[0];
	int old = ctx[1], now = ctx[2];
	u64 key = (u64)sk;
	if (sk->sk_protocol != IPPROTO_TCP) return 0;
	if (now == SYN_SENT) begin(sk, key, ROLE_CLIENT);
	if (now == LISTEN) begin(sk, key, ROLE_LISTENER);
	if (now == CLOSED) closed(sk, key, old);
	if (now != ESTABLISHED) return 0;

	struct owned *known = old == SYN_SENT ? bpf_map_lookup_elem(&SOCKETS, &key) : 0;
	if (known) {
		established(&known->conn, sk);
		tell(sk, OP_CONNECT, known);
		return 0;
	}
	struct owned o = {};
	o.conn.cookie = bpf_get_socket_cookie(sk);
	o.conn.role = old == SYN_SENT ? ROLE_CLIENT : ROLE_SERVER;
	established(&o.conn, sk);
	if (old == SYN_SENT) tell(sk, OP_CONNECT, &o);
	bpf_map_update_elem(&SOCKETS, &key, &o, BPF_ANY); /* a server end is told when a process accepts it */
	return 0;
}

INL struct file *fd_file(s64 fd)
{
	struct fdtable *table = bpf_get_current_task_btf()->files->fdt;
	struct file **files = table->fd, *file = 0;
	if (fd < 0 || fd >= table->max_fds) return 0;
	bpf_probe_read_kernel(&file, sizeof(file), files + fd);
	return file;
}

INL struct sock *tcp_of(struct file *file)
{
	struct socket *socket = 0;
	struct sock *sk = 0;
	u16 protocol = 0, family = 0, mode = 0;
	struct inode *inode = 0;
	if (!file) return 0;
	READ(inode, file, f_inode);
	READ(mode, inode, i_mode);
	if ((mode & 0170000) != 0140000) return 0;
	READ(socket, file, private_data);
	READ(sk, socket, sk);
	if (!sk) return 0;
	READ(protocol, sk, sk_protocol);
	READ(family, sk, __sk_common.skc_family);
	return protocol == IPPROTO_TCP && (family == AF_INET || family == AF_INET6) ? sk : 0;
}

INL int accepted(struct sys_exit *ctx)
{
	struct sock *sk = ctx->ret < 0 ? 0 : tcp_of(fd_file(ctx->ret));
	u64 key = (u64)sk;
	u8 state = CLOSED;
	if (!sk) return 0;
	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key);
	if (known) {
		describe(&known->who, bpf_get_current_task_btf());
		known->conn.flags |= ACCEPTED;
		tell(sk, OP_ACCEPT, known);
		return 0;
	}
	struct owned o = {};
	describe(&o.who, bpf_get_current_task_btf());
	READ(o.conn.cookie, sk, __sk_common.skc_cookie);
	READ(state, sk, __sk_common.skc_state);
	o.conn.role = ROLE_SERVER;
	o.conn.flags = ACCEPTED;
	endpoints(&o.conn, sk);
	tell(sk, OP_ACCEPT, &o);
	if (state != CLOSED) bpf_map_update_elem(&SOCKETS, &key, &o, BPF_NOEXIST);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept") int x_accept(struct sys_exit *ctx) { return accepted(ctx); }
SEC("tracepoint/syscalls/sys_exit_accept4") int x_accept4(struct sys_exit *ctx) { return accepted(ctx); }

SEC("tracepoint/syscalls/sys_enter_connect") int e_connect(struct sys_enter *ctx)
{
	struct attempt a = { .address = ctx->args[1], .fd = ctx->args[0] };
	u64 thread = bpf_get_current_pid_tgid();
	bpf_map_update_elem(&ATTEMPTS, &thread, &a, BPF_ANY);
	return 0;
}

/* Errors of connect(2) before any packet (no route, no port, not allowed): the socket's state never changed. */
INL int before_packet(s64 error)
{
	return error == 101 /* ENETUNREACH */ || error == 113 /* EHOSTUNREACH */ || error == 99 /* EADDRNOTAVAIL */ ||
	       error == 100 /* ENETDOWN */ || error == 13 /* EACCES */ || error == 1 /* EPERM */;
}

SEC("tracepoint/syscalls/sys_exit_connect") int x_connect(struct sys_exit *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct attempt *a = bpf_map_lookup_elem(&ATTEMPTS, &thread);
	struct { u16 family, port; u32 four; struct in6_addr six; } to = {};
	if (!a) return 0;
	struct attempt attempt = *a;
	bpf_map_delete_elem(&ATTEMPTS, &thread);
	if (ctx->ret >= 0 || !before_packet(-ctx->ret)) return 0;
	struct sock *sk = tcp_of(fd_file(attempt.fd));
	if (!sk || bpf_probe_read_user(&to, 8, (void *)attempt.address)) return 0;
	struct owned o = {};
	describe(&o.who, bpf_get_current_task_btf());
	READ(o.conn.cookie, sk, __sk_common.skc_cookie);
	endpoints(&o.conn, sk);
	o.conn.role = ROLE_CLIENT;
	o.conn.opened = bpf_ktime_get_boot_ns();
	o.conn.peer_port = bswap16(to.port);
	__builtin_memset(o.conn.peer, 0, 16);
	if (to.family == AF_INET6) bpf_probe_read_user(o.conn.peer, 16, (void *)attempt.address + 8);
	else __builtin_memcpy(o.conn.peer, &to.four, 4);
	struct tcp *e = RESERVE(K_TCP, struct tcp);
	if (!e) return 0;
	e->head.who = o.who;
	e->conn = o.conn;
	e->op = OP_FAIL;
	e->error = -ctx->ret;
	bpf_ringbuf_submit(e, wake());
	return 0;
}

/* Connections older than the agent. Both initial sequence numbers can be told from the counters, and which side opened it too:
 * bytes_acked counts the SYN of a client, never that of a server. */
INL void reckon(struct conn *c, struct tcp_sock *tcp, u8 state)
{
	u64 payload = tcp->bytes_sent - tcp->bytes_retrans, acked = tcp->bytes_acked;
	u32 extra = (u32)acked + (tcp->snd_nxt - tcp->snd_una) - (u32)payload;
	if (state != ESTABLISHED && state != CLOSE_WAIT) return;
	if (extra > 1) return;
	c->role = extra ? ROLE_CLIENT : ROLE_SERVER;
	c->isn_local = tcp->snd_una - (u32)acked - (extra ? 0 : 1);
	c->isn_peer = tcp->rcv_nxt - (u32)tcp->bytes_received - 1;
	c->flags |= HAS_ISNS;
}

SEC("iter/tcp") int it_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;
	if (!common) return 0;
	u8 state = common->skc_state;
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(common);
	if (!tcp || !(state == ESTABLISHED || state == CLOSE_WAIT || state == FIN_WAIT1 || state == FIN_WAIT2 || state == LISTEN)) return 0;
	struct tcp row = { .op = OP_SEEN };
	struct sock *sk = (void *)tcp;
	struct socket *socket = 0;
	struct file *file = 0;
	struct inode *inode = 0;
	u64 key = (u64)common;
	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key);
	if (known) {
		row.head.who = known->who;
		row.conn = known->conn;
	} else {
		struct owned o = {};
		o.conn.cookie = bpf_get_socket_cookie(common);
		o.conn.flags = ACCEPTED;
		endpoints(&o.conn, sk);
		if (state == LISTEN) o.conn.role = ROLE_LISTENER;
		else reckon(&o.conn, tcp, state);
		bpf_map_update_elem(&SOCKETS, &key, &o, BPF_NOEXIST);
		row.conn = o.conn;
	}
	row.head.kind = K_TCP;
	row.head.size = sizeof(row);
	row.head.boot_ns = bpf_ktime_get_boot_ns();
	if (state != LISTEN) measure(&row, sk);
	READ(socket, sk, sk_socket);
	if (socket) READ(file, socket, file);
	if (file) READ(inode, file, f_inode);
	if (inode) READ(row.inode, inode, i_ino);
	bpf_seq_write(ctx->meta->seq, &row, sizeof(row));
	return 0;
}

/* Who holds a socket that is older than the agent: run once after it_tcp. The first holder found is its owner. */
SEC("iter/task_file") int it_file(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	if (!task || !file || task->pid != task->tgid) return 0;
	u64 key = (u64)tcp_of(file);
	struct owned *known = key ? bpf_map_lookup_elem(&SOCKETS, &key) : 0;
	if (known && !known->who.pid) describe(&known->who, task);
	return 0;
}

/* ---- file opens ---- */
INL int prefix_matches(struct scratch *s, u32 at)
{
	u32 len = PATH_END - at;
	if (len > 64) len = 64;
	s->prefix.bits = len * 8;
	__builtin_memset(s->prefix.path, 0, 64);
	bpf_probe_read_kernel(s->prefix.path, len, s->path + (at & PATH_END));
	return bpf_map_lookup_elem(&OPEN_PREFIXES, &s->prefix) != 0;
}

INL int opened(struct sys_exit *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	if (ctx->ret < 0 || (u32)task->tgid == SELF) return 0;
	struct file *file = fd_file(ctx->ret);
	struct scratch *s = scratch();
	struct inode *inode = 0;
	struct dentry *dentry = 0;
	struct vfsmount *vfs = 0;
	u32 flags = 0, at = 0, cut = 0, bare = 0;
	u16 mode = 0;
	if (!file || !s) return 0;
	READ(inode, file, f_inode);
	READ(mode, inode, i_mode);
	if ((mode & 0170000) != 0100000 && (mode & 0170000) != 0040000) return 0;
	READ(flags, file, f_flags);
	READ(dentry, file, f_path.dentry);
	READ(vfs, file, f_path.mnt);

	u64 now = bpf_ktime_get_boot_ns();
	int writes = (flags & 3) != 0, wanted = writes && OPEN_WRITES;
	struct name name = { .dentry = (u64)dentry, .inode = (u64)inode };
	READ(name.parent, dentry, d_parent);
	bpf_probe_read_kernel(&name.text, 8, ADDRESS(dentry, d_name)); /* hash and length: changes with a rename */
	if (!wanted) {
		struct verdict *verdict = bpf_map_lookup_elem(&VERDICTS, &name);
		if (verdict && now < verdict->until && !verdict->wanted) return 0;
	}
	struct repeat repeat = { .start = task->group_leader->start_boottime, .inode = (u64)inode, .pid = task->tgid, .writes = writes };
	u64 *until = bpf_map_lookup_elem(&REPEATS, &repeat);
	if (until && now < *until) return 0;

	at = walk(s, dentry, vfs, &cut, &bare) & PATH_END;
	if (!wanted) {
		wanted = prefix_matches(s, at);
		struct verdict verdict = { .until = now + 10000000000ull, .wanted = wanted };
		bpf_map_update_elem(&VERDICTS, &name, &verdict, BPF_ANY);
		if (!wanted) return 0;
	}
	u64 next = now + OPEN_REPEAT_NS;
	if (OPEN_REPEAT_NS) bpf_map_update_elem(&REPEATS, &repeat, &next, BPF_ANY);

	struct open *e = &s->open;
	u32 len = (PATH_END - at) & PATH_END;
	unsigned long number = 0;
	describe(&e->head.who, task);
	READ(number, inode, i_ino);
	e->inode = number;
	e->flags = flags;
	e->mode = mode;
	e->cut = (cut ? OPEN_CUT : 0) | (bare ? OPEN_BARE : 0);
	e->path_len = len;
	bpf_probe_read_kernel(e->path, len, s->path + at);
	output(&e->head, K_OPEN, offsetof(struct open, path) + len);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_open") int x_open(struct sys_exit *ctx) { return opened(ctx); }
SEC("tracepoint/syscalls/sys_exit_openat") int x_openat(struct sys_exit *ctx) { return opened(ctx); }
SEC("tracepoint/syscalls/sys_exit_openat2") int x_openat2(struct sys_exit *ctx) { return opened(ctx); }

/* ---- cgroups ---- */
INL int grouped(struct cgroup *cgroup, const char *path, struct task_struct *task, u32 op)
{
	u32 index = __builtin_preserve_enum_value(*(typeof(enum cgroup_subsys_id) *)memory_cgrp_id, 1);
	struct cgroup_subsys_state *css = 0;
	u32 hierarchy = cgroup->root->hierarchy_id;
	struct scratch *s = scratch();
	if (!s || index > 15) return 0;
	if (hierarchy) { /* of the v1 hierarchies only the one with memory: one record per container, not one per controller */
		struct cgroup_subsys_state *const *at = ADDRESS(cgroup, subsys) + 8 * index;
		bpf_probe_read_kernel(&css, sizeof(css), at);
		if (!css) return 0;
	}
	struct group *e = &s->group;
	describe(&e->head.who, bpf_get_current_task_btf());
	e->id = cgroup->kn->id;
	e->op = op;
	e->hierarchy = hierarchy;
	e->task_pid = task ? task->tgid : 0;
	e->task_start = task ? task->group_leader->start_boottime : 0;
	e->pad = 0;
	long got = bpf_probe_read_kernel_str(e->path, PATH_MAX, path);
	u32 len = at_most(got - 1, PATH_MAX - 1);
	e->cut = got == PATH_MAX;
	e->path_len = len;
	output(&e->head, K_CGROUP, offsetof(struct group, path) + len);
	return 0;
}

SEC("tp_btf/cgroup_mkdir") int on_cgroup_mkdir(u64 *ctx) { return grouped((void *)ctx[0], (void *)ctx[1], 0, CGROUP_MKDIR); }
SEC("tp_btf/cgroup_rmdir") int on_cgroup_rmdir(u64 *ctx) { return grouped((void *)ctx[0], (void *)ctx[1], 0, CGROUP_RMDIR); }
SEC("tp_btf/cgroup_attach_task") int on_cgroup_attach(u64 *ctx)
{
	return grouped((void *)ctx[0], (void *)ctx[1], (void *)ctx[2], CGROUP_ATTACH);
}
