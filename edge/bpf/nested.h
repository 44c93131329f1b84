/* Changes of TCP state inside changes of TCP state: none is skipped, none is told twice.
 *
 * The kernel skips a program that is already at work on this cpu. A softirq may change one socket's state while `on_state` works on
 * another's, so three programs follow each other on the tracepoint, in this order, for every event:
 *   on_state         takes a note of the socket and its change, does the work
 *   on_state_nested  finds the note: tears it up; finds none: on_state was skipped, does the work
 *   on_state_after   tears up a note that is still there
 * A nested event runs to its end where it interrupts. Inside on_state: the second program finds no note of it, for no change of
 * a socket comes inside that same change. Between programs: all three see it. Inside on_state_nested: the first does the work,
 * the third tears up its note, which must not speak for a later event. Inside on_state_after: the first two sufficed. So the misses
 * of on_state that are not in `nested` are what is lost; misses of the other two lose nothing. Events three deep could be lost, but TCP
 * changes states in tasks and softirqs only.
 *
 * Notes begin once all three are attached, and count once every event that began before is over: the loader moves TWINS on.
 *
 * Other programs need none of this. Tasks alone exec, fork, exit and move between cgroups. The programs on system calls share one
 * guard per cpu with every classic tracepoint, kprobe and bpf(2) call on maps, and no interrupt makes a system call: they are skipped
 * only where a task was pushed off the cpu inside such a bpf(2) call, and counted. */
#pragma once

enum { TWINS_OFF, TWINS_NOTE, TWINS_ON };
MAP(ARRAY, 1, u32, u32) TWINS SEC(".maps");

/* One per context that can interrupt another: task, softirq, interrupt, NMI. `src/probe/nested.rs` reads it as 9 numbers. */
enum { NOTES = 4 };
struct notes { volatile u64 sockets[NOTES], changes[NOTES]; u64 nested; };
MAP(PERCPU_ARRAY, 1, u32, struct notes) NESTED SEC(".maps");

INL u32 twins(void)
{
	u32 zero = 0, *twins = bpf_map_lookup_elem(&TWINS, &zero);
	return twins ? *(volatile u32 *)twins : TWINS_OFF;
}

INL struct notes *notes(void)
{
	u32 zero = 0;
	return bpf_map_lookup_elem(&NESTED, &zero);
}

/* Answers 1 where the work is the caller's. Without room for a note it is left to the twin. */
INL int note(u64 *ctx)
{
	u32 stage = twins();
	struct notes *n = stage == TWINS_OFF ? 0 : notes();
	if (!n) return 1;
#pragma unroll
	for (int i = 0; i < NOTES; i++) {
		if (n->sockets[i]) continue;
		n->changes[i] = ctx[1] << 32 | ctx[2];
		n->sockets[i] = ctx[0];
		return 1;
	}
	if (stage == TWINS_ON) n->nested--; /* not a miss of on_state */
	return stage != TWINS_ON;
}

INL int tear(struct notes *n, u64 *ctx)
{
#pragma unroll
	for (int i = 0; i < NOTES; i++) {
		if (n->sockets[i] != ctx[0] || n->changes[i] != (ctx[1] << 32 | ctx[2])) continue;
		n->sockets[i] = 0;
		return 1;
	}
	return 0;
}
