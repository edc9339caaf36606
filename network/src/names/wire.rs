//! Questions and answers as bytes: what came from a network becomes the planner's words, and its answer a message that fits.
//! The server calls it. Whatever comes in, it ends at once and without a panic; what goes out is never larger than asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Asked};
use hickory_proto::rr::{DNSClass, RecordType};
use planner::network::names::{Data, Kind, Record, Reply, TTL};

/// The largest message by UDP, in bytes: what needs no fragments on any path. Askers without EDNS get 512.
pub const UDP_LIMIT: usize = UDP_LIMIT_WORD as usize;
const UDP_LIMIT_WORD: u16 = 1232;
/// The largest message by TCP.
pub const TCP_LIMIT: usize = 65_535;
/// The largest question there may be: header, name, and a few options.
pub const QUESTION_LIMIT: usize = 2048;
const HEADER: usize = 12;
/// Our options in an answer, in bytes.
const OPTIONS: usize = 11;
/// In a header's third byte.
const RESPONSE: u8 = 0x80;
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
/// In its fourth: that others can be asked here, and codes.
const RECURSION: u8 = 0x80;
const MALFORMED: u8 = 1;
const FAILED: u8 = 2;
const NO_SUCH_NAME: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;
/// Where a header counts the records of a section.
const ANSWERS: usize = 6;
const AUTHORITY: usize = 8;
const ADDITIONAL: usize = 10;

/// A question that can be answered.
#[derive(Clone, Debug)]
pub struct Question {
    message: Message,
    pub kind: RecordType,
    /// Whether it is about the internet: the only class there is.
    pub internet: bool,
    /// How large an answer may be, in bytes.
    pub limit: usize,
}

/// What a message is.
#[derive(Debug)]
pub enum Read {
    Question(Box<Question>),
    /// It gets this answer.
    Reject(Vec<u8>),
    /// It gets none: what is no question, or too short for one.
    Ignore,
}

/// By which way it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Udp,
    Tcp,
}

/// How a question is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Refused,
    /// Nobody could be asked.
    Failed,
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([
        bytes.get(at).copied().unwrap_or(0),
        bytes.get(at + 1).copied().unwrap_or(0),
    ])
}

/// A header alone, of this code, for what cannot be read any further.
fn header_only(bytes: &[u8], code: u8) -> Vec<u8> {
    let at = |at: usize| bytes.get(at).copied().unwrap_or(0);
    // A response, of the same kind, with its wish for recursion; we offer it.
    let mut answer = vec![at(0), at(1), RESPONSE | (at(2) & 0x79), RECURSION | code];
    answer.resize(HEADER, 0);
    answer
}

/// Reads a message.
pub fn read(bytes: &[u8], way: Way) -> Read {
    if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
        return Read::Ignore;
    }
    if (bytes[2] >> 3) & 0xf != 0 {
        return Read::Reject(header_only(bytes, NOT_IMPLEMENTED));
    }
    // One question, nothing else; options and a signature at most. Counts are looked at before anything is read by them.
    if word(bytes, 4) != 1 || word(bytes, 6) != 0 || word(bytes, 8) != 0 || word(bytes, 10) > 2 {
        return Read::Reject(header_only(bytes, MALFORMED));
    }
    if bytes.len() > QUESTION_LIMIT {
        return Read::Reject(header_only(bytes, MALFORMED));
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return Read::Reject(header_only(bytes, MALFORMED));
    };
    let Some(asked) = message.queries.first() else {
        return Read::Reject(header_only(bytes, MALFORMED));
    };
    let kind = asked.query_type();
    let internet = asked.query_class() == DNSClass::IN;
    let limit = match way {
        Way::Udp => usize::from(message.max_payload()).clamp(512, UDP_LIMIT),
        Way::Tcp => TCP_LIMIT,
    };
    let question = Question {
        kind,
        internet,
        limit,
        message,
    };
    if question.message.version() > 0 {
        return Read::Reject(question.coded(0, 1));
    }
    // Copies of a zone are nobody's.
    if matches!(kind, RecordType::AXFR | RecordType::IXFR | RecordType::OPT) {
        return Read::Reject(question.refuse(Code::Refused));
    }
    Read::Question(Box::new(question))
}

impl Question {
    fn asked(&self) -> &Asked {
        // One was found when it was read.
        &self.message.queries[0]
    }

    /// The labels of its name, from the left.
    #[must_use]
    pub fn labels(&self) -> Vec<&[u8]> {
        self.asked().name().iter().collect()
    }

    /// What it asks for, in the planner's words.
    #[must_use]
    pub fn words(&self) -> Kind {
        if self.kind == RecordType::A {
            Kind::A
        } else if self.kind == RecordType::AAAA {
            Kind::Aaaa
        } else if self.kind == RecordType::SRV {
            Kind::Srv
        } else if self.kind == RecordType::PTR {
            Kind::Ptr
        } else if self.kind == RecordType::SOA {
            Kind::Soa
        } else if self.kind == RecordType::NS {
            Kind::Ns
        } else if self.kind == RecordType::ANY {
            Kind::Any
        } else {
            Kind::Other
        }
    }

    /// An answer that has this code and no records; `high` is what of a code only options have room for.
    fn coded(&self, code: u8, high: u8) -> Vec<u8> {
        Writer::new(self, code).end(high)
    }

    #[must_use]
    pub fn refuse(&self, code: Code) -> Vec<u8> {
        match code {
            Code::Refused => self.coded(REFUSED, 0),
            Code::Failed => self.coded(FAILED, 0),
        }
    }

    /// That the answer is too large for this way: who gets it comes again by TCP.
    fn too_large(&self) -> Vec<u8> {
        let mut writer = Writer::new(self, 0);
        writer.bytes[2] |= TRUNCATED;
        writer.end(0)
    }

    /// The planner's answer as a message, as much of it as fits: what does not fit goes, first what was not asked for, then
    /// answers, and it says so. Some resolvers know no TCP and take what there is.
    #[must_use]
    pub fn reply(&self, reply: &Reply, domain: &str) -> Vec<u8> {
        let Reply {
            exists,
            records,
            additional,
            zone,
        } = reply;
        let mut writer = Writer::new(self, if *exists { 0 } else { NO_SUCH_NAME });
        writer.bytes[2] |= AUTHORITATIVE;
        for record in records {
            if !writer.record(ANSWERS, record, domain) {
                writer.bytes[2] |= TRUNCATED;
                return writer.end(0);
            }
        }
        if records.is_empty() {
            writer.zone(*zone, domain);
        }
        for record in additional {
            if !writer.record(ADDITIONAL, record, domain) {
                break;
            }
        }
        writer.end(0)
    }

    /// The same question, to be asked of another server under this number.
    #[must_use]
    pub fn onward(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.message.metadata.recursion_desired;
        message.metadata.checking_disabled = self.message.metadata.checking_disabled;
        message.add_query(self.asked().clone());
        if let Some(edns) = &self.message.edns {
            let mut ours = Edns::new();
            ours.set_max_payload(UDP_LIMIT_WORD);
            ours.set_dnssec_ok(edns.flags().dnssec_ok);
            message.set_edns(ours);
        }
        message.to_vec().unwrap_or_default()
    }

    /// Another server's answer, under the asker's own number. None where it does not answer what `onward` asked.
    #[must_use]
    pub fn answered(&self, onward: &[u8], answer: &[u8]) -> Option<Vec<u8>> {
        if !answers(onward, answer) {
            return None;
        }
        if answer.len() > self.limit {
            return Some(self.too_large());
        }
        let mut answer = answer.to_vec();
        answer[..2].copy_from_slice(&self.message.metadata.id.to_be_bytes());
        // In the asker's own letters: it may have mixed large and small ones to know its answer by.
        let question = question_of(onward)?;
        answer[HEADER..HEADER + question.len()].copy_from_slice(question);
        Some(answer)
    }
}

/// The question of a message that we wrote: its name has no pointers.
fn question_of(message: &[u8]) -> Option<&[u8]> {
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1 + length;
        if length == 0 {
            return message.get(HEADER..at + 4);
        }
    }
}

/// Whether a message answers the question that we sent: a response of the same number, about the same.
#[must_use]
pub fn answers(sent: &[u8], message: &[u8]) -> bool {
    let Some(question) = question_of(sent) else {
        return false;
    };
    let Some(said) = message.get(HEADER..HEADER + question.len()) else {
        return false;
    };
    let (name, kind) = question.split_at(question.len() - 4);
    let (said_name, said_kind) = said.split_at(said.len() - 4);
    word(sent, 0) == word(message, 0)
        && message[2] & 0xf8 == 0x80
        && word(message, 4) == 1
        && name.eq_ignore_ascii_case(said_name)
        && kind == said_kind
}

/// Whether an answer was too large for the way it came.
#[must_use]
pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// Whether a server answers that it has no answer: failed, not able, or not willing.
#[must_use]
pub fn is_failure(message: &[u8]) -> bool {
    message
        .get(3)
        .is_some_and(|code| matches!(code & 0x0f, MALFORMED | FAILED | NOT_IMPLEMENTED | REFUSED))
}

/// An answer that is being written, never beyond its limit. The question's name is where all answers' names point to.
struct Writer<'a> {
    question: &'a Question,
    bytes: Vec<u8>,
    room: usize,
    /// Where names are that others may point to.
    names: BTreeMap<String, u16>,
}

impl<'a> Writer<'a> {
    fn new(question: &'a Question, code: u8) -> Self {
        let asked = &question.message.metadata;
        let [first, second] = asked.id.to_be_bytes();
        let desired = u8::from(asked.recursion_desired);
        let unchecked = if asked.checking_disabled { 0x10 } else { 0 };
        let mut bytes = vec![first, second, RESPONSE | desired, RECURSION | unchecked | code];
        bytes.resize(HEADER, 0);
        bytes[5] = 1;
        for label in question.asked().name() {
            // Labels were read from a message: they have at most 63 bytes.
            bytes.push(u8::try_from(label.len()).unwrap_or(0));
            bytes.extend_from_slice(label);
        }
        bytes.push(0);
        bytes.extend(u16::from(question.kind).to_be_bytes());
        bytes.extend(u16::from(question.asked().query_class()).to_be_bytes());
        let options = if question.message.edns.is_some() { OPTIONS } else { 0 };
        Self {
            question,
            bytes,
            room: question.limit.saturating_sub(options),
            names: BTreeMap::new(),
        }
    }

    /// With options where the asker has them.
    fn end(mut self, high: u8) -> Vec<u8> {
        if self.question.message.edns.is_some() {
            let [first, second] = UDP_LIMIT_WORD.to_be_bytes();
            self.bytes.extend([0, 0, 41, first, second, high, 0, 0, 0, 0, 0]);
            self.count(ADDITIONAL);
        }
        self.bytes
    }

    fn count(&mut self, section: usize) {
        let count = word(&self.bytes, section).saturating_add(1);
        self.bytes[section..section + 2].copy_from_slice(&count.to_be_bytes());
    }

    /// Writes a record; false, and nothing written, where it does not fit.
    fn record(&mut self, section: usize, record: &Record, domain: &str) -> bool {
        let Record { owner, data } = record;
        let before = self.bytes.len();
        let written = match owner {
            Some(owner) => self.name(owner),
            None => {
                self.bytes.extend([0xc0, HEADER as u8]);
                true
            }
        };
        if written && self.data(data, domain) && self.bytes.len() <= self.room {
            self.count(section);
            return true;
        }
        self.bytes.truncate(before);
        self.names.retain(|_, at| usize::from(*at) < before);
        false
    }

    /// The SOA of the zone that the question's name is in, by the number of its labels.
    fn zone(&mut self, labels: usize, domain: &str) {
        let name = self.question.asked().name();
        let skipped = usize::from(name.num_labels()).saturating_sub(labels);
        let before: usize = name.iter().take(skipped).map(|label| label.len() + 1).sum();
        // A name's 255 bytes are within a pointer's reach.
        let pointer = u16::try_from(HEADER + before).unwrap_or(0) | 0xc000;
        let start = self.bytes.len();
        self.bytes.extend(pointer.to_be_bytes());
        if self.data(&Data::Soa, domain) && self.bytes.len() <= self.room {
            self.count(AUTHORITY);
        } else {
            self.bytes.truncate(start);
        }
    }

    /// Type, class, TTL, length and content. False where a name in it is none.
    fn data(&mut self, data: &Data, domain: &str) -> bool {
        let kind = match data {
            Data::Address(IpAddr::V4(_)) => RecordType::A,
            Data::Address(IpAddr::V6(_)) => RecordType::AAAA,
            Data::Srv { port: _, target: _ } => RecordType::SRV,
            Data::Ptr(_) => RecordType::PTR,
            Data::Ns(_) => RecordType::NS,
            Data::Soa => RecordType::SOA,
        };
        self.bytes.extend(u16::from(kind).to_be_bytes());
        self.bytes.extend([0, 1]);
        self.bytes.extend(TTL.to_be_bytes());
        let start = self.bytes.len();
        self.bytes.extend([0, 0]);
        let written = match data {
            Data::Address(IpAddr::V4(address)) => {
                self.bytes.extend(address.octets());
                true
            }
            Data::Address(IpAddr::V6(address)) => {
                self.bytes.extend(address.octets());
                true
            }
            Data::Srv { port, target } => {
                self.bytes.extend([0, 0, 0, 1]);
                self.bytes.extend(port.to_be_bytes());
                // Whole: some who read it know no pointers here. Others may point to it.
                self.whole(target)
            }
            Data::Ptr(name) | Data::Ns(name) => self.whole(name),
            Data::Soa => {
                // Nobody copies this zone: its numbers say nothing, but that what is not there is not to be remembered.
                let named = self.whole(domain) && self.whole(&format!("hostmaster.{domain}"));
                for number in [1, 3600, 600, 86_400, TTL] {
                    self.bytes.extend(number.to_be_bytes());
                }
                named
            }
        };
        let Ok(length) = u16::try_from(self.bytes.len() - start - 2) else {
            return false;
        };
        self.bytes[start..start + 2].copy_from_slice(&length.to_be_bytes());
        written
    }

    /// A name, as a pointer where it is there already.
    fn name(&mut self, name: &str) -> bool {
        match self.names.get(name) {
            Some(at) => {
                self.bytes.extend((at | 0xc000).to_be_bytes());
                true
            }
            None => self.whole(name),
        }
    }

    /// A name in full. False for what is none: an empty or too long label, or more than fits.
    fn whole(&mut self, name: &str) -> bool {
        let at = self.bytes.len();
        for label in name.split('.') {
            match u8::try_from(label.len()) {
                Ok(length @ 1..=63) => self.bytes.push(length),
                Ok(_) | Err(_) => return false,
            }
            self.bytes.extend_from_slice(label.as_bytes());
        }
        self.bytes.push(0);
        if let Ok(at) = u16::try_from(at)
            && at < 0x4000
        {
            self.names.insert(name.to_owned(), at);
        }
        self.bytes.len() - at <= 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData};
    use planner::network::names::Record as Said;

    /// A question as a resolver sends it, with options of that payload.
    fn asked(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    fn question(bytes: &[u8], way: Way) -> Question {
        match read(bytes, way) {
            Read::Question(question) => *question,
            other @ (Read::Reject(_) | Read::Ignore) => panic!("{other:?}"),
        }
    }

    fn addresses(count: u32) -> Reply {
        let records = (0..count).map(|at| Said {
            owner: None,
            data: Data::Address(IpAddr::V4((0x0ad2_0000 + at).into())),
        });
        Reply {
            exists: true,
            records: records.collect(),
            additional: Vec::new(),
            zone: 2,
        }
    }

    const NAME: &str = "Web.shop.reeve.internal.";

    #[test]
    fn an_answer_is_never_larger_than_asked_and_says_what_it_lacks() {
        for (payload, way, limit) in [
            (None, Way::Udp, 512),
            (Some(0), Way::Udp, 512),
            (Some(1000), Way::Udp, 1000),
            (Some(65_535), Way::Udp, 1232),
            (None, Way::Tcp, 65_535),
            (Some(512), Way::Tcp, 65_535),
        ] {
            let question = question(&asked(NAME, RecordType::A, payload), way);
            for count in [0, 1, 27, 28, 29, 60, 70, 80, 2_000, 5_000] {
                let bytes = question.reply(&addresses(count), "reeve.internal");
                let message = Message::from_vec(&bytes).unwrap();
                assert!(bytes.len() <= limit, "{} of {limit}", bytes.len());
                assert_eq!(message.edns.is_some(), payload.is_some());
                let got = message.answers.len();
                assert_eq!(message.metadata.truncation, got < count as usize, "{count}");
                let room = limit - bytes.len();
                assert!(got == count as usize || room < 16, "{room} bytes are left");
                assert_eq!(message.authorities.len(), usize::from(count == 0));
                assert_eq!(message.queries[0].name().to_ascii(), NAME, "in its own letters");
            }
        }
    }

    #[test]
    fn what_was_not_asked_for_goes_first_and_unsaid() {
        let target = |at: u32| format!("{at}.web.shop.reeve.internal");
        let srv = |count: u32| Reply {
            exists: true,
            records: (0..count)
                .map(|at| Said {
                    owner: None,
                    data: Data::Srv {
                        port: 80,
                        target: target(at),
                    },
                })
                .collect(),
            additional: (0..count)
                .map(|at| Said {
                    owner: Some(target(at)),
                    data: Data::Address(IpAddr::V4((0x0ad2_0000 + at).into())),
                })
                .collect(),
            zone: 2,
        };
        let question = question(&asked(NAME, RecordType::SRV, None), Way::Udp);
        let read = |count| Message::from_vec(&question.reply(&srv(count), "reeve.internal")).unwrap();
        let both = read(2);
        assert_eq!(
            (both.answers.len(), both.additionals.len(), both.metadata.truncation),
            (2, 2, false)
        );
        let first = read(8);
        assert_eq!((first.answers.len(), first.metadata.truncation), (8, false));
        assert!((1..8).contains(&first.additionals.len()), "as many as fit");
        let cut = read(400);
        assert!(cut.answers.len() < 400 && cut.metadata.truncation);
    }

    #[test]
    fn messages_that_are_no_questions_are_rejected_or_ignored() {
        let good = asked(NAME, RecordType::A, Some(1232));
        let code = |bytes: &[u8]| match read(bytes, Way::Udp) {
            Read::Reject(answer) => {
                assert_eq!(answer[..2], bytes[..2]);
                i16::from(answer[3] & 0xf)
            }
            Read::Ignore => -1,
            Read::Question(_) => -2,
        };
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(code(&good), -2);
        assert_eq!(code(&good[..11]), -1, "no header");
        assert_eq!(code(&changed(2, 0x81)), -1, "an answer");
        assert_eq!(code(&changed(2, 0x29)), 4, "an update");
        assert_eq!(code(&changed(5, 0)), 1, "no question");
        assert_eq!(code(&changed(5, 2)), 1, "two");
        assert_eq!(code(&changed(4, 255)), 1, "very many");
        assert_eq!(code(&changed(11, 200)), 1, "very many records");
        assert_eq!(code(&good[..20]), 1, "half a name");
        let mut long = good.clone();
        long.resize(QUESTION_LIMIT + 1, 0);
        assert_eq!(code(&long), 1);
        assert_eq!(code(&asked(NAME, RecordType::AXFR, None)), 5);
        // Another edition of options: said in the options of the answer.
        let version = good.len() - 5;
        let Read::Reject(answer) = read(&changed(version, 1), Way::Udp) else {
            panic!("taken");
        };
        let message = Message::from_vec(&answer).unwrap();
        assert_eq!(u16::from(message.metadata.response_code), 16);
    }

    #[test]
    fn another_servers_answer_counts_only_for_the_question_that_was_asked() {
        let question = question(&asked("eXample.com.", RecordType::A, None), Way::Udp);
        let onward = question.onward(77);
        let answer = |id: u16, name: &str, kind: RecordType, count: u32| {
            let mut message = Message::response(id, OpCode::Query);
            message.add_query(Asked::query(Name::from_ascii(name).unwrap(), kind));
            for at in 0..count {
                let data = RData::A(A(at.into()));
                message.add_answer(hickory_proto::rr::Record::from_rdata(
                    Name::from_ascii(name).unwrap(),
                    60,
                    data,
                ));
            }
            message.to_vec().unwrap()
        };
        let good = question
            .answered(&onward, &answer(77, "example.com.", RecordType::A, 2))
            .unwrap();
        let message = Message::from_vec(&good).unwrap();
        assert_eq!(message.metadata.id, 0x1234);
        assert_eq!(message.queries[0].name().to_ascii(), "eXample.com.");
        assert_eq!(message.answers.len(), 2);
        for lie in [
            answer(78, "example.com.", RecordType::A, 2),
            answer(77, "example.org.", RecordType::A, 2),
            answer(77, "example.com.", RecordType::AAAA, 2),
            onward.clone(),
            Vec::new(),
            vec![0; 12],
        ] {
            assert_eq!(question.answered(&onward, &lie), None);
        }
        let large = answer(77, "example.com.", RecordType::A, 100);
        let cut = question.answered(&onward, &large).unwrap();
        assert!(is_truncated(&cut) && cut.len() < 512);
    }

    /// Drawn without a library: a linear congruential generator, the same numbers each time.
    struct Drawn(u64);
    impl Drawn {
        fn next(&mut self, below: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap_or(0) % below.max(1)
        }
    }

    #[test]
    fn damaged_messages_never_panic_and_what_is_said_of_them_can_be_read() {
        let seeds = [
            asked(NAME, RecordType::A, Some(1232)),
            asked("_http._tcp.web.shop.reeve.internal.", RecordType::SRV, None),
            asked("2.1.210.10.in-addr.arpa.", RecordType::PTR, Some(4096)),
            asked(".", RecordType::NS, None),
        ];
        let mut drawn = Drawn(7);
        let mut taken = 0;
        for round in 0..60_000 {
            let mut bytes = seeds[round % seeds.len()].clone();
            for _ in 0..drawn.next(5) {
                let at = drawn.next(bytes.len());
                bytes[at] = u8::try_from(drawn.next(256)).unwrap_or(0);
            }
            if drawn.next(4) == 0 {
                bytes.truncate(drawn.next(bytes.len() + 1));
            }
            let way = if drawn.next(2) == 0 { Way::Udp } else { Way::Tcp };
            match read(&bytes, way) {
                Read::Ignore => {}
                Read::Reject(answer) => assert!(answer.len() >= HEADER && answer[2] & 0x80 != 0),
                Read::Question(question) => {
                    taken += 1;
                    let count = u32::try_from(drawn.next(100)).unwrap_or(0);
                    let answer = question.reply(&addresses(count), "reeve.internal");
                    assert!(answer.len() <= question.limit);
                    Message::from_vec(&answer).unwrap();
                    let onward = question.onward(9);
                    assert!(!onward.is_empty());
                    assert_eq!(question.answered(&onward, &bytes), None, "a question is no answer");
                    let _ = question.answered(&onward, &answer);
                }
            }
        }
        assert!(taken > 10_000, "{taken}");
    }
}
