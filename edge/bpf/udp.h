/* UDP: who sends to whom, and the questions and answers of DNS with their bytes.
 *
 * Two programs at the root cgroup see a datagram once each, whatever call made it (sendto, sendmsg, sendmmsg, write, io_uring) and
 * whatever namespace it is in: going out before it is cut into fragments, in the sender's own context; coming in when it reaches its
 * socket, in any context. Both always let it pass. The first datagram of a socket to a peer is told; what follows is summed up and told
 * with the first datagram after UDP_REPEAT_NS. To and from port 53 every datagram is told, with what it carries.
 *
 * Not seen: sends that fail before there is a packet, IPv6 behind extension headers, sockets of the kernel without a user's socket. No
 * scratch here: unlike the other hooks these may be pushed off the cpu by one another, so records are built in the ring. */

const volatile u32 UDP_SENDS = 0;
const volatile u32 UDP_DNS = 0;
const volatile u64 UDP_REPEAT_NS = 0;
const volatile u64 SENDS_PER_SECOND = 0; /* of one process; 0: no limit */
const volatile u64 DNS_PER_SECOND = 0;

struct peer { u64 cookie; u8 address[16]; u16 port, family; u32 pad; };
struct flow { u64 until, bytes, datagrams; };
MAP(LRU_HASH, 16384, struct peer, struct flow) PEERS SEC(".maps");

/* Who asked on this socket: the answer comes in a context of its own. */
MAP(LRU_HASH, 8192, u64, struct who) ASKERS SEC(".maps");

enum { IPPROTO_UDP = 17, UDP_HEADER = 8, PORT_DNS = 53 };
enum { SPENT_SENDS = 256, SPENT_QUESTIONS, SPENT_ANSWERS }; /* beside the calls in SPENT */

struct datagram { u32 at, len; u16 family, from_port, to_port, pad; u8 from[16], to[16]; };

INL int datagram(struct __sk_buff *skb, struct datagram *d)
{
	u8 *data = (void *)(u64)skb->data, *end = (void *)(u64)skb->data_end;
	struct { u16 from, to, len, sum; } udp = {};
	if (data + 20 > end) return 0;
	if (data[0] >> 4 == 4) {
		if (data[9] != IPPROTO_UDP || ((data[6] & 0x1f) | data[7])) return 0; /* a later fragment has no ports */
		d->family = AF_INET;
		d->at = (data[0] & 15) * 4;
		bpf_skb_load_bytes(skb, 12, d->from, 4);
		bpf_skb_load_bytes(skb, 16, d->to, 4);
	} else {
		if (data + 40 > end || data[0] >> 4 != 6 || data[6] != IPPROTO_UDP) return 0;
		d->family = AF_INET6;
		d->at = 40;
		bpf_skb_load_bytes(skb, 8, d->from, 16);
		bpf_skb_load_bytes(skb, 24, d->to, 16);
	}
	if (bpf_skb_load_bytes(skb, d->at, &udp, UDP_HEADER)) return 0;
	d->from_port = bswap16(udp.from);
	d->to_port = bswap16(udp.to);
	d->at += UDP_HEADER;
	d->len = skb->len > d->at ? skb->len - d->at : 0; /* the header's length is 0 in the largest IPv6 ones */
	return 1;
}

INL void ends(struct conn *c, struct datagram *d, u64 cookie, int inward)
{
	c->cookie = cookie;
	c->family = d->family;
	c->role = ROLE_CLIENT;
	c->local_port = inward ? d->to_port : d->from_port;
	c->peer_port = inward ? d->from_port : d->to_port;
	__builtin_memcpy(c->local, inward ? d->to : d->from, 16);
	__builtin_memcpy(c->peer, inward ? d->from : d->to, 16);
}

/* `room`: a constant. What is longer is cut; `whole` says how long it was. */
INL void message(struct __sk_buff *skb, struct datagram *d, struct who *who, u64 cookie, int inward, const u32 room)
{
	struct dns *e = bpf_ringbuf_reserve(&EVENTS, offsetof(struct dns, payload) + room, 0);
	if (!e) { dropped(K_DNS); return; }
	__builtin_memset(e, 0, offsetof(struct dns, payload));
	e->head.kind = K_DNS;
	e->head.size = offsetof(struct dns, payload) + room;
	e->head.boot_ns = bpf_ktime_get_boot_ns();
	if (who) e->head.who = *who;
	if (inward) e->head.who.tid = 0;
	e->conn.net_ns = e->head.who.net_ns;
	ends(&e->conn, d, cookie, inward);
	e->inward = inward;
	e->whole = d->len;
	u32 len = d->len > room ? room : d->len;
	asm volatile("" : "+r"(len));
	if (len >= 1 && len <= room && !bpf_skb_load_bytes(skb, d->at, e->payload, len)) e->len = len;
	bpf_ringbuf_submit(e, wake());
}

INL void question(struct __sk_buff *skb, struct datagram *d, struct task_struct *task, u64 cookie)
{
	struct who who = {};
	describe(&who, task);
	bpf_map_update_elem(&ASKERS, &cookie, &who, BPF_ANY);
	if (who.pid == SELF || !spend(who.pid, who.start, SPENT_QUESTIONS, DNS_PER_SECOND, K_DNS_LIMITED)) return;
	if (d->len > DNS_SMALL) message(skb, d, &who, cookie, 0, DNS_LARGE);
	else message(skb, d, &who, cookie, 0, DNS_SMALL);
}

INL void sent(struct datagram *d, struct task_struct *task, u64 cookie)
{
	struct peer peer = { .cookie = cookie, .port = d->to_port, .family = d->family };
	u64 now = bpf_ktime_get_boot_ns(), next = now + UDP_REPEAT_NS, bytes = d->len, datagrams = 1;
	__builtin_memcpy(peer.address, d->to, 16);
	struct flow *flow = bpf_map_lookup_elem(&PEERS, &peer), first = { .until = next };
	if (flow) {
		u64 until = *(volatile u64 *)&flow->until;
		/* Not due, or another cpu tells it just now. */
		if (now < until || __sync_val_compare_and_swap(&flow->until, until, next) != until) {
			__sync_fetch_and_add(&flow->bytes, bytes);
			__sync_fetch_and_add(&flow->datagrams, 1);
			return;
		}
		bytes += __sync_lock_test_and_set(&flow->bytes, 0);
		datagrams += __sync_lock_test_and_set(&flow->datagrams, 0);
	} else {
		bpf_map_update_elem(&PEERS, &peer, &first, BPF_ANY);
	}
	int may = spend(task->tgid, task->group_leader->start_boottime, SPENT_SENDS, SENDS_PER_SECOND, K_UDP_LIMITED);
	struct udp *e = may ? RESERVE(K_UDP, struct udp) : 0;
	if (!e) { /* counted; its bytes are told next time */
		flow = bpf_map_lookup_elem(&PEERS, &peer);
		if (!flow) return;
		__sync_fetch_and_add(&flow->bytes, bytes);
		__sync_fetch_and_add(&flow->datagrams, datagrams);
		return;
	}
	describe(&e->head.who, task);
	e->conn.net_ns = e->head.who.net_ns;
	ends(&e->conn, d, cookie, 0);
	e->bytes = bytes;
	e->datagrams = datagrams;
	bpf_ringbuf_submit(e, wake());
}

SEC("cgroup_skb/egress") int on_egress(struct __sk_buff *skb)
{
	struct datagram d = {};
	if (!datagram(skb, &d)) return 1;
	struct task_struct *task = bpf_get_current_task_btf();
	u64 cookie = bpf_get_socket_cookie(skb);
	if (d.to_port == PORT_DNS && UDP_DNS) question(skb, &d, task, cookie);
	else if (UDP_SENDS && (u32)task->tgid != SELF) sent(&d, task, cookie);
	return 1;
}

SEC("cgroup_skb/ingress") int on_ingress(struct __sk_buff *skb)
{
	struct datagram d = {};
	if (!datagram(skb, &d) || d.from_port != PORT_DNS) return 1;
	u64 cookie = bpf_get_socket_cookie(skb);
	struct who *asker = bpf_map_lookup_elem(&ASKERS, &cookie); /* none: older than the agent, or nobody asked */
	if (asker && asker->pid == SELF) return 1;
	if (!spend(asker ? asker->pid : 0, asker ? asker->start : 0, SPENT_ANSWERS, DNS_PER_SECOND, K_DNS_LIMITED)) return 1;
	if (d.len > DNS_SMALL) message(skb, &d, asker, cookie, 1, DNS_LARGE);
	else message(skb, &d, asker, cookie, 1, DNS_SMALL);
	return 1;
}
