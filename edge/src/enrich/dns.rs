//! A message of DNS as columns: the name asked for, the answers, what the server said.
//!
//! Promise: no bytes panic, and work is bounded by the message: names follow pointers backwards only and are at most 255 bytes, as
//! RFC 1035 has it. A message that was cut gives what is whole. Names are lower case without the last dot (`.` is the root), for they
//! mean the same in any case; bytes that are no letters, digits, `-` or `_` are written `\DDD`.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Map, Value};
use weir_schema::{Fields, Kind, Text};

use super::{Texts, json};
use crate::probe::raw::Dns;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    id: u16,
    is_answer: bool,
    /// The server cut it, or we did.
    is_cut: bool,
    rcode: u8,
    name: String,
    question_type: u16,
    answers: Vec<String>,
    /// Answers of types that are not shown.
    others: u32,
}

/// Why bytes are no message: a short closed list.
type NotDns = &'static str;

pub(super) fn fields(dns: &Dns, texts: &mut Texts) -> (Kind, Fields) {
    let mut fields = texts.datagram(dns.local, dns.peer, dns.cookie);
    let bytes = Some(u64::from(dns.whole));
    (fields.bytes_sent, fields.bytes_received) = if dns.inward { (None, bytes) } else { (bytes, None) };
    let mut detail = Map::new();
    let kind = match message(&dns.payload) {
        Ok(message) => {
            tell(&message, &mut fields, &mut detail);
            Kind::Dns
        }
        Err(why) => {
            detail.insert("not_dns".into(), why.into());
            // What uses the port for something else is a datagram like any other.
            if dns.inward { Kind::Dns } else { Kind::Send }
        }
    };
    if dns.payload.len() < dns.whole as usize {
        detail.insert("message_truncated".into(), true.into());
    }
    fields.detail = json(detail);
    (kind, fields)
}

fn tell(message: &Message, fields: &mut Fields, detail: &mut Map<String, Value>) {
    fields.dns_name = Some(message.name.as_str().into());
    detail.insert("message".into(), if message.is_answer { "answer" } else { "question" }.into());
    detail.insert("id".into(), message.id.into());
    detail.insert("qtype_name".into(), type_name(message.question_type).into());
    if message.is_answer {
        fields.result = Some(message.rcode.into());
        fields.dns_answers = Some(Text::from(Value::from(message.answers.clone()).to_string()));
    }
    if message.is_cut {
        detail.insert("truncated".into(), true.into());
    }
    if message.others > 0 {
        detail.insert("other_answers".into(), message.others.into());
    }
}

fn message(bytes: &[u8]) -> Result<Message, NotDns> {
    let word = |at: usize| -> Result<u16, NotDns> {
        bytes.get(at..).and_then(<[u8]>::first_chunk).copied().map(u16::from_be_bytes).ok_or("shorter than a header")
    };
    let (id, flags, questions, answers) = (word(0)?, word(2)?, word(4)?, word(6)?);
    word(10)?;
    if flags >> 11 & 15 > OPCODE_MAX {
        return Err("no operation of DNS");
    }
    if questions != 1 {
        return Err("not one question");
    }
    let (name, at) = name(bytes, HEADER)?;
    let question_type = u16::from_be_bytes(*bytes.get(at..).and_then(<[u8]>::first_chunk).ok_or("ends in its question")?);
    let mut message = Message {
        id,
        is_answer: flags & 0x8000 != 0,
        is_cut: flags & 0x0200 != 0,
        rcode: (flags & 15) as u8,
        name,
        question_type,
        answers: Vec::new(),
        others: 0,
    };
    let mut at = at + 4;
    if !message.is_answer {
        return Ok(message);
    }
    for _ in 0..answers {
        match record(bytes, at) {
            Some((answer, next)) => {
                at = next;
                match answer.filter(|_| message.answers.len() < ANSWERS_MAX) {
                    Some(answer) => message.answers.push(answer),
                    None => message.others += 1,
                }
            }
            None => {
                message.is_cut = true;
                break;
            }
        }
    }
    Ok(message)
}

/// One answer as text, where its type is shown, and where the next begins; `None`: it ends too early.
fn record(bytes: &[u8], at: usize) -> Option<(Option<String>, usize)> {
    let (_, at) = name(bytes, at).ok()?;
    let head: [u8; 10] = *bytes.get(at..)?.first_chunk()?;
    let kind = u16::from_be_bytes([head[0], head[1]]);
    let begin = at + head.len();
    let end = begin + usize::from(u16::from_be_bytes([head[8], head[9]]));
    let data = bytes.get(begin..end)?;
    let named = |skip: usize| name(bytes, begin + skip).ok().filter(|(_, next)| *next <= end).map(|(name, _)| name);
    let text = match kind {
        TYPE_A => data.try_into().ok().map(|four: [u8; 4]| Ipv4Addr::from(four).to_string()),
        TYPE_AAAA => data.try_into().ok().map(|six: [u8; 16]| Ipv6Addr::from(six).to_string()),
        TYPE_NS | TYPE_CNAME | TYPE_PTR | TYPE_DNAME => named(0),
        TYPE_MX => named(2),
        TYPE_SRV => named(6),
        TYPE_TXT => Some(strings(data)),
        _ => None,
    };
    Some((text, end))
}

/// The strings of a TXT answer, joined as programs read them.
fn strings(mut data: &[u8]) -> String {
    let mut whole = Vec::new();
    while let Some((len, rest)) = data.split_first() {
        let len = usize::from(*len).min(rest.len());
        whole.extend_from_slice(&rest[..len]);
        data = &rest[len..];
    }
    String::from_utf8_lossy(&whole).into_owned()
}

/// The name at `at`, and where what follows it begins.
fn name(bytes: &[u8], at: usize) -> Result<(String, usize), NotDns> {
    let (mut text, mut here, mut next, mut total) = (String::new(), at, None, 0);
    loop {
        let len = *bytes.get(here).ok_or("ends in a name")?;
        match len >> 6 {
            0 => {}
            3 => {
                let low = *bytes.get(here + 1).ok_or("ends in a name")?;
                let target = usize::from(len & 0x3f) << 8 | usize::from(low);
                next.get_or_insert(here + 2);
                // A pointer leads before itself: every step is nearer to the beginning.
                if target >= here {
                    return Err("a name leads forwards");
                }
                here = target;
                total += 1;
                if total > NAME_BYTES_MAX {
                    return Err("a name is too long");
                }
                continue;
            }
            _ => return Err("a label of no known kind"),
        }
        let len = usize::from(len);
        total += len + 1;
        if total > NAME_BYTES_MAX {
            return Err("a name is too long");
        }
        if len == 0 {
            break;
        }
        let label = bytes.get(here + 1..here + 1 + len).ok_or("ends in a name")?;
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => text.push(char::from(byte.to_ascii_lowercase())),
                other => text.push_str(&format!("\\{other:03}")),
            }
        }
        here += 1 + len;
    }
    if text.is_empty() {
        text.push('.');
    }
    Ok((text, next.unwrap_or(here + 1)))
}

fn type_name(number: u16) -> String {
    let known = TYPES.iter().find(|(known, _)| *known == number);
    known.map_or_else(|| format!("TYPE{number}"), |(_, name)| (*name).to_owned())
}

const HEADER: usize = 12;
/// A name on the wire, RFC 1035 section 2.3.4.
const NAME_BYTES_MAX: usize = 255;
/// Operations known to IANA: up to DSO.
const OPCODE_MAX: u16 = 6;
/// Answers shown: 1280 bytes hold about 70 addresses.
const ANSWERS_MAX: usize = 80;
const TYPE_A: u16 = 1;
const TYPE_NS: u16 = 2;
const TYPE_CNAME: u16 = 5;
const TYPE_PTR: u16 = 12;
const TYPE_MX: u16 = 15;
const TYPE_TXT: u16 = 16;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
const TYPE_DNAME: u16 = 39;
const TYPES: [(u16, &str); 17] = [
    (TYPE_A, "A"),
    (TYPE_NS, "NS"),
    (TYPE_CNAME, "CNAME"),
    (6, "SOA"),
    (10, "NULL"),
    (TYPE_PTR, "PTR"),
    (TYPE_MX, "MX"),
    (TYPE_TXT, "TXT"),
    (TYPE_AAAA, "AAAA"),
    (TYPE_SRV, "SRV"),
    (35, "NAPTR"),
    (TYPE_DNAME, "DNAME"),
    (43, "DS"),
    (48, "DNSKEY"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (255, "ANY"),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(flags: u16, answers: u16, rest: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [7u16, flags, 1, answers, 0, 0] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(rest.concat());
        bytes
    }

    const QUESTION: &[u8] = b"\x03WwW\x07example\x03org\0\0\x01\0\x01";

    fn answer(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xc0, 12];
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1, 0, 0, 0, 60]);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn a_question_and_its_answers() {
        let asked = message(&bytes(0x0100, 0, &[QUESTION])).unwrap();
        assert_eq!((asked.id, asked.is_answer, asked.name.as_str(), asked.question_type), (7, false, "www.example.org", 1));
        let cname = answer(TYPE_CNAME, b"\x03cdn\xc0\x10");
        let six = answer(TYPE_AAAA, &"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        let rest = [cname, answer(TYPE_A, &[192, 0, 2, 1]), answer(46, b"signature"), six, answer(TYPE_TXT, b"\x02ab\x01c")];
        let told = message(&bytes(0x8180, 5, &[QUESTION, &rest.concat()])).unwrap();
        assert_eq!(told.answers, ["cdn.example.org", "192.0.2.1", "2001:db8::1", "abc"]);
        assert_eq!((told.others, told.rcode, told.is_cut), (1, 0, false));
        let none = message(&bytes(0x8183, 0, &[QUESTION])).unwrap();
        assert_eq!((none.rcode, none.answers.len()), (3, 0));
        let cut = message(&bytes(0x8180, 5, &[QUESTION, &rest.concat()[..30]])).unwrap();
        assert_eq!((cut.answers.len(), cut.is_cut), (1, true));
    }

    #[test]
    fn names_are_bounded_and_readable() {
        let check = |bytes: &[u8], at: usize, expected: Result<(&str, usize), NotDns>| {
            assert_eq!(name(bytes, at), expected.map(|(text, next)| (text.to_owned(), next)));
        };
        check(b"\0", 0, Ok((".", 1)));
        check(b"\x03a.\xff\x01-\0", 0, Ok(("a\\046\\255.-", 7)));
        check(b"\x01a\0\x01b\xc0\0", 3, Ok(("b.a", 7)));
        check(b"\xc0\0", 0, Err("a name leads forwards"));
        check(b"\xc0\x02\xc0\0", 2, Err("a name leads forwards"));
        check(b"\x40a", 0, Err("a label of no known kind"));
        check(b"\x05ab", 0, Err("ends in a name"));
        check(&[vec![63; 64].as_slice(); 5].concat(), 0, Err("a name is too long"));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = message(&bytes);
        }

        #[test]
        fn hostile_messages_never_panic(answers in any::<u16>(), rest in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..640, byte in any::<u8>()) {
            let mut bytes = bytes(0x8180, answers, &[QUESTION, &rest]);
            let _ = message(&bytes);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            if let Ok(message) = message(&bytes) {
                prop_assert!(message.answers.len() <= ANSWERS_MAX && message.name.len() <= 4 * NAME_BYTES_MAX);
            }
        }

        #[test]
        fn a_cut_message_keeps_what_is_whole(count in 0u8..20, cut in 0usize..400) {
            let all: Vec<_> = (0..count).map(|last| answer(TYPE_A, &[10, 0, 0, last])).collect();
            let bytes = bytes(0x8180, count.into(), &[QUESTION, &all.concat()]);
            let cut = cut.min(bytes.len());
            match message(&bytes[..cut]) {
                Err(_) => prop_assert!(cut < HEADER + QUESTION.len()),
                Ok(message) => {
                    let whole = cut.saturating_sub(HEADER + QUESTION.len()) / 16;
                    prop_assert_eq!(message.answers.len(), whole);
                    prop_assert_eq!(message.is_cut, whole < count.into());
                }
            }
        }
    }
}
