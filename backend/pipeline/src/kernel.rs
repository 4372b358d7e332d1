//! What a watched kernel says: lines of `trace_pipe` as values.
//!
//! In: lines, as `print_trace_line` of Linux 5.10 to 7.x writes them for probes. Out:
//! [`KernelEvent`]s.
//! Must not know: which probes there are, what their fields mean.

use std::collections::BTreeMap;

/// One event of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelEvent {
    /// When, in microseconds of the guest's CLOCK_MONOTONIC.
    pub at_us: u64,
    /// On which processor.
    pub cpu: u32,
    /// Thread that ran.
    pub tid: u32,
    /// Its name, up to 15 bytes.
    pub thread: String,
    /// Name of the event.
    pub name: String,
    /// Its numeric fields.
    pub fields: BTreeMap<String, u64>,
}

impl KernelEvent {
    /// A field; `None` if the event has none of that name.
    pub fn field(&self, name: &str) -> Option<u64> {
        self.fields.get(name).copied()
    }
}

/// What one line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelLine {
    /// An event.
    Event(KernelEvent),
    /// The buffer of a processor overflowed: after the last event of it that was read and before the
    /// next one, that many are gone.
    Lost {
        /// Which processor; `None`: the line does not say.
        cpu: Option<u32>,
        /// How many.
        events: u64,
    },
    /// Nothing that is known: a header, a line that was cut.
    Other,
}

/// Reads one line:
///
/// ```text
///           storer-123     [001] d..1.    12.345678: es_insert: (__es_insert_extent+0x0/0x5f0) ino=13 lblk=0x2
/// CPU:1 [LOST 12 EVENTS]
/// ```
pub fn parse_line(line: &str) -> KernelLine {
    if let Some((whose, lost)) = line.split_once("[LOST ") {
        let count = lost.split(' ').next().and_then(|count| count.parse().ok());
        let cpu = whose.trim().strip_prefix("CPU:").and_then(|cpu| cpu.parse().ok());
        return count.map_or(KernelLine::Other, |events| KernelLine::Lost { cpu, events });
    }
    event(line).map_or(KernelLine::Other, KernelLine::Event)
}

fn event(line: &str) -> Option<KernelEvent> {
    // A thread's name may hold anything, so the first thing to look for is the processor.
    let (at, cpu) = line.match_indices(" [").find_map(|(at, _)| {
        let (cpu, _) = line[at + 2..].split_once(']')?;
        Some((at, cpu.parse().ok()?))
    })?;
    let (thread, tid) = line[..at].trim().rsplit_once('-')?;
    let (_, rest) = line[at..].split_once(']')?;
    let mut words = rest.split_whitespace();
    let time = words.find_map(|word| word.strip_suffix(':'))?;
    let (seconds, micros) = time.split_once('.')?;
    let at_us =
        seconds.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?;
    let name = words.next()?.strip_suffix(':')?;
    let fields = words.filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), number(value)?))
    });
    Some(KernelEvent {
        at_us,
        cpu,
        tid: tid.parse().ok()?,
        thread: thread.to_owned(),
        name: name.to_owned(),
        fields: fields.collect(),
    })
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        // A negative number keeps its bits.
        None if text.starts_with('-') => text.parse().ok().map(i64::cast_unsigned),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(line: &str) -> KernelEvent {
        match parse_line(line) {
            KernelLine::Event(event) => event,
            other => panic!("{other:?}: {line}"),
        }
    }

    #[test]
    fn events_of_old_and_new_kernels() {
        let old = parsed(
            "          storer-123   [001] ....    12.345678: es_insert: \
             (__es_insert_extent+0x0/0x5f0) inode=0xffff888 ino=13 lblk=2",
        );
        assert_eq!((old.at_us, old.cpu, old.tid), (12_345_678, 1, 123));
        assert_eq!((old.thread.as_str(), old.name.as_str()), ("storer", "es_insert"));
        assert_eq!(old.field("inode"), Some(0x0fff_f888));
        assert_eq!(old.field("lblk"), Some(2));
        assert_eq!(old.field("len"), None);
        let new = parsed(" kworker/u4:2-e [x]-77      [003] d..1. 7.000001: mkwrite: (f+0x0/0x10)");
        assert_eq!((new.at_us, new.cpu, new.tid), (7_000_001, 3, 77));
        assert_eq!(new.thread, "kworker/u4:2-e [x]");
    }

    #[test]
    fn losses_are_told() {
        let lost = KernelLine::Lost { cpu: Some(1), events: 12 };
        assert_eq!(parse_line("CPU:1 [LOST 12 EVENTS]"), lost);
        assert_eq!(parse_line("[LOST 7 EVENTS]"), KernelLine::Lost { cpu: None, events: 7 });
        assert_eq!(parse_line("# tracer: nop"), KernelLine::Other);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            parse_line(&text);
        }
    }
}
