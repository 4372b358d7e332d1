//! Rules files: any text, and what a core does with the rules if it has any.
//!
//! In: text. Out: nothing; a core that was told that everything ended has nothing parked.

use pipeline::{Core, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet};

/// Requests that the rules are asked about.
const REQUESTS: u64 = 24;

pub(crate) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let read = RuleSet::parse_with(text, "fuzzed.toml", &mut |name| {
        // A histogram that is another part of the input.
        text.rsplit_once("#hist").map(|(_, rest)| rest.to_owned()).ok_or_else(|| name.to_owned())
    });
    let rules = match read {
        Ok(rules) => rules,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    // What was understood can be understood again.
    assert!(RuleSet::from_text(rules.text()).is_ok());
    assert_eq!(rules.names().count(), rules.meanings().len());
    drive(rules);
}

fn drive(rules: RuleSet) {
    let mut core = Core::new(1);
    let mut out = Outbox::default();
    core.set_logging(true);
    core.load(Nanos(0), rules, &mut out);
    let mut now = 0;
    for id in 0..REQUESTS {
        now += 1_000_000;
        if let Some(due) = core.next_due().filter(|due| due.0 <= now) {
            core.step(due, Input::Tick, &mut out);
        }
        let op = Op::ALL[id as usize % Op::ALL.len()];
        let sectors = if op == Op::Flush { 0 } else { 8 };
        let request = Request {
            id: RequestId(id),
            queue: 0,
            head: id as u16,
            op,
            sector: id * 4,
            sectors,
            spans: &[],
        };
        core.step(Nanos(now), Input::Arrive(request), &mut out);
        core.step(Nanos(now), Input::AgentMark { name: "mark", guest_ns: now }, &mut out);
        let id = RequestId(id / 2);
        let ended = Input::Complete { id, outcome: Outcome::Ok, submitted: None };
        core.step(Nanos(now), ended, &mut out);
        out.clear();
    }
    core.step(Nanos(now), Input::Disconnect, &mut out);
    assert_eq!(core.stats().parked, 0, "parked after everything was let go");
    assert_eq!(core.next_due(), None, "something is due with nothing parked");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const FILES: [&str; 4] = [
        include_str!("../../../guest-tests/plans/rules/hold-first-bitmap-read.toml"),
        include_str!("../../../guest-tests/plans/rules/slow-log-copies.toml"),
        include_str!("../../../guest-tests/plans/rules/swap-two-writes.toml"),
        include_str!("../../../guest-tests/plans/rules/worn-disk.toml"),
    ];
    const MORE: [&str; 4] = [
        "[[rule]]\nname='a'\nmatch={op=['read','fault'],class='block_bitmap',group='0..3'}\naction={hold={until='agent:mark',at_most='9ms'}}\ndisarm_on='agent:mark'\n",
        "[[rule]]\nname='b'\nmatch={op='write',sector='4..90',size='4096..',nth=[1,3],probability=0.5}\naction={delay={exponential='2ms',at_most='30ms'},fail='EIO'}\n",
        "[[rule]]\nname='c'\nmatch={every=2,after=1,times=3}\naction={hold={until='requests:4'}}\n[[rule]]\nname='d'\narmed=false\narm_on='rule:c'\nmatch={}\naction={delay={normal=['5ms','1ms']}}\n",
        "[[rule]]\nname='e'\nmatch={op='read'}\naction={delay={histogram='x'}}\n#hist\n1000 5\n2000 7\n",
    ];
    FILES.iter().chain(&MORE).map(|text| text.as_bytes().to_vec()).collect()
}
