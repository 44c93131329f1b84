/* Processes: exec, fork, exit, and those that were there before. */

struct life { u64 start; u64 pid; };
MAP(LRU_HASH, 4096, struct life, u64) ENDED SEC(".maps");

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
