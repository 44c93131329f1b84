/* Cgroups: made, removed, joined. Made comes before the first process is in it, so short containers have a name. */

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
