//! UDP and DNS, done by a child and compared as the columns that are shipped: cases of `calls`.

use std::net::{Ipv4Addr, UdpSocket};

use weir_edge::probe::raw::{Udp, What};
use weir_edge::probe::{Options, RawEvent, UdpPolicy};

use super::calls::Case;
use super::storms::NONE;
use super::{Lab, Skip};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "udp",
        needs: "cgroup_skb/egress",
        script: "
r = socket.socket(2, 2); r.bind(('127.0.0.1', 0)); d = r.getsockname()
s = socket.socket(2, 2); s.sendto(b'a' * 100, d); s.sendto(b'a' * 50, d)
c = socket.socket(2, 2); c.connect(d); c.send(b'b' * 200)
w = socket.socket(2, 2); w.connect(d); os.write(w.fileno(), b'c' * 300)
m = socket.socket(2, 2); m.sendmsg([b'd' * 300, b'e' * 4000], [], 0, d)
x = socket.socket(10, 2); x.sendto(b'f' * 7, ('::ffff:127.0.0.1', d[1]))
say(TO=d[1], S=s.getsockname()[1], C=c.getsockname()[1], W=w.getsockname()[1], M=m.getsockname()[1], X=x.getsockname()[1])
y = socket.socket(10, 2); y.sendto(b'', ('::1', d[1])); say(Y=y.getsockname()[1])",
        told: "
send | result=0 proto=udp direction=out src_ip=127.0.0.1 src_port=$S dst_ip=127.0.0.1 dst_port=$TO bytes_sent=100 pid=$PID
send | src_port=$C dst_ip=127.0.0.1 dst_port=$TO bytes_sent=200
send | src_port=$W dst_ip=127.0.0.1 dst_port=$TO bytes_sent=300
send | src_port=$M dst_ip=127.0.0.1 dst_port=$TO bytes_sent=4300
send | src_ip=127.0.0.1 src_port=$X dst_ip=127.0.0.1 dst_port=$TO bytes_sent=7
send | src_ip=::1 src_port=$Y dst_ip=::1 dst_port=$TO bytes_sent=0",
    },
    Case {
        name: "dns",
        needs: "cgroup_skb/ingress",
        script: "
import fcntl, threading
assert libc.unshare(0x40000000) == 0
fcntl.ioctl(socket.socket(2, 2), 0x8914, struct.pack('16sH14x', b'lo', 0x49))
def answer(q):
    name = q[12:q.index(b'\\0', 12) + 5]; n = 40 if b'many' in name else 1
    head = lambda flags, count: q[:2] + struct.pack('>HHHHH', flags, 1, count, 0, 0) + name
    if b'none' in name: return head(0x8183, 0)
    if name[-3] == 28: return head(0x8180, 1) + b'\\xc0\\x0c\\0\\x1c\\0\\1\\0\\0\\0\\x3c\\0\\x10' + socket.inet_pton(10, '2001:db8::5')
    cname = b'\\xc0\\x0c\\0\\5\\0\\1\\0\\0\\0\\x3c\\0\\6\\3cdn\\xc0\\x0c'
    return head(0x8180, n + 1) + cname + b''.join(b'\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4' + bytes([192, 0, 2, i]) for i in range(n))
def serve(s):
    while True:
        q, a = s.recvfrom(999); s.sendto(answer(q), a)
for family, at in ((2, '127.0.0.53'), (10, '::1')):
    s = socket.socket(family, 2); s.bind((at, 53)); threading.Thread(target=serve, args=(s,), daemon=True).start()
def ask(name, kind, at='127.0.0.53', family=2, write=False):
    c = socket.socket(family, 2); c.settimeout(5); c.connect((at, 53))
    q = b'\\0\\7\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0' + b''.join(bytes([len(p)]) + p for p in name.split(b'.')) + struct.pack('>BHH', 0, kind, 1)
    os.write(c.fileno(), q) if write else c.send(q)
    c.recv(9999); return c.getsockname()[1]
say(A=ask(b'A.Example.org', 1), AAAA=ask(b'a.example.org', 28, write=True), NONE=ask(b'none.example', 1), MANY=ask(b'many.example', 1))
say(SIX=ask(b'six.example', 1, '::1', 10))
c = socket.socket(2, 2); c.connect(('127.0.0.9', 53)); c.send(b'no message'); say(BAD=c.getsockname()[1])",
        told: r#"
dns  | dns_name=a.example.org result=- dns_answers=- src_port=$A dst_ip=127.0.0.53 dst_port=53 proto=udp direction=out bytes_sent=31 pid=$PID detail.message=question detail.qtype_name=A detail.id=7
dns  | dns_name=a.example.org result=0 dns_answers=["cdn.a.example.org","192.0.2.0"] src_port=$A dst_ip=127.0.0.53 dst_port=53 bytes_received=65 bytes_sent=- pid=$PID tid=- detail.message=answer
dns  | dns_name=a.example.org result=0 dns_answers=["2001:db8::5"] src_port=$AAAA detail.qtype_name=AAAA pid=$PID
dns  | dns_name=none.example result=3 dns_answers=[] src_port=$NONE detail.message=answer pid=$PID
dns  | dns_name=many.example result=0 src_port=$MANY detail.message=answer bytes_received=688 detail.message_truncated=-
dns  | dns_name=six.example src_port=$SIX src_ip=::1 dst_ip=::1 detail.message=answer result=0
send | src_port=$BAD dst_ip=127.0.0.9 dst_port=53 bytes_sent=10 detail.message=-"#,
    },
];

fn ours(events: &[RawEvent]) -> Vec<Udp> {
    let of = |event: &RawEvent| match (&event.who, &event.what) {
        (Some(who), What::Udp(udp)) if who.pid == std::process::id() => Some(*udp),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

fn only(udp: UdpPolicy) -> Options {
    Options { hooks: NONE, udp, ..super::all() }
}

pub(super) fn to_one_peer_are_summed_up() -> Result<(), Skip> {
    const MADE: u64 = 1_000;
    let mut lab = Lab::new(only(UdpPolicy { repeat_ms: 1, ..UdpPolicy::default() }))?;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    let send = |i: u64| socket.send_to(&vec![0; (i % 100) as usize], "127.0.0.1:9").expect("loopback");
    (0..MADE).for_each(|i| {
        send(i);
    });
    // Later than the time within which they are summed up: tells what is left.
    std::thread::sleep(std::time::Duration::from_millis(20));
    send(0);
    lab.settle();
    let told = ours(&lab.events);
    let sum = |of: fn(&Udp) -> u64| told.iter().map(of).sum::<u64>();
    assert!(told.len() >= 2 && told.len() < MADE as usize, "{}", told.len());
    assert_eq!((sum(|udp| udp.datagrams), sum(|udp| udp.bytes)), (MADE + 1, (0..MADE).map(|i| i % 100).sum()));
    Ok(())
}

pub(super) fn beyond_the_limit_are_counted() -> Result<(), Skip> {
    const MADE: u64 = 5_000;
    let lab = Lab::new(only(UdpPolicy { sends_per_second_max: 10, dns: false, ..UdpPolicy::default() }))?;
    let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback");
    for i in 0..MADE {
        let [.., high, low] = i.to_be_bytes();
        socket.send_to(b"x", (Ipv4Addr::new(127, 9, high, low), 9)).expect("loopback");
    }
    let (events, dropped) = lab.finish();
    let told = ours(&events).len() as u64;
    assert!((10..MADE / 2).contains(&told), "{told} told, 10 a second allowed");
    // The counter is the machine's: others may have passed their limits as well.
    assert!(told + dropped.udp_limited >= MADE && dropped.udp == 0, "{told} told, {dropped:?}");
    Ok(())
}
