/* File opens, filtered before they cost ring space: by direction, by prefixes of the resolved path, and by repetition.
 *
 * The hooks run when the system call returns, on the file the kernel opened: no race with the caller's memory. io_uring opens
 * without a system call and is not seen. */

const volatile u32 SELF = 0;           /* the agent's tgid: its own opens would feed themselves */
const volatile u32 OPEN_WRITES = 0;    /* 1: report every open for writing */
const volatile u64 OPEN_REPEAT_NS = 0; /* the same open of the same process again within this time is left out */

/* Paths that are reported whatever the open's mode: byte prefixes. */
struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, struct prefix);
	__type(value, u32);
} OPEN_PREFIXES SEC(".maps");

/* Names that were walked lately and whether a prefix matched: a library opened by every process is walked once. */
struct name { u64 dentry, parent, text, inode; };
struct verdict { u64 until; u64 wanted; };
MAP(LRU_HASH, 8192, struct name, struct verdict) VERDICTS SEC(".maps");

struct repeat { u64 start, parent, text; u32 pid, writes; };
MAP(LRU_HASH, 8192, struct repeat, u64) REPEATS SEC(".maps");

INL int prefix_matches(struct scratch *s, u32 at)
{
	u32 len = PATH_END - at;
	if (len > 64) len = 64;
	s->prefix.bits = len * 8;
	__builtin_memset(s->prefix.path, 0, 64);
	bpf_probe_read_kernel(s->prefix.path, len, s->path + (at & PATH_END));
	return bpf_map_lookup_elem(&OPEN_PREFIXES, &s->prefix) != 0;
}

/* Attached to the exits of open, openat and openat2. */
SEC("tracepoint/syscalls/sys_exit_openat") int x_open(struct sys_exit *ctx)
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
	struct repeat repeat = { .parent = name.parent, .text = name.text, .pid = task->tgid, .writes = writes };
	repeat.start = task->group_leader->start_boottime;
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
