//! Lines out of a log's entries, each once: what was printed already is passed over, the parts of a long line become one,
//! and each line knows how to go on after it. Pure; `logs` feeds it.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::ask::{Cursor, Stamp};
use crate::engine::near::{Entry, Stream};

/// The longest line; a longer one comes in pieces of this size.
pub const MAX_LINE: usize = 1 << 20;
/// Bytes before a line's text in a frame.
const HEAD: usize = 29;

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub stream: Stream,
    /// When its first entry was written.
    pub stamp: Stamp,
    /// How to go on after it.
    pub cursor: Cursor,
    /// Without its end.
    pub text: Bytes,
}

impl Line {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self {
            stream,
            stamp,
            cursor,
            text,
        } = self;
        let mut out = BytesMut::with_capacity(HEAD + text.len());
        out.put_u8(match stream {
            Stream::Out => 1,
            Stream::Err => 2,
        });
        for stamp in [stamp, &cursor.stamp] {
            out.put_i64(stamp.seconds);
            out.put_u32(stamp.nanos);
        }
        out.put_u32(cursor.count);
        out.put_slice(text);
        out.freeze()
    }

    /// None where it is none.
    #[must_use]
    pub fn decode(payload: &Bytes) -> Option<Self> {
        let head = payload.get(..HEAD)?;
        let number = |from: usize| Some(u32::from_be_bytes(head.get(from..from + 4)?.try_into().ok()?));
        let stamp = |from: usize| {
            let seconds = i64::from_be_bytes(head.get(from..from + 8)?.try_into().ok()?);
            let nanos = number(from + 8).filter(|nanos| *nanos < 1_000_000_000)?;
            Some(Stamp { seconds, nanos })
        };
        Some(Self {
            stream: match head[0] {
                1 => Stream::Out,
                2 => Stream::Err,
                _ => return None,
            },
            stamp: stamp(1)?,
            cursor: Cursor {
                stamp: stamp(13)?,
                count: number(25)?,
            },
            text: payload.slice(HEAD..),
        })
    }
}

/// A line of which not all has come.
#[derive(Debug)]
struct Begun {
    stamp: Stamp,
    /// Where to go on so that it is read again whole.
    before: Cursor,
    text: BytesMut,
}

/// Makes lines of one container's entries, over any number of readings that each begin at [`Lines::cursor`]'s stamp.
#[derive(Debug, Default)]
pub struct Lines {
    /// How far entries were taken.
    cursor: Cursor,
    /// Entries of the cursor's stamp that this reading brings again.
    again: u32,
    out: Option<Begun>,
    err: Option<Begun>,
}

impl Lines {
    #[must_use]
    pub fn new(cursor: Cursor) -> Self {
        Self {
            cursor,
            again: cursor.count,
            out: None,
            err: None,
        }
    }

    /// Where a reading that begins now has to begin so that nothing is missed.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        // A line that is not whole is read again from its beginning, though a line of the other stream may come twice then.
        let begun = [&self.out, &self.err].into_iter().flatten().map(|begun| begun.before);
        begun
            .min_by_key(|cursor| (cursor.stamp, cursor.count))
            .unwrap_or(self.cursor)
    }

    /// Another reading begins, at the stamp of [`Lines::cursor`].
    pub fn again(&mut self) {
        *self = Self::new(self.cursor());
    }

    /// Takes an entry; the line that it ends.
    pub fn take(&mut self, entry: Entry) -> Option<Line> {
        let Entry {
            stream,
            stamp,
            text,
            ends,
        } = entry;
        let stamp = stamp.unwrap_or(self.cursor.stamp);
        if stamp == self.cursor.stamp && self.again > 0 {
            self.again -= 1;
            return None;
        }
        let before = self.cursor();
        self.cursor = if stamp == self.cursor.stamp {
            Cursor {
                stamp,
                count: self.cursor.count.saturating_add(1),
            }
        } else if stamp > self.cursor.stamp {
            Cursor { stamp, count: 1 }
        } else {
            // Two streams are stamped before they are put in order: the later stamp counts.
            self.cursor
        };
        self.again = 0;
        let begun = match stream {
            Stream::Out => &mut self.out,
            Stream::Err => &mut self.err,
        };
        let whole = match begun.take() {
            // The common case copies nothing.
            None if ends => (stamp, text),
            None => {
                let text = BytesMut::from(&text[..]);
                *begun = Some(Begun { stamp, before, text });
                return None;
            }
            Some(mut part) => {
                part.text.extend_from_slice(&text);
                if !ends && part.text.len() < MAX_LINE {
                    *begun = Some(part);
                    return None;
                }
                (part.stamp, part.text.freeze())
            }
        };
        Some(Line {
            stream,
            stamp: whole.0,
            cursor: self.cursor(),
            text: whole.1,
        })
    }

    /// The log has ended: what of lines has no end is a line too.
    pub fn rest(&mut self) -> Vec<Line> {
        let parts = [(Stream::Out, self.out.take()), (Stream::Err, self.err.take())];
        let cursor = self.cursor;
        let parts = parts.into_iter().filter_map(|(stream, begun)| Some((stream, begun?)));
        parts
            .map(|(stream, begun)| Line {
                stream,
                stamp: begun.stamp,
                cursor,
                text: begun.text.freeze(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stream: Stream, nanos: u32, text: &str) -> Entry {
        let ends = !text.ends_with('…');
        Entry {
            stream,
            stamp: Some(Stamp { seconds: 5, nanos }),
            text: Bytes::from(text.trim_end_matches('…').to_owned()),
            ends,
        }
    }

    fn log() -> Vec<Entry> {
        use Stream::{Err, Out};
        vec![
            entry(Out, 1, "a"),
            entry(Out, 1, "b"),
            entry(Err, 1, "b"),
            entry(Out, 2, "long…"),
            entry(Out, 2, "long"),
            entry(Err, 3, "c"),
            entry(Out, 4, "half…"),
        ]
    }

    /// What an engine sends when it is asked for what is stamped like this or later.
    fn from(stamp: Stamp) -> impl Iterator<Item = Entry> {
        log().into_iter().filter(move |entry| entry.stamp >= Some(stamp))
    }

    #[test]
    fn wherever_the_reading_breaks_no_line_is_lost_or_doubled() {
        let mut whole = Lines::default();
        let mut desired: Vec<Bytes> = log()
            .into_iter()
            .filter_map(|e| whole.take(e))
            .map(|l| l.text)
            .collect();
        desired.extend(whole.rest().into_iter().map(|line| line.text));
        assert_eq!(desired, ["a", "b", "b", "longlong", "c", "half"]);
        for cut in 0..=log().len() {
            for again in 0..=log().len() {
                let mut lines = Lines::default();
                let mut got: Vec<Bytes> = Vec::new();
                let mut take = |lines: &mut Lines, entries: Vec<Entry>| {
                    got.extend(entries.into_iter().filter_map(|e| lines.take(e)).map(|line| line.text));
                };
                take(&mut lines, log().into_iter().take(cut).collect());
                lines.again();
                let stamp = lines.cursor().stamp;
                take(&mut lines, from(stamp).take(again).collect());
                lines.again();
                let stamp = lines.cursor().stamp;
                take(&mut lines, from(stamp).collect());
                got.extend(lines.rest().into_iter().map(|line| line.text));
                assert_eq!(got, desired, "cut after {cut}, then {again}");
            }
        }
    }

    #[test]
    fn who_goes_on_after_any_line_elsewhere_gets_all_the_others() {
        let lines: Vec<Line> = {
            let mut lines = Lines::default();
            log().into_iter().filter_map(|entry| lines.take(entry)).collect()
        };
        for (at, line) in lines.iter().enumerate() {
            let mut next = Lines::new(line.cursor);
            let rest: Vec<Line> = from(line.cursor.stamp).filter_map(|entry| next.take(entry)).collect();
            let texts = |lines: &[Line]| lines.iter().map(|line| line.text.clone()).collect::<Vec<_>>();
            assert_eq!(texts(&rest), texts(&lines[at + 1..]));
        }
    }

    #[test]
    fn a_line_without_end_comes_in_pieces() {
        let mut lines = Lines::default();
        let part = Entry {
            stream: Stream::Out,
            stamp: Some(Stamp::default()),
            text: Bytes::from(vec![b'x'; MAX_LINE / 4]),
            ends: false,
        };
        let pieces: Vec<usize> = (0..9)
            .filter_map(|_| lines.take(part.clone()))
            .map(|l| l.text.len())
            .collect();
        assert_eq!(pieces, [MAX_LINE, MAX_LINE]);
    }

    #[test]
    fn a_line_goes_through_its_frame_and_garbage_does_not() {
        let mut lines = Lines::default();
        let line = lines.take(entry(Stream::Err, 9, "text")).unwrap();
        assert_eq!(Line::decode(&line.encode()), Some(line));
        assert_eq!(Line::decode(&Bytes::from_static(b"short")), None);
        assert_eq!(Line::decode(&Bytes::from(vec![255; 40])), None);
    }
}
