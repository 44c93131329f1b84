/* The kernel half of the agent: processes, TCP connections, UDP and DNS, file opens, cgroups and sensitive system calls, as
 * records on one ring.
 *
 * Promises: a record that finds no room is counted per kind in DROPS, never silently lost; the reader is woken once 64 KiB wait
 * (else it looks every 10 ms), which makes a record 2 to 12 times cheaper than a wake-up each; nothing is modified or refused.
 * Kernel floor 5.11 (BTF, ring buffer, socket and task helpers in tracing programs). No pt_regs: one object serves every
 * little-endian architecture. Layout of the records: records.h. */
#include "bpf_min.h"
#include "records.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* ---- maps; the loader sets the sizes of EVENTS and SOCKETS ---- */
struct { __uint(type, MAP_RINGBUF); __uint(max_entries, 1 << 23); } EVENTS SEC(".maps");
MAP(PERCPU_ARRAY, KINDS, u32, u64) DROPS SEC(".maps");

struct prefix { u32 bits; u8 path[64]; };

/* One per cpu: records of variable size are built here. The hooks that use it run with preemption off and not in interrupts. */
enum { PATH_END = PATH_MAX - 1 };
struct scratch {
	u8 path[PATH_MAX + 256]; /* built from PATH_END downwards */
	union { struct exec exec; struct open open; struct group group; struct call call; };
	struct prefix prefix;
};
MAP(PERCPU_ARRAY, 1, u32, struct scratch) SCRATCH SEC(".maps");

/* ---- the ring ---- */
INL u64 wake(void)
{
	return bpf_ringbuf_query(&EVENTS, RINGBUF_AVAIL_DATA) >= (1 << 16) ? RINGBUF_FORCE_WAKEUP : RINGBUF_NO_WAKEUP;
}

INL void dropped(u32 kind)
{
	u64 *count = bpf_map_lookup_elem(&DROPS, &kind);
	if (count) __sync_fetch_and_add(count, 1); /* one program may interrupt another here */
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

#include "process.h"
#include "nested.h"
#include "tcp.h"
#include "file.h"
#include "cgroup.h"
#include "call.h"
#include "udp.h"
