//! Reading typed values out of a TOML document, each with its place.
//!
//! In: a spanned TOML tree. Out: values, or a [`RulesError`] that names line and field.
//! Must not know: what the fields mean.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{RulesError, RulesProblem};
use crate::nearest::nearest;
use crate::ranges::Ranges;

/// A value of the document.
type Value<'a> = Spanned<DeValue<'a>>;

/// A document's name and text, to turn offsets into lines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
}

impl Source<'_> {
    /// Line of a byte offset, from 1.
    pub(super) fn line(self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        before.split(|byte| *byte == b'\n').count()
    }
}

/// A place in the document: which rule, which field, which bytes.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) source: Source<'a>,
    pub(super) rule: Option<&'a str>,
    pub(super) field: String,
    pub(super) span: Range<usize>,
}

impl Place<'_> {
    pub(super) fn line(&self) -> usize {
        self.source.line(self.span.start)
    }

    pub(super) fn error(&self, problem: RulesProblem) -> RulesError {
        RulesError {
            file: self.source.file.to_owned(),
            line: self.line(),
            rule: self.rule.map(str::to_owned),
            field: self.field.clone(),
            problem: Box::new(problem),
        }
    }
}

/// A table and where it is.
#[derive(Clone, Debug)]
pub(super) struct Table<'a> {
    pub(super) place: Place<'a>,
    table: &'a DeTable<'a>,
}

/// A field and where it is.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub(super) place: Place<'a>,
    value: &'a Value<'a>,
}

impl<'a> Table<'a> {
    pub(super) fn new(place: Place<'a>, table: &'a DeTable<'a>) -> Table<'a> {
        Table { place, table }
    }

    /// Refuses fields other than these; the first in the file if there are several.
    pub(super) fn only(&self, known: &[&'static str]) -> Result<(), RulesError> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else {
            return Ok(());
        };
        let name = key.get_ref().as_ref();
        Err(self.at(name, key.span()).error(RulesProblem::UnknownField {
            nearest: nearest(name, known.iter().copied()).map(str::to_owned),
            known: known.join(", "),
        }))
    }

    pub(super) fn get(&self, name: &'static str) -> Option<Field<'a>> {
        let value = self.table.get(name)?;
        Some(Field { place: self.at(name, value.span()), value })
    }

    pub(super) fn require(
        &self,
        name: &'static str,
        example: &'static str,
    ) -> Result<Field<'a>, RulesError> {
        self.get(name).ok_or_else(|| {
            self.at(name, self.place.span.clone()).error(RulesProblem::Missing { example })
        })
    }

    /// The only field of a table, whatever its name.
    pub(super) fn single(&self) -> Option<(&'a str, Field<'a>)> {
        let (key, value) = self.table.iter().next().filter(|_| self.table.len() == 1)?;
        let name = key.get_ref().as_ref();
        Some((name, Field { place: self.at(name, key.span()), value }))
    }

    fn at(&self, name: &str, span: Range<usize>) -> Place<'a> {
        let field = match self.place.field.as_str() {
            "" => name.to_owned(),
            parent => format!("{parent}.{name}"),
        };
        Place { field, span, ..self.place.clone() }
    }
}

impl<'a> Field<'a> {
    pub(super) fn error(&self, problem: RulesProblem) -> RulesError {
        self.place.error(problem)
    }

    fn wrong_type(&self, expected: &'static str) -> RulesError {
        let value = self.value.get_ref();
        let found = match value {
            DeValue::String(text) => format!("the text \"{text}\""),
            DeValue::Integer(number) => format!("the number {number}"),
            DeValue::Float(number) => format!("the number {number}"),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Datetime(time) => format!("the time {time}"),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        self.error(RulesProblem::Type { found, expected })
    }

    pub(super) fn table(&self, expected: &'static str) -> Result<Table<'a>, RulesError> {
        let table = self.value.get_ref().as_table();
        let table = table.ok_or_else(|| self.wrong_type(expected))?;
        Ok(Table { place: self.place.clone(), table })
    }

    pub(super) fn is_str(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub(super) fn str(&self, expected: &'static str) -> Result<&'a str, RulesError> {
        self.value.get_ref().as_str().ok_or_else(|| self.wrong_type(expected))
    }

    pub(super) fn bool(&self) -> Result<bool, RulesError> {
        self.value.get_ref().as_bool().ok_or_else(|| self.wrong_type("true or false"))
    }

    /// The members of a list.
    pub(super) fn list(&self, expected: &'static str) -> Result<Vec<Field<'a>>, RulesError> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type(expected))?;
        Ok(array.iter().map(|value| self.member(value)).collect())
    }

    /// The members of a list, or the one value that is there.
    pub(super) fn one_or_list(&self) -> Vec<Field<'a>> {
        match self.value.get_ref().as_array() {
            Some(array) => array.iter().map(|value| self.member(value)).collect(),
            None => vec![self.clone()],
        }
    }

    fn member(&self, value: &'a Value<'a>) -> Field<'a> {
        Field { place: Place { span: value.span(), ..self.place.clone() }, value }
    }

    /// A whole number, 0 or above.
    pub(super) fn u64(&self, expected: &'static str) -> Result<u64, RulesError> {
        let value = self.value.get_ref();
        let Some(number) = value.as_integer() else {
            return Err(self.wrong_type(expected));
        };
        u64::from_str_radix(number.as_str(), number.radix()).map_err(|_| {
            self.error(RulesProblem::OutOfRange { found: number.to_string(), expected })
        })
    }

    /// A number with or without a fraction.
    pub(super) fn f64(&self, expected: &'static str) -> Result<f64, RulesError> {
        let text = match self.value.get_ref() {
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            _ => return Err(self.wrong_type(expected)),
        };
        text.parse().map_err(|_| self.error(RulesProblem::OutOfRange { found: text, expected }))
    }

    /// Numbers: one, a range, or a list of these.
    pub(super) fn ranges(&self) -> Result<Ranges, RulesError> {
        const EXPECTED: &str = "a whole number, a range such as \"0..=9\", or a list of these";
        let members = self.one_or_list();
        if members.is_empty() {
            let empty = RulesProblem::NeverMatches("the list is empty".to_owned());
            return Err(self.error(empty));
        }
        let mut ranges = Vec::with_capacity(members.len());
        for member in members {
            let (first, last) = if member.is_str() {
                let text = member.str(EXPECTED)?;
                parse_range(text)
                    .ok_or_else(|| member.error(RulesProblem::Range { text: text.to_owned() }))?
            } else {
                let number = member.u64(EXPECTED)?;
                (number, number)
            };
            if first > last {
                let empty = RulesProblem::NeverMatches("the range is empty".to_owned());
                return Err(member.error(empty));
            }
            ranges.push((first, last));
        }
        Ok(Ranges::new(ranges))
    }

    /// A duration in nanoseconds, above 0 and at most [`LIMIT_NS`](super::LIMIT_NS).
    pub(super) fn duration(&self) -> Result<u64, RulesError> {
        self.duration_from(1)
    }

    /// The same, from `least_ns` (0 or 1) on.
    pub(super) fn duration_from(&self, least_ns: u64) -> Result<u64, RulesError> {
        let text = self.str("a duration, for example \"80ms\"")?;
        parse_duration(text, least_ns).map_err(|problem| self.error(problem))
    }
}

/// A duration with its unit, in nanoseconds.
pub(super) fn parse_duration(text: &str, least_ns: u64) -> Result<u64, RulesProblem> {
    const EXPECTED: &str = "more than 0 and at most 60s";
    let duration = humantime::parse_duration(text.trim()).map_err(|error| {
        RulesProblem::Duration { text: text.to_owned(), reason: error.to_string() }
    })?;
    let range = |too_long| RulesProblem::DurationRange {
        found: text.to_owned(),
        too_long,
        expected: EXPECTED,
    };
    match u64::try_from(duration.as_nanos()) {
        Ok(ns) if ns < least_ns => Err(range(false)),
        Ok(ns) if ns <= super::LIMIT_NS => Ok(ns),
        _ => Err(range(true)),
    }
}

/// `a..=b`, `a..b`, `a..`, `..=b`, `..b` or `a` as inclusive bounds; an empty range comes back
/// with its bounds crossed.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let bound = |text: &str, default: u64| match text.trim() {
        "" => Some(default),
        text => text.parse().ok(),
    };
    if let Some((first, last)) = text.split_once("..=") {
        if last.trim().is_empty() {
            return None;
        }
        return Some((bound(first, 0)?, bound(last, 0)?));
    }
    if let Some((first, end)) = text.split_once("..") {
        let first = bound(first, 0)?;
        return match end.trim() {
            "" => Some((first, u64::MAX)),
            // `a..0` is empty; there is no number before 0 to end it with.
            end => {
                Some(end.parse::<u64>().ok()?.checked_sub(1).map_or((1, 0), |last| (first, last)))
            }
        };
    }
    let number = text.trim().parse().ok()?;
    Some((number, number))
}
