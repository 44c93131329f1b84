/* TCP: one record when a connection is made, accepted, fails or ends, and when a socket begins to listen.
 *
 * The kernel changes a socket's state in any context, so the process that owns it is kept in SOCKETS from connect, listen or
 * accept on, with the initial sequence numbers: the close carries all of it. An accept may be told after the close of the same
 * connection, when the peer was faster. */

struct owned { struct who who; struct conn conn; };
MAP(LRU_HASH, 65536, u64, struct owned) SOCKETS SEC(".maps");

/* Threads inside connect(2) whose socket has not begun to connect: what is left at the exit failed before a packet. */
struct attempt { u64 address; s64 fd; };
MAP(LRU_HASH, 4096, u64, struct attempt) ATTEMPTS SEC(".maps");

enum { ESTABLISHED = 1, SYN_SENT = 2, SYN_RECV = 3, FIN_WAIT1 = 4, FIN_WAIT2 = 5, CLOSED = 7, CLOSE_WAIT = 8, LISTEN = 10 };
enum { NEW_SYN_RECV = 12 };
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

/* Two ends that connect to each other at once go from SYN_SENT through SYN_RECV: both are clients. */
INL int connecting(struct owned *known)
{
	return known->conn.role == ROLE_CLIENT && !(known->conn.flags & HAS_ISNS);
}

INL void closed(struct sock *sk, u64 key, int old)
{
	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key), stranger = {};
	int failed = old == SYN_SENT || (old == SYN_RECV && known && connecting(known));
	if (failed || (old != CLOSED && old != LISTEN && old != SYN_RECV && old != NEW_SYN_RECV)) {
		if (known && failed) endpoints(&known->conn, sk);
		if (!known) { /* older than the agent, or pushed out of SOCKETS */
			stranger.conn.cookie = bpf_get_socket_cookie(sk);
			endpoints(&stranger.conn, sk);
			if (failed) stranger.conn.role = ROLE_CLIENT;
		}
		tell(sk, failed ? OP_FAIL : OP_CLOSE, known ? known : &stranger);
	}
	if (known) bpf_map_delete_elem(&SOCKETS, &key);
}

INL void change(struct sock *sk, int old, int now)
{
	u64 key = (u64)sk;
	if (sk->sk_protocol != IPPROTO_TCP) return;
	if (now == SYN_SENT) begin(sk, key, ROLE_CLIENT);
	if (now == LISTEN) begin(sk, key, ROLE_LISTENER);
	if (now == CLOSED) closed(sk, key, old);
	if (now != ESTABLISHED) return;

	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key);
	if (known && (old == SYN_SENT || connecting(known))) {
		established(&known->conn, sk);
		tell(sk, OP_CONNECT, known);
		return;
	}
	struct owned o = {};
	o.conn.cookie = bpf_get_socket_cookie(sk);
	o.conn.role = old == SYN_SENT ? ROLE_CLIENT : ROLE_SERVER;
	established(&o.conn, sk);
	if (old == SYN_SENT) tell(sk, OP_CONNECT, &o);
	bpf_map_update_elem(&SOCKETS, &key, &o, BPF_ANY); /* a server end is told when a process accepts it */
}

SEC("tp_btf/inet_sock_set_state") int on_state(u64 *ctx)
{
	if (note(ctx)) change((void *)ctx[0], ctx[1], ctx[2]);
	return 0;
}

SEC("tp_btf/inet_sock_set_state") int on_state_nested(u64 *ctx)
{
	struct notes *n = notes();
	if (!n || tear(n, ctx) || twins() != TWINS_ON) return 0;
	n->nested++;
	change((void *)ctx[0], ctx[1], ctx[2]);
	return 0;
}

SEC("tp_btf/inet_sock_set_state") int on_state_after(u64 *ctx)
{
	struct notes *n = notes();
	if (n) tear(n, ctx);
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

/* Attached to the exits of accept and accept4. */
SEC("tracepoint/syscalls/sys_exit_accept4") int x_accept(struct sys_exit *ctx)
{
	struct sock *sk = ctx->ret < 0 ? 0 : tcp_of(fd_file(ctx->ret));
	u64 key = (u64)sk;
	u8 state = CLOSED;
	if (!sk) return 0;
	struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key), o = {};
	describe(&o.who, bpf_get_current_task_btf());
	if (known) {
		o.conn = known->conn;
		/* The peer may have closed it on another cpu meanwhile: then the place is another connection's by now. */
		if (bpf_map_lookup_elem(&SOCKETS, &key) == known) {
			known->who = o.who;
			known->conn.flags |= ACCEPTED;
			o.conn.flags |= ACCEPTED;
			tell(sk, OP_ACCEPT, &o);
			return 0;
		}
		__builtin_memset(&o.conn, 0, sizeof(o.conn));
	}
	READ(o.conn.cookie, sk, __sk_common.skc_cookie);
	READ(state, sk, __sk_common.skc_state);
	o.conn.role = ROLE_SERVER;
	o.conn.flags = ACCEPTED;
	endpoints(&o.conn, sk);
	tell(sk, OP_ACCEPT, &o);
	if (state != CLOSED) bpf_map_update_elem(&SOCKETS, &key, &o, BPF_NOEXIST);
	return 0;
}

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
	int open = state == ESTABLISHED || state == CLOSE_WAIT || state == FIN_WAIT1 || state == FIN_WAIT2;
	if (!tcp || !(open || state == LISTEN)) return 0;
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
