//! Filter: can any rule want this request at all?
//!
//! In: the armed rules, and whether a log is on. Out: [`Filter`], an immutable snapshot that
//! queue threads read without a lock, before a request becomes an [`Input`](crate::Input).
//! Must not know: time, counts, random draws.
//!
//! The filter may say yes to a request that no rule takes; it never says no to one that a rule
//! takes.

use crate::ranges::Ranges;
use crate::request::Op;
use crate::rules::Rule;

/// What must be known of the requests of an operation before [`Filter::may_match`] can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// No rule wants any: straight to storage.
    Nothing,
    /// Rules go by sectors only: the classes need not be looked up.
    Range,
    /// A rule, or the log, goes by class.
    Classes,
}

/// A snapshot of what the rules in force can want.
#[derive(Clone, Debug)]
pub struct Filter {
    ops: [OpFilter; Op::ALL.len()],
}

/// What the rules want of one operation.
#[derive(Clone, Debug)]
struct OpFilter {
    want: Want,
    /// Every request, whatever it touches.
    every: bool,
    /// Sectors that rules without a class want.
    sectors: Option<Ranges>,
    /// Union of the classes that rules want, as [`ext4_layout::Kind::bit`]s.
    kinds: u32,
    /// Hull of the sectors that rules with a class want.
    first: u64,
    last: u64,
}

impl OpFilter {
    const NOTHING: OpFilter = OpFilter {
        want: Want::Nothing,
        every: false,
        sectors: None,
        kinds: 0,
        first: u64::MAX,
        last: 0,
    };
}

impl Filter {
    /// A filter that lets nothing through: no rules, no log.
    pub fn nothing() -> Filter {
        Filter { ops: [OpFilter::NOTHING; Op::ALL.len()] }
    }

    /// A filter that wants every request with its classes, as a log does.
    pub(crate) fn logging() -> Filter {
        let every = OpFilter { want: Want::Classes, every: true, ..OpFilter::NOTHING };
        Filter { ops: std::array::from_fn(|_| every.clone()) }
    }

    /// The filter for these rules. With `count_all`, every request is wanted (without its
    /// classes, unless a rule needs them) because a rule counts requests of any kind.
    pub(crate) fn new<'a, I>(rules: impl Fn() -> I, count_all: bool) -> Filter
    where
        I: Iterator<Item = &'a Rule>,
    {
        Filter {
            ops: std::array::from_fn(|index| {
                let bit = Op::ALL[index].bit();
                let rules = rules().filter(|rule| rule.matches.ops & bit != 0);
                Filter::for_op(rules, count_all)
            }),
        }
    }

    fn for_op<'a>(rules: impl Iterator<Item = &'a Rule>, count_all: bool) -> OpFilter {
        let mut op = OpFilter { every: count_all, ..OpFilter::NOTHING };
        if count_all {
            op.want = Want::Range;
        }
        let mut sectors = Vec::new();
        for rule in rules {
            let matches = &rule.matches;
            if matches.kinds != 0 {
                op.want = Want::Classes;
                op.kinds |= matches.kinds;
                let (first, last) =
                    matches.sector.as_ref().map_or((0, u64::MAX), |s| (s.min(), s.max()));
                op.first = op.first.min(first);
                op.last = op.last.max(last);
            } else {
                op.want = op.want.max(Want::Range);
                match &matches.sector {
                    Some(wanted) => sectors.extend(wanted.iter()),
                    None => op.every = true,
                }
            }
        }
        if !sectors.is_empty() {
            op.sectors = Some(Ranges::new(sectors));
        }
        op
    }

    /// What must be known of a request with that operation.
    #[inline]
    pub fn wants(&self, op: Op) -> Want {
        self.ops[op as usize].want
    }

    /// Whether a rule can match the request. `kinds` is the union of
    /// [`Kind::bit`](ext4_layout::Kind::bit) over what it touches; it is looked at only where
    /// [`Filter::wants`] says [`Want::Classes`].
    #[inline]
    pub fn may_match(&self, op: Op, sector: u64, sectors: u64, kinds: u32) -> bool {
        let filter = &self.ops[op as usize];
        if filter.every {
            return true;
        }
        // A flush has no sectors and touches nothing; only `every` can want it.
        let Some(last) = sectors.checked_sub(1).map(|more| sector.saturating_add(more)) else {
            return false;
        };
        (filter.kinds & kinds != 0 && filter.first <= last && sector <= filter.last)
            || filter.sectors.as_ref().is_some_and(|wanted| wanted.overlaps(sector, last))
    }
}
