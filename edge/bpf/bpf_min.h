/* What the programs need of the kernel, declared by hand: helpers, map types and CO-RE views of kernel structs.
 *
 * No vmlinux.h and no libbpf headers: a struct below names only the fields we read, and the loader relocates every access
 * to the running kernel's layout. An empty struct with CORE crashes clang-19, so leave none. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define INL static inline __attribute__((always_inline))
#define CORE __attribute__((preserve_access_index))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define MAP(kind, entries, key_type, value_type)                                                    \
	struct {                                                                                   \
		__uint(type, MAP_##kind);                                                          \
		__uint(max_entries, entries);                                                      \
		__type(key, key_type);                                                             \
		__type(value, value_type);                                                         \
	}
#define offsetof(type, field) __builtin_offsetof(type, field)
#define bswap16(v) __builtin_bswap16(v)

/* Reads a field through a pointer that the verifier does not know. */
#define READ(dst, p, field) \
	bpf_probe_read_kernel(&(dst), sizeof(dst), __builtin_preserve_access_index(&(p)->field))
#define ADDRESS(p, field) ((void *)__builtin_preserve_access_index(&(p)->field))
#define EXISTS(field) __builtin_preserve_field_info(field, 2)

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_HASH = 9, MAP_LPM_TRIE = 11, MAP_RINGBUF = 27 };
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_F_NO_PREALLOC = 1 };
enum { RINGBUF_NO_WAKEUP = 1, RINGBUF_FORCE_WAKEUP = 2, RINGBUF_AVAIL_DATA = 0 };

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*const bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*const bpf_skb_load_bytes)(void *skb, u32 at, void *to, u32 size) = (void *)26;
static u64 (*const bpf_get_socket_cookie)(void *sk) = (void *)46;
static long (*const bpf_probe_read_user)(void *dst, u32 size, const void *src) = (void *)112;
static long (*const bpf_probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static long (*const bpf_probe_read_user_str)(void *dst, u32 size, const void *src) = (void *)114;
static long (*const bpf_probe_read_kernel_str)(void *dst, u32 size, const void *src) = (void *)115;
static u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_seq_write)(void *seq, const void *from, u32 size) = (void *)127;
static long (*const bpf_ringbuf_output)(void *ring, void *from, u64 size, u64 flags) = (void *)130;
static void *(*const bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *record, u64 flags) = (void *)132;
static u64 (*const bpf_ringbuf_query)(void *ring, u64 what) = (void *)134;
static struct tcp_sock *(*const bpf_skc_to_tcp_sock)(void *sk) = (void *)137;
static struct task_struct *(*const bpf_get_current_task_btf)(void) = (void *)158;

/* ---- cgroups ---- */
enum cgroup_subsys_id { cpuset_cgrp_id, memory_cgrp_id, pids_cgrp_id };
struct kernfs_node { u64 id; } CORE;
struct cgroup_root { int hierarchy_id; } CORE;
struct cgroup_subsys_state { struct cgroup *cgroup; } CORE;
struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
	struct cgroup_subsys_state *subsys[16];
} CORE;
struct css_set { struct cgroup_subsys_state *subsys[16]; struct cgroup *dfl_cgrp; } CORE;

/* ---- files ---- */
struct qstr { u32 len; const u8 *name; } CORE;
struct dentry { struct dentry *d_parent; struct qstr d_name; struct inode *d_inode; } CORE;
struct super_block { u32 s_dev; } CORE;
struct inode { u16 i_mode; unsigned long i_ino; u32 i_nlink; struct super_block *i_sb; } CORE;
struct vfsmount { struct dentry *mnt_root; } CORE;
struct mount { struct mount *mnt_parent; struct dentry *mnt_mountpoint; struct vfsmount mnt; } CORE;
struct path { struct vfsmount *mnt; struct dentry *dentry; } CORE;
struct file { u32 f_flags; struct path f_path; struct inode *f_inode; void *private_data; } CORE;
struct fdtable { u32 max_fds; struct file **fd; } CORE;
struct files_struct { struct fdtable *fdt; } CORE;
struct fs_struct { struct path pwd; } CORE;

/* ---- processes ---- */
typedef struct { u32 val; } kuid_t;
typedef struct { u32 val; } kgid_t;
typedef struct { u64 val; } kernel_cap_t;
struct ns_common { u32 inum; } CORE;
struct mnt_namespace { struct ns_common ns; } CORE;
struct pid_namespace { struct ns_common ns; } CORE;
struct net { struct ns_common ns; } CORE;
struct nsproxy { struct mnt_namespace *mnt_ns; struct net *net_ns; } CORE;
struct upid { int nr; struct pid_namespace *ns; } CORE;
struct pid { u32 level; struct upid numbers[1]; } CORE;
struct cred { kuid_t uid; kgid_t gid; kuid_t euid; kgid_t egid; kernel_cap_t cap_effective; } CORE;
struct mm_struct { unsigned long arg_start, arg_end; struct file *exe_file; } CORE;
struct tty_struct { char name[64]; } CORE;
typedef struct { int counter; } atomic_t;
struct signal_struct {
	atomic_t live;
	int nr_threads;
	int group_exit_code;
	u32 flags;
	struct pid *pids[4];
	struct tty_struct *tty;
} CORE;
struct thread_info { u32 status; } CORE;
struct task_struct {
	struct thread_info thread_info;
	int pid, tgid;
	struct task_struct *real_parent, *group_leader;
	u64 start_boottime;
	int exit_code;
	char comm[16];
	kuid_t loginuid;
	const struct cred *real_cred;
	struct pid *thread_pid;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	struct mm_struct *mm;
	struct files_struct *files;
	struct fs_struct *fs;
	struct signal_struct *signal;
} CORE;
struct linux_binprm { const char *filename; } CORE;

/* ---- sockets ---- */
typedef struct { struct net *net; } possible_net_t;
typedef struct { s64 counter; } atomic64_t;
struct in6_addr { u8 bytes[16]; };
struct sock_common {
	u16 skc_family;
	u8 skc_state;
	u16 skc_num, skc_dport;
	u32 skc_daddr, skc_rcv_saddr;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
	possible_net_t skc_net;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
} CORE;
struct sock { struct sock_common __sk_common; u16 sk_protocol; int sk_err; struct socket *sk_socket; } CORE;
struct socket { struct file *file; struct sock *sk; } CORE;
struct inet_sock { struct sock sk; u16 inet_sport; } CORE;
struct inet_connection_sock { struct inet_sock icsk_inet; } CORE;
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	u64 bytes_sent, bytes_retrans, bytes_acked, bytes_received;
	u32 snd_una, snd_nxt, rcv_nxt, srtt_us, total_retrans;
} CORE;

/* ---- contexts ---- */
struct __sk_buff { u32 len, pkt_type, mark, queue_mapping, protocol, others[14], data, data_end; };
struct sys_enter { u64 common; s64 id; u64 args[6]; };
struct sys_exit { u64 common; s64 id, ret; };
struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; } CORE;
struct bpf_iter__task { struct bpf_iter_meta *meta; struct task_struct *task; } CORE;
struct bpf_iter__tcp { struct bpf_iter_meta *meta; struct sock_common *sk_common; } CORE;
struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task; u32 fd; struct file *file; } CORE;
