//! Goal: a request that nothing matches, or that a rule delays, costs no allocation in the core.
//! Method: count them, once the memory that is kept and reused is there.

use allocation_counter::measure;
use pipeline::{Core, Input, Nanos, Op, Outbox, Outcome, Request, RequestId, RuleSet};

/// Requests 10 us apart, with up to 100 delayed at a time.
fn requests(core: &mut Core, out: &mut Outbox, ids: std::ops::Range<u64>) {
    for number in ids {
        let now = Nanos(number * 10_000);
        while let Some(due) = core.next_due().filter(|due| *due <= now) {
            core.step(due, Input::Tick, out);
        }
        if let Some(id) = number.checked_sub(101).map(RequestId) {
            core.step(now, Input::Complete { id, outcome: Outcome::Ok, submitted: None }, out);
        }
        let op = if number.is_multiple_of(3) { Op::Write } else { Op::Read };
        let (id, queue, head, sector, sectors) = (RequestId(number), 0, 0, 64, 8);
        let request = Request { id, queue, head, op, sector, sectors, spans: &[] };
        core.step(now, Input::Arrive(request), out);
        out.clear();
    }
}

#[test]
fn no_allocation_for_a_request() {
    let rules = |action: &str| {
        let text =
            format!("[[rule]]\nname = \"r\"\nmatch = {{ op = \"read\" }}\naction = {action}\n");
        RuleSet::parse(&text, "test.toml").expect("sound rules")
    };
    for action in [
        "{ delay = { uniform = [\"100us\", \"1ms\"] } }",
        "{ fail = \"EIO\" }",
        "{ hold = { at_most = \"1ms\" } }",
    ] {
        let (mut core, mut out) = (Core::new(1), Outbox::default());
        core.load(Nanos(0), rules(action), &mut out);
        requests(&mut core, &mut out, 1..1_000);
        let counted = measure(|| requests(&mut core, &mut out, 1_000..11_000));
        assert_eq!(counted.count_total, 0, "{action}");
        // The canary: the counter counts.
        assert!(measure(|| drop(core.header(Nanos(0)))).count_total > 0);
    }
}
