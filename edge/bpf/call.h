/* Sensitive system calls: what was asked at the entry, what became of it at the exit, as one record.
 *
 * Two programs serve every call. The loader says in SHAPES, by the call's number, what it is and where its paths stand, so that no
 * number of an architecture stands here. Filtered before anything is kept: most ptrace and bpf requests, sockets that are neither raw
 * nor packet, mappings that are not writable and executable, descriptors other than 0 to 2. A process has an allowance per second and
 * call; what it makes beyond is counted in DROPS, not told.
 *
 * Paths are read at the exit, when the kernel has read them too: a thread of the caller may have written over them between. The
 * directory they start from is the kernel's. io_uring and 32-bit calls pass by here and are not seen. */

const volatile u64 CALLS_PER_SECOND = 0;   /* 0: no limit */
const volatile u64 CHANGES_PER_SECOND = 0; /* the same for changes of files */

enum rule { R_ALL, R_PTRACE, R_BPF, R_SOCKET, R_DUP, R_KILL, R_WX, R_CHMOD };
enum { NO_ARGUMENT = 0xff, CWD = 0xfe };
enum { BPF_PROG_LOAD = 5 };

/* `path`, `to`, `text`, `aux`: numbers of arguments. `dir`, `to_dir`: the descriptor that a path starts from, or CWD. A `dir` without
 * `path` is the object itself. `src/probe/call_table.rs` fills it. */
struct shape { u8 call, rule, change, path, dir, to, to_dir, text, aux, pad[7]; };
MAP(ARRAY, 512, u32, struct shape) SHAPES SEC(".maps");

/* Threads inside a call. */
struct pending {
	u64 args[8]; /* six, and two that make every index of three bits valid */
	u64 id, caps, target_start;
	u32 credentials[4];
	u32 mnt_ns, net_ns, target_pid, pad;
};
MAP(LRU_HASH, 8192, u64, struct pending) PENDING SEC(".maps");

/* Set before the hooks are taken off one by one, which takes the kernel seconds. */
MAP(ARRAY, 1, u32, u32) STOPPED SEC(".maps");

struct spender { u64 start; u32 pid, call; };
struct spent { u64 second, count; };
MAP(LRU_HASH, 8192, struct spender, struct spent) SPENT SEC(".maps");

INL struct sock *inet_of(struct file *file)
{
	struct socket *socket = 0;
	struct inode *inode = 0;
	struct sock *sk = 0;
	u16 family = 0, mode = 0;
	if (!file) return 0;
	READ(inode, file, f_inode);
	READ(mode, inode, i_mode);
	if ((mode & 0170000) != 0140000) return 0;
	READ(socket, file, private_data);
	READ(sk, socket, sk);
	if (!sk) return 0;
	READ(family, sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : 0;
}

/* Requests that take hold of another process or write into it; not the reads and steps of a debugger at work. */
INL int ptrace_matters(u64 request)
{
	return request == 0 /* TRACEME */ || request == 16 /* ATTACH */ || request == 0x4206 /* SEIZE */ ||
	       (request >= 4 && request <= 6) /* POKE */ || request == 13 /* SETREGS */ || request == 0x4205 /* SETREGSET */;
}

/* Commands that make, attach or pin something; not the look-ups and iterations of a program at work. */
INL int bpf_matters(u64 command)
{
	const u64 commands = 1ull << 0 | 1ull << 5 | 1ull << 6 | 1ull << 7 | 1ull << 8 | 1ull << 9 | 1ull << 10 | 1ull << 17 |
			     1ull << 18 | 1ull << 28 | 1ull << 29 | 1ull << 33 | 1ull << 34 | 1ull << 36;
	return command < 64 && (commands >> command & 1);
}

INL int socket_matters(u64 family, u64 type)
{
	type &= 15;
	return family == 17 /* AF_PACKET */ || ((family == AF_INET || family == AF_INET6) && (type == 3 /* RAW */ || type == 10 /* PACKET */));
}

INL int matters(struct shape *shape, u64 *args)
{
	u64 zeroth = args[0], first = args[1], second = args[2];
	switch (shape->rule) {
	case R_WX: return (second & 6) == 6;
	case R_PTRACE: return ptrace_matters(zeroth);
	case R_BPF: return bpf_matters((u32)zeroth);
	case R_SOCKET: return socket_matters((u32)zeroth, first);
	case R_KILL: return (u32)(shape->aux == 2 ? second : first) != 0; /* signal 0 only asks whether the process is there */
	case R_DUP: return (shape->aux == NO_ARGUMENT || ((u32)first <= 2 && (u32)zeroth != (u32)first)) && inet_of(fd_file((s32)zeroth));
	}
	return 1;
}

INL void credentials(u32 *ids, u64 *caps, struct task_struct *task)
{
	const struct cred *cred = task->real_cred;
	ids[0] = cred->uid.val;
	ids[1] = cred->euid.val;
	ids[2] = cred->gid.val;
	ids[3] = cred->egid.val;
	READ(*caps, cred, cap_effective);
}

/* Attached to the entries of all of them. */
SEC("tracepoint/syscalls/sys_enter_ptrace") int e_call(struct sys_enter *ctx)
{
	u32 number = ctx->id;
	struct shape *shape = bpf_map_lookup_elem(&SHAPES, &number);
	struct pending p = {};
	if (!shape || !shape->call) return 0;
	/* A program that loads an argument is refused where a call has fewer. Those beyond a call's own are noise. */
	bpf_probe_read_kernel(p.args, sizeof(ctx->args), ctx->args);
	if (!matters(shape, p.args)) return 0;
	struct task_struct *task = bpf_get_current_task_btf();
	if ((u32)task->tgid == SELF) return 0;
	struct nsproxy *ns = task->nsproxy;
	u64 thread = bpf_get_current_pid_tgid();
	p.id = number;
	credentials(p.credentials, &p.caps, task);
	p.mnt_ns = ns ? ns->mnt_ns->ns.inum : 0;
	p.net_ns = ns ? ns->net_ns->ns.inum : 0;
	bpf_map_update_elem(&PENDING, &thread, &p, BPF_ANY);
	return 0;
}

/* Whom a signal reaches: the number that kill(2) was given is one of the caller's pid namespace, or of a group. */
SEC("tp_btf/signal_generate") int on_signal(u64 *ctx)
{
	struct task_struct *task = (void *)ctx[2];
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *p = bpf_map_lookup_elem(&PENDING, &thread);
	if (!p || p->target_pid || ctx[1] <= 1 /* made by the kernel */) return 0;
	p->target_start = task->group_leader->start_boottime;
	p->target_pid = task->tgid;
	return 0;
}

INL int spend(u32 pid, u64 start, u32 call, u64 limit, u32 kind)
{
	if (!limit) return 1;
	struct spender key = { .start = start, .pid = pid, .call = call };
	u64 second = bpf_ktime_get_boot_ns() / 1000000000;
	struct spent *spent = bpf_map_lookup_elem(&SPENT, &key), first = { .second = second, .count = 1 };
	if (!spent) { bpf_map_update_elem(&SPENT, &key, &first, BPF_ANY); return 1; }
	if (spent->second != second) { spent->second = second; spent->count = 0; }
	if (__sync_fetch_and_add(&spent->count, 1) < limit) return 1;
	dropped(kind);
	return 0;
}

INL int allowed(u32 pid, u64 start, struct shape *shape, u64 mode)
{
	u64 limit = shape->change ? CHANGES_PER_SECOND : CALLS_PER_SECOND;
	if (shape->rule == R_CHMOD && (mode & 06000)) return 1; /* set-id bits must not drown */
	return spend(pid, start, shape->call, limit, shape->change ? K_CHANGE_LIMITED : K_CALL_LIMITED);
}

/* Reads a path of the caller to `data + n`; answers its length. `absolute` says that it needs no directory. */
INL u32 passed(struct call *e, u32 n, u64 address, u32 cut, int *absolute)
{
	u8 begin = 0;
	long got = bpf_probe_read_user_str(e->data + n, PATH_MAX, (void *)address);
	if (got <= 0) return 0;
	if (got == PATH_MAX) e->flags |= cut;
	bpf_probe_read_kernel(&begin, 1, e->data + n);
	*absolute = begin == '/';
	return at_most(got - 1, PATH_MAX - 1);
}

/* Writes the directory (or object) that `dir` names to `data + n`; answers its length. */
INL u32 start_of(struct call *e, u32 n, struct scratch *s, struct pending *p, u8 dir, u32 cut)
{
	struct path *path = 0;
	u32 is_cut = 0, bare = 0, len = 0;
	s32 fd = -100;
	if (dir != CWD) fd = p->args[dir & 7];
	if (fd == -100) {
		struct fs_struct *fs = bpf_get_current_task_btf()->fs;
		if (fs) path = ADDRESS(fs, pwd);
	} else {
		struct file *file = fd_file(fd);
		if (file) path = ADDRESS(file, f_path);
	}
	if (!path) return 0;
	len = walk_into(e->data + n, s, path, &is_cut, &bare);
	if (is_cut) e->flags |= cut;
	return at_most(len, PATH_MAX - 1);
}

/* What only some calls have. */
INL void particulars(struct call *e, struct shape *shape, struct pending *p, s64 result)
{
	struct file *file = 0;
	struct inode *inode = 0;
	unsigned long number = 0;
	if (shape->rule == R_BPF) {
		bpf_probe_read_user(&e->extra, 4, (void *)p->args[1]);
		if (p->args[0] == BPF_PROG_LOAD) bpf_probe_read_user(e->text, sizeof(e->text), (void *)p->args[1] + 48);
	}
	if (shape->rule == R_DUP && result >= 0) {
		struct sock *sk = inet_of(fd_file(result));
		u64 key = (u64)sk;
		u16 protocol = 0;
		if (!sk) return;
		struct owned *known = bpf_map_lookup_elem(&SOCKETS, &key);
		if (known) e->conn.role = known->conn.role;
		READ(e->conn.cookie, sk, __sk_common.skc_cookie);
		READ(protocol, sk, sk_protocol);
		endpoints(&e->conn, sk);
		e->extra = protocol;
	}
	if (shape->aux != NO_ARGUMENT && shape->rule == R_ALL) { /* a number behind a pointer, or a descriptor's inode */
		u64 argument = p->args[shape->aux & 7];
		file = argument < 1 << 20 ? fd_file(argument) : 0;
		if (argument >= 1 << 20) bpf_probe_read_user(&e->extra, 4, (void *)argument + 8);
		if (file) { READ(inode, file, f_inode); READ(number, inode, i_ino); e->inode = number; }
	}
}

/* Attached to the exits of all of them. */
SEC("tracepoint/syscalls/sys_exit_ptrace") int x_call(struct sys_exit *ctx)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct pending *known = bpf_map_lookup_elem(&PENDING, &thread);
	if (!known) return 0;
	struct pending p = *known;
	long gone = bpf_map_delete_elem(&PENDING, &thread);
	u32 number = ctx->id, n, len, zero = 0, *stopped = bpf_map_lookup_elem(&STOPPED, &zero);
	struct shape *shape = bpf_map_lookup_elem(&SHAPES, &number);
	struct task_struct *task = bpf_get_current_task_btf();
	struct scratch *s = scratch();
	if (!s || !shape || p.id != number || !stopped || *(volatile u32 *)stopped) return 0;
	u32 kind = shape->change ? K_CHANGE : K_CALL;
	if (gone) { dropped(kind); return 0; } /* pushed out while it was copied: whose it is, nobody knows */
	if (shape->rule == R_DUP && ctx->ret > 2) return 0;
	if (shape->rule == R_KILL && p.target_pid == (u32)task->tgid) return 0;
	u64 mode = shape->aux == NO_ARGUMENT ? 0 : p.args[shape->aux & 7];
	if (!allowed(task->tgid, task->group_leader->start_boottime, shape, mode)) return 0;

	struct call *e = &s->call;
	int absolute = 0;
	__builtin_memset(e, 0, offsetof(struct call, data));
	describe(&e->head.who, task);
#pragma unroll
	for (int i = 0; i < 6; i++) e->args[i] = p.args[i];
	e->result = ctx->ret;
	e->call = shape->call;
	e->caps_before = p.caps;
	e->target_start = p.target_start;
	e->target_pid = p.target_pid;
	e->mnt_before = p.mnt_ns;
	e->net_before = p.net_ns;
#pragma unroll
	for (int i = 0; i < 4; i++) e->before[i] = p.credentials[i];
	credentials(e->after, &e->caps, task);
	e->head.who.uid = p.credentials[0]; /* who asked for it */
	particulars(e, shape, &p, ctx->ret);
	if (shape->text != NO_ARGUMENT) bpf_probe_read_user_str(e->text, sizeof(e->text), (void *)p.args[shape->text & 7]);

	n = 0;
	if (shape->path != NO_ARGUMENT) n = passed(e, 0, p.args[shape->path & 7], PATH_CUT, &absolute);
	e->path_len = n;
	if (shape->dir != NO_ARGUMENT && !absolute) {
		len = start_of(e, n, s, &p, shape->dir, BASE_CUT);
		e->base_len = len;
		n = at_most(n + len, 2 * PATH_MAX);
	}
	absolute = 0;
	if (shape->to != NO_ARGUMENT) {
		len = passed(e, n, p.args[shape->to & 7], TO_CUT, &absolute);
		e->to_len = len;
		n = at_most(n + len, 3 * PATH_MAX);
		if (shape->to_dir != NO_ARGUMENT && !absolute) {
			len = start_of(e, n, s, &p, shape->to_dir, TO_BASE_CUT);
			e->to_base_len = len;
			n += len;
		}
	}
	output(&e->head, kind, offsetof(struct call, data) + at_most(n, sizeof(e->data)));
	return 0;
}

/* Numbers of the calls for modules. A kernel without loadable modules has no tracepoints for them, yet attempts are worth telling:
 * there, and only there, this program looks at the number of every call. It runs after seccomp and before the look-up of the call, so
 * that ENOSYS is what the caller gets. */
const volatile u64 MODULE_CALLS[3] = {};

SEC("tp_btf/sys_enter") int e_absent(u64 *ctx)
{
	u32 number = ctx[1];
	if (number != MODULE_CALLS[0] && number != MODULE_CALLS[1] && number != MODULE_CALLS[2]) return 0;
	struct task_struct *task = bpf_get_current_task_btf();
	struct shape *shape = bpf_map_lookup_elem(&SHAPES, &number);
	struct scratch *s = scratch();
	if (!s || !shape || !shape->call || (u32)task->tgid == SELF) return 0;
	if (EXISTS(task->thread_info.status) && (task->thread_info.status & 2)) return 0; /* TS_COMPAT: another table of numbers */
	if (!allowed(task->tgid, task->group_leader->start_boottime, shape, 0)) return 0;
	struct call *e = &s->call;
	__builtin_memset(e, 0, offsetof(struct call, data));
	describe(&e->head.who, task);
	credentials(e->before, &e->caps_before, task);
	credentials(e->after, &e->caps, task);
	e->call = shape->call;
	e->result = -38; /* ENOSYS */
	e->flags = NO_ARGUMENTS;
	output(&e->head, K_CALL, offsetof(struct call, data));
	return 0;
}
