//! The `match` of a rule: parsing it, and asking it.
//!
//! In: its table; later, requests. Out: [`Match`]; whether it takes a request.
//! Must not know: counts, draws, what follows from a match.

use ext4_layout::{Class, Home, Kind, Span, Written};

use super::error::{RulesError, RulesProblem};
use super::parse::parse_name;
use super::read::{Field, Table};
use super::{Match, When};
use crate::ranges::Ranges;
use crate::request::{Op, Request};

const MATCH_FIELDS: &[&str] = &[
    "op",
    "class",
    "of",
    "group",
    "inode",
    "lblk",
    "state",
    "depth",
    "backup",
    "tid",
    "sector",
    "size",
    "nth",
    "after",
    "every",
    "times",
    "probability",
];

/// Fields that only some classes have.
const CLASS_FIELDS: [&str; 7] = ["group", "inode", "lblk", "state", "depth", "backup", "tid"];

/// Operations on ranges of blocks, that is all but flush.
pub(super) const BLOCK_OPS: u8 = 0x7f & !Op::Flush.bit();

/// Classes of blocks outside the log that have a field, as [`Kind::bit`]s.
const fn home_kinds_with(field: &str) -> u32 {
    const INODE: u32 = Kind::ExtentNode.bit()
        | Kind::IndirectBlock.bit()
        | Kind::Directory.bit()
        | Kind::Xattr.bit()
        | Kind::FileData.bit();
    match field.as_bytes() {
        b"group" => Kind::BlockBitmap.bit() | Kind::InodeBitmap.bit() | Kind::InodeTable.bit(),
        b"inode" => INODE | Kind::InodeTable.bit(),
        b"lblk" | b"state" => Kind::FileData.bit(),
        b"depth" => Kind::ExtentNode.bit(),
        b"backup" => Kind::Superblock.bit() | Kind::GroupDescriptors.bit(),
        _ => 0,
    }
}

/// All classes that have a field: a log copy has the fields of what it is a copy of.
fn kinds_with(field: &str) -> u32 {
    match field {
        "tid" => {
            Kind::JournalDescriptor.bit()
                | Kind::JournalCopy.bit()
                | Kind::JournalCommit.bit()
                | Kind::JournalRevoke.bit()
        }
        _ => home_kinds_with(field) | Kind::JournalCopy.bit(),
    }
}

/// The classes of a set, for messages.
pub(super) fn kind_names(kinds: u32) -> Vec<&'static str> {
    Kind::ALL.iter().filter(|kind| kinds & kind.bit() != 0).map(|kind| kind.name()).collect()
}

const fn is_log(kind: Kind) -> bool {
    kind as u8 >= Kind::JournalSuperblock as u8
}

/// Every class that a block outside the log can have.
fn home_kinds() -> u32 {
    Kind::ALL.iter().filter(|kind| !is_log(**kind)).fold(0, |kinds, kind| kinds | kind.bit())
}

pub(super) fn parse_match(table: &Table<'_>) -> Result<Match, RulesError> {
    table.only(MATCH_FIELDS)?;
    let mut ops = match table.get("op") {
        Some(field) => parse_ops(&field)?,
        None => 0x7f,
    };
    let (kinds, of) = parse_kinds(table)?;
    let ranges = |name: &'static str, limit: u64| {
        table.get(name).map(|field| parse_numbers(&field, limit)).transpose()
    };
    let size = table.get("size").map(|field| parse_size(&field)).transpose()?;
    let sector = ranges("sector", u64::MAX)?;

    // A flush touches nothing: it cannot match what asks for blocks.
    let mut blocks = ["class", "of", "sector", "size"].iter().chain(&CLASS_FIELDS);
    if let Some(field) = blocks.find_map(|name| table.get(name)) {
        ops &= BLOCK_OPS;
        if ops == 0 {
            let why = "a flush has no blocks; leave this out, or choose another op";
            return Err(field.error(RulesProblem::NeverMatches(why.to_owned())));
        }
    }
    let inode = ranges("inode", u32::MAX.into())?;
    if let (Some(field), Some(true)) = (table.get("inode"), inode.as_ref().map(|i| i.max() == 0)) {
        let why = "inode numbers start at 1";
        return Err(field.error(RulesProblem::NeverMatches(why.to_owned())));
    }
    let state = |field: Field<'_>| {
        parse_name(
            &field,
            "state",
            "\"written\" or \"unwritten\"",
            written,
            &["written", "unwritten"],
        )
    };
    Ok(Match {
        ops,
        kinds,
        of,
        group: ranges("group", u32::MAX.into())?,
        inode,
        lblk: ranges("lblk", u32::MAX.into())?,
        // EXT4_MAX_EXTENT_DEPTH is 5 and counts the root, which lies in the inode.
        depth: ranges("depth", 4)?,
        tid: ranges("tid", u32::MAX.into())?,
        state: table.get("state").map(state).transpose()?,
        backup: table.get("backup").map(|field| field.bool()).transpose()?,
        sector,
        size,
        when: parse_when(table)?,
    })
}

fn written(name: &str) -> Option<Written> {
    match name {
        "written" => Some(Written::Written),
        "unwritten" => Some(Written::Unwritten),
        _ => None,
    }
}

fn parse_ops(field: &Field<'_>) -> Result<u8, RulesError> {
    let known = Op::ALL.map(Op::name);
    let mut ops = 0;
    for member in field.one_or_list() {
        let expected = "the name of an operation, or a list of names";
        ops |= parse_name(&member, "op", expected, Op::parse, &known)?.bit();
    }
    if ops == 0 {
        return Err(field.error(RulesProblem::NeverMatches("the list is empty".to_owned())));
    }
    Ok(ops)
}

fn parse_kind_list(field: &Field<'_>, allowed: u32) -> Result<u32, RulesError> {
    let known = kind_names(allowed);
    let parse = |name: &str| Kind::parse(name).filter(|kind| allowed & kind.bit() != 0);
    let mut kinds = 0;
    for member in field.one_or_list() {
        let expected = "the name of a class, or a list of names";
        kinds |= parse_name(&member, "class", expected, parse, &known)?.bit();
    }
    if kinds == 0 {
        return Err(field.error(RulesProblem::NeverMatches("the list is empty".to_owned())));
    }
    Ok(kinds)
}

/// The classes that can match, and those that a log copy may be of: as given, or all that have
/// the fields given.
fn parse_kinds(table: &Table<'_>) -> Result<(u32, u32), RulesError> {
    let given = table.get("class").map(|field| parse_kind_list(&field, u32::MAX)).transpose()?;
    let of = table.get("of").map(|field| parse_kind_list(&field, home_kinds())).transpose()?;
    if let (Some(field), Some(kinds)) = (table.get("of"), given)
        && kinds & Kind::JournalCopy.bit() == 0
    {
        return Err(field.error(RulesProblem::Contradiction {
            other: "class",
            reason: "only a journal_copy is a copy of something; add it to class",
        }));
    }
    let fields: Vec<_> =
        CLASS_FIELDS.iter().filter_map(|name| Some((*name, table.get(name)?))).collect();
    let mut possible = match (given, of) {
        (Some(kinds), _) => kinds,
        (None, Some(_)) => Kind::JournalCopy.bit(),
        (None, None) if fields.is_empty() => 0,
        (None, None) => u32::MAX,
    };
    // What a log copy is of must have the fields by itself.
    let mut copied = of.unwrap_or(home_kinds());
    for (name, field) in &fields {
        let having = kinds_with(name);
        // A class named in the rule must have the field; one that is merely possible may lack it.
        require(name, field, given.map_or(0, |_| possible), having)?;
        possible &= having;
        if *name != "tid" {
            let having = home_kinds_with(name);
            require(name, field, of.unwrap_or(0), having)?;
            copied &= having;
        }
        if copied == 0 {
            possible &= !Kind::JournalCopy.bit();
        }
        if possible == 0 {
            return Err(field.error(RulesProblem::NeverMatches(
                "no class has all of the fields given; leave one out".to_owned(),
            )));
        }
    }
    Ok((possible, of.unwrap_or(0)))
}

fn require(
    name: &'static str,
    field: &Field<'_>,
    kinds: u32,
    having: u32,
) -> Result<(), RulesError> {
    match kind_names(kinds & !having).first() {
        None => Ok(()),
        Some(class) => Err(field.error(RulesProblem::NotOfClass {
            field: name,
            class,
            classes: kind_names(having).join(", "),
        })),
    }
}

fn parse_numbers(field: &Field<'_>, limit: u64) -> Result<Ranges, RulesError> {
    let ranges = field.ranges()?;
    if ranges.min() > limit {
        let why = format!("the largest there can be is {limit}");
        return Err(field.error(RulesProblem::NeverMatches(why)));
    }
    Ok(ranges)
}

/// Sizes in bytes: some multiple of 512 above 0 must be among them.
fn parse_size(field: &Field<'_>) -> Result<Ranges, RulesError> {
    let ranges = field.ranges()?;
    let sound = ranges.iter().any(|(first, last)| last / 512 > first.saturating_sub(1) / 512);
    if !sound {
        let why = "a size is a multiple of 512 bytes above 0";
        return Err(field.error(RulesProblem::NeverMatches(why.to_owned())));
    }
    Ok(ranges)
}

fn parse_when(table: &Table<'_>) -> Result<When, RulesError> {
    let count = |name: &'static str| {
        let Some(field) = table.get(name) else {
            return Ok(None);
        };
        match field.u64("a whole number")? {
            0 if name != "after" => {
                let why = "0 is never; leave it out, or give 1 or more";
                Err(field.error(RulesProblem::NeverMatches(why.to_owned())))
            }
            count => Ok(Some(count)),
        }
    };
    let (after, every, times) = (count("after")?, count("every")?, count("times")?);
    let nth = table.get("nth").map(|field| field.ranges()).transpose()?;
    if let (Some(field), Some(nth)) = (table.get("nth"), &nth) {
        if nth.max() == 0 {
            let why = "matches are counted from 1";
            return Err(field.error(RulesProblem::NeverMatches(why.to_owned())));
        }
        for (other, given) in [("after", after), ("every", every)] {
            if given.is_some() {
                let reason = "nth alone says which; leave one out";
                return Err(field.error(RulesProblem::Contradiction { other, reason }));
            }
        }
    }
    let probability = match table.get("probability") {
        None => 1.0,
        Some(field) => {
            let expected = "a number above 0 and at most 1";
            let probability = field.f64(expected)?;
            if !(probability > 0.0 && probability <= 1.0) {
                let found = probability.to_string();
                return Err(field.error(RulesProblem::OutOfRange { found, expected }));
            }
            probability
        }
    };
    let (after, every) = (after.unwrap_or(0), every.unwrap_or(1));
    Ok(When { nth, after, every, times, probability })
}

impl When {
    /// How often the rule can fire at most, if that is limited.
    pub(super) fn fires_at_most(&self) -> Option<u64> {
        let nth = self.nth.as_ref().map(|nth| {
            // Match 0 does not exist, so a range from 0 has one member less.
            let members = |(first, last): (u64, u64)| last.saturating_sub(first.max(1) - 1);
            nth.iter().map(members).fold(0, u64::saturating_add)
        });
        match (nth, self.times) {
            (Some(nth), Some(times)) => Some(nth.min(times)),
            (nth, times) => nth.or(times),
        }
    }

    /// Whether it says nothing: every match fires.
    pub(super) fn always(&self) -> bool {
        self.nth.is_none()
            && self.after == 0
            && self.every == 1
            && self.times.is_none()
            && self.probability >= 1.0
    }

    /// Whether the match with that number (from 1, since the rule was armed) may fire, when the
    /// rule has fired so often since then; the draw for the probability is left to the caller.
    pub(crate) fn selects(&self, number: u64, fired: u64) -> bool {
        self.times.is_none_or(|times| fired < times)
            && self.nth.as_ref().is_none_or(|nth| nth.contains(number))
            && number > self.after
            && (number - self.after - 1).is_multiple_of(self.every)
    }
}

impl Match {
    /// Whether the request matches, apart from counts and draws.
    pub(crate) fn takes(&self, request: &Request<'_>) -> bool {
        if self.ops & request.op.bit() == 0 {
            return false;
        }
        if let Some(size) = &self.size
            && !size.contains(request.sectors.saturating_mul(512))
        {
            return false;
        }
        if self.kinds != 0 {
            return request.spans.iter().any(|span| self.takes_span(span));
        }
        match &self.sector {
            Some(wanted) => overlaps(wanted, request.sector, request.sectors),
            None => true,
        }
    }

    fn takes_span(&self, span: &Span) -> bool {
        if self.kinds & span.class.kind().bit() == 0 {
            return false;
        }
        if let Some(wanted) = &self.sector
            && !overlaps(wanted, span.first_sector, span.sectors)
        {
            return false;
        }
        if let Some(tid) = &self.tid
            && !span.class.tid().is_some_and(|of| tid.contains(of.into()))
        {
            return false;
        }
        if let Class::JournalCopy { of, .. } = span.class
            && self.of != 0
            && self.of & of.kind().bit() == 0
        {
            return false;
        }
        match span.class.subject() {
            Some(home) => self.takes_home(home),
            None => true,
        }
    }

    /// Whether the block has what the rule asks for. A field that its class does not have
    /// cannot be asked for, save of a log copy, whose subject is not known before.
    fn takes_home(&self, home: Home) -> bool {
        let number = |wanted: &Option<Ranges>, have: Option<u64>| match wanted {
            Some(wanted) => have.is_some_and(|have| wanted.contains(have)),
            None => true,
        };
        let (depth, lblk, state) = match home {
            Home::ExtentNode { depth, .. } => (Some(depth.into()), None, None),
            Home::FileData { first_lblk, last_lblk, state, .. } => {
                (None, Some((first_lblk.into(), last_lblk.into())), Some(state))
            }
            _ => (None, None, None),
        };
        let backup = match home {
            Home::Superblock { backup } | Home::GroupDescriptors { backup } => Some(backup),
            _ => None,
        };
        number(&self.group, home.group().map(u64::from))
            && number(&self.depth, depth)
            && self.inode.as_ref().is_none_or(|inode| concerns(home, inode))
            && self
                .lblk
                .as_ref()
                .is_none_or(|wanted| lblk.is_some_and(|(first, last)| wanted.overlaps(first, last)))
            && (self.state.is_none() || self.state == state)
            && (self.backup.is_none() || self.backup == backup)
    }

    /// Whether every request that `other` takes is taken by this one too.
    pub(super) fn covers(&self, other: &Match) -> bool {
        let within = |mine: &Option<Ranges>, theirs: &Option<Ranges>| match (mine, theirs) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => mine.covers(theirs),
        };
        let bits = |mine: u32, theirs: u32| mine == 0 || (theirs != 0 && theirs & !mine == 0);
        // A rule with a class that asks about sectors asks about fewer than one without.
        self.ops & other.ops == other.ops
            && bits(self.kinds, other.kinds)
            && bits(self.of, other.of)
            && within(&self.group, &other.group)
            && within(&self.inode, &other.inode)
            && within(&self.lblk, &other.lblk)
            && within(&self.depth, &other.depth)
            && within(&self.tid, &other.tid)
            && within(&self.sector, &other.sector)
            && within(&self.size, &other.size)
            && (self.state.is_none() || self.state == other.state)
            && (self.backup.is_none() || self.backup == other.backup)
    }
}

/// Whether sectors are among those wanted; none are if there are none.
fn overlaps(wanted: &Ranges, sector: u64, sectors: u64) -> bool {
    sectors.checked_sub(1).is_some_and(|more| wanted.overlaps(sector, sector.saturating_add(more)))
}

/// Whether the block concerns one of the inodes (see [`Home::concerns_inode`]).
pub(crate) fn concerns(home: Home, inodes: &Ranges) -> bool {
    match home {
        Home::InodeTable { first_inode, last_inode, .. } => {
            inodes.overlaps(first_inode.into(), last_inode.into())
        }
        Home::ExtentNode { inode, .. }
        | Home::IndirectBlock { inode }
        | Home::Directory { inode }
        | Home::Xattr { inode }
        | Home::FileData { inode, .. } => inodes.contains(inode.into()),
        _ => false,
    }
}
