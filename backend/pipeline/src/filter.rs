//! Filter: can any rule want this request at all?
//!
//! In: the armed rules, and whether a log is on. Out: [`Filter`], an immutable snapshot that
//! queue threads read without a lock, before a request becomes an [`Input`](crate::Input).
//! Must not know: time, counts, random draws.
//!
//! It goes by operation, sectors, class, and the inode or group that a class concerns: those are
//! what most rules are about, and a disk is busy with the data of inodes that no rule names.
//!
//! The filter may say yes to a request that no rule takes; it never says no to one that a rule
//! takes.

use ext4_layout::{Home, LayoutMap, Span};

use crate::ranges::Ranges;
use crate::request::Op;
use crate::rules::{Match, Rule, concerns};

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
    /// Those of the classes of which a rule wants every block, whatever it concerns.
    wide: u32,
    inodes: Subjects,
    groups: Subjects,
    /// Hull of the sectors that rules with a class want.
    first: u64,
    last: u64,
}

/// What rules that ask for an inode want, or those that ask for a group.
#[derive(Clone, Debug)]
struct Subjects {
    /// The classes of these rules.
    kinds: u32,
    /// The numbers of all of them; `None` without such a rule.
    numbers: Option<Ranges>,
}

impl Subjects {
    const NOTHING: Subjects = Subjects { kinds: 0, numbers: None };

    /// Of those rules, the ones whose field is given.
    fn new(rules: &[&Match], field: impl Fn(&Match) -> Option<&Ranges>) -> Subjects {
        let mut kinds = 0;
        let mut numbers = Vec::new();
        for (matches, wanted) in rules.iter().filter_map(|m| field(m).map(|wanted| (m, wanted))) {
            kinds |= matches.kinds;
            numbers.extend(wanted.iter());
        }
        Subjects { kinds, numbers: (!numbers.is_empty()).then(|| Ranges::new(numbers)) }
    }

    fn wants(&self, kind: u32, holds: impl FnOnce(&Ranges) -> bool) -> bool {
        self.kinds & kind != 0 && self.numbers.as_ref().is_some_and(holds)
    }
}

impl OpFilter {
    const NOTHING: OpFilter = OpFilter {
        want: Want::Nothing,
        every: false,
        sectors: None,
        kinds: 0,
        wide: 0,
        inodes: Subjects::NOTHING,
        groups: Subjects::NOTHING,
        first: u64::MAX,
        last: 0,
    };

    /// Whether a rule with a class can want that block.
    fn may_want(&self, span: &Span) -> bool {
        let kind = span.class.kind().bit();
        if self.kinds & kind == 0 || !self.hull_meets(span.first_sector, span.sectors) {
            return false;
        }
        if self.wide & kind != 0 {
            return true;
        }
        // Rules that ask for one are not about classes that concern none.
        let Some(home) = span.class.subject() else { return true };
        self.inodes.wants(kind, |inodes| concerns(home, inodes))
            || self.groups.wants(kind, |groups| {
                Home::group(home).is_some_and(|group| groups.contains(group.into()))
            })
    }

    /// Whether the sectors meet the hull of those that rules with a class want.
    fn hull_meets(&self, sector: u64, sectors: u64) -> bool {
        last_of(sector, sectors).is_some_and(|last| self.first <= last && sector <= self.last)
    }

    /// Whether a rule without a class can want the sectors.
    fn wants_sectors(&self, sector: u64, sectors: u64) -> bool {
        self.sectors.as_ref().is_some_and(|wanted| {
            last_of(sector, sectors).is_some_and(|last| wanted.overlaps(sector, last))
        })
    }
}

/// The last sector. A flush has no sectors and touches nothing.
fn last_of(sector: u64, sectors: u64) -> Option<u64> {
    sectors.checked_sub(1).map(|more| sector.saturating_add(more))
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
        let mut by_class = Vec::new();
        for rule in rules {
            let matches = &rule.matches;
            if matches.kinds != 0 {
                op.want = Want::Classes;
                op.kinds |= matches.kinds;
                by_class.push(matches);
                if matches.inode.is_none() && matches.group.is_none() {
                    op.wide |= matches.kinds;
                }
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
        op.inodes = Subjects::new(&by_class, |matches| matches.inode.as_ref());
        // A rule that asks for both has what it asks for among the inodes.
        by_class.retain(|matches| matches.inode.is_none());
        op.groups = Subjects::new(&by_class, |matches| matches.group.as_ref());
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
        filter.every
            || (filter.kinds & kinds != 0 && filter.hull_meets(sector, sectors))
            || filter.wants_sectors(sector, sectors)
    }

    /// As [`Filter::may_match`], more precise where the layout is known: by what each block that
    /// is touched concerns. Also gives the union of [`Kind::bit`](ext4_layout::Kind::bit) over
    /// them.
    pub fn look(&self, map: &LayoutMap, op: Op, sector: u64, sectors: u64) -> (bool, u32) {
        self.look_at(op, sector, sectors, |out| {
            map.classify(sector, sectors, &mut |span| out(span));
        })
    }

    /// Whether a rule can want the request wherever on the layout it is: by its sectors, or because
    /// every request is wanted.
    #[inline]
    pub fn wants_place(&self, op: Op, sector: u64, sectors: u64) -> bool {
        let filter = &self.ops[op as usize];
        filter.every || filter.wants_sectors(sector, sectors)
    }

    /// Whether a rule with a class can want that block, whatever the operation.
    pub fn wants_class(&self, span: &Span) -> bool {
        self.ops.iter().any(|filter| filter.may_want(span))
    }

    /// The same for blocks that `each` names.
    pub(crate) fn look_at(
        &self,
        op: Op,
        sector: u64,
        sectors: u64,
        each: impl FnOnce(&mut dyn FnMut(Span)),
    ) -> (bool, u32) {
        let filter = &self.ops[op as usize];
        let mut wanted = self.wants_place(op, sector, sectors);
        let mut kinds = 0;
        each(&mut |span| {
            kinds |= span.class.kind().bit();
            wanted = wanted || filter.may_want(&span);
        });
        (wanted, kinds)
    }
}

#[cfg(test)]
mod tests {
    use ext4_layout::{Class, Written};

    use super::*;
    use crate::RuleSet;

    fn filter(matches: &[&str]) -> Filter {
        let rule = |(n, matches): (usize, &&str)| {
            format!(
                "[[rule]]\nname = \"r{n}\"\nmatch = {matches}\naction = {{ delay = \"1ms\" }}\n"
            )
        };
        let text: String = matches.iter().enumerate().map(rule).collect();
        RuleSet::parse(&text, "x.toml").expect("sound rules").filter()
    }

    fn wants(filter: &Filter, class: Class) -> bool {
        let span = Span { first_sector: 800, sectors: 8, class };
        let (wanted, kinds) = filter.look_at(Op::Read, 800, 8, |out| out(span));
        assert_eq!(kinds, class.kind().bit());
        let coarse = filter.may_match(Op::Read, 800, 8, kinds);
        assert!(coarse || !wanted, "more precise, not less: {class:?}");
        wanted
    }

    fn data(inode: u32) -> Home {
        Home::FileData { inode, first_lblk: 0, last_lblk: 0, state: Written::Written }
    }

    fn table(first_inode: u32, last_inode: u32) -> Home {
        Home::InodeTable { group: 2, first_inode, last_inode }
    }

    /// Goal: what no rule is about passes, though its class is one that rules ask for.
    /// Method: rules by inode, by group, by both; blocks on either side of each bound.
    #[test]
    fn goes_by_inode_and_group() {
        let by_inode = filter(&["{ inode = 13 }", "{ class = \"file_data\", inode = \"40..50\" }"]);
        for (home, wanted) in [
            (data(12), false),
            (data(13), true),
            (data(14), false),
            (data(49), true),
            (data(50), false),
            (table(1, 12), false),
            (table(13, 28), true),
            (table(50, 60), false),
            (Home::Directory { inode: 13 }, true),
            (Home::Directory { inode: 14 }, false),
            (Home::BlockBitmap { group: 13 }, false),
        ] {
            assert_eq!(wants(&by_inode, Class::Home(home)), wanted, "{home:?}");
            let copy = Class::JournalCopy { tid: 1, of: home };
            assert_eq!(wants(&by_inode, copy), wanted, "a copy of {home:?}");
        }
        let by_group = filter(&["{ class = [\"block_bitmap\", \"inode_table\"], group = 2 }"]);
        assert!(wants(&by_group, Class::Home(Home::BlockBitmap { group: 2 })));
        assert!(!wants(&by_group, Class::Home(Home::BlockBitmap { group: 3 })));
        assert!(wants(&by_group, Class::Home(table(1, 2))));
        let by_both = filter(&["{ class = \"inode_table\", group = 2, inode = 7 }"]);
        assert!(wants(&by_both, Class::Home(table(7, 8))));
        assert!(!wants(&by_both, Class::Home(table(8, 9))));
    }

    /// Goal: one rule that asks for no inode is not hidden by many that do.
    /// Method: such a rule beside others; also one by sector, and one for every request.
    #[test]
    fn wide_rules_are_not_hidden() {
        let narrow = "{ class = \"file_data\", inode = 7 }";
        let home = Class::Home(data(8));
        assert!(!wants(&filter(&[narrow]), home));
        for wide in
            ["{ class = \"file_data\", size = 4096 }", "{ sector = 807 }", "{ op = \"read\" }"]
        {
            assert!(wants(&filter(&[narrow, wide]), home), "{wide}");
        }
        assert!(!wants(&filter(&[narrow, "{ sector = 808 }"]), home));
        assert!(!wants(&filter(&["{ class = \"file_data\", sector = \"0..800\" }"]), home));
    }
}
