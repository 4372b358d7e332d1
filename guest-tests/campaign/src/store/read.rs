//! What is in the database.
//!
//! In: numbers of campaigns and results. Out: values.

use rusqlite::{Row, params};

use super::{Store, StoreError};
use crate::runner::{Finding, Outcome, TrialRecord};
use crate::timeline::Timeline;

/// What was stored of a campaign.
#[derive(Clone, Debug, Default)]
pub struct Earlier {
    /// Trials that were carried out.
    pub trials: Vec<TrialRecord>,
    /// First hits, by kernel.
    pub timelines: Vec<(String, Timeline)>,
    /// What nobody expected.
    pub findings: Vec<Finding>,
}

/// One campaign in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Its number.
    pub id: i64,
    /// When it was started, in seconds since 1970.
    pub started: i64,
    /// Whether it ran to its end.
    pub finished: bool,
    /// The plan's name.
    pub plan: String,
    /// Its seed.
    pub seed: u64,
    /// Trials that were carried out.
    pub trials: u64,
    /// How many of them hit.
    pub hits: u64,
    /// The first of these hits.
    pub first_hit: Option<i64>,
}

/// One result, with what it takes to repeat it.
#[derive(Clone, Debug)]
pub struct StoredTrial {
    /// Its number.
    pub id: i64,
    /// Settings of its campaign, as [`Store::begin`] got them.
    pub settings: String,
    /// The campaign's seed.
    pub seed: u64,
    /// The trial.
    pub record: TrialRecord,
}

impl Store {
    /// Everything that was stored of a campaign, in the order in which it happened.
    pub fn earlier(&self, campaign: i64) -> Result<Earlier, StoreError> {
        let connection = self.lock();
        let read = || -> rusqlite::Result<Earlier> {
            let mut earlier = Earlier::default();
            let mut statement = connection.prepare(
                "SELECT kernel, arm, trial, seed, outcome, evidence, seconds, timeline \
                 FROM trial WHERE campaign = ?1 ORDER BY id",
            )?;
            let mut rows = statement.query([campaign])?;
            while let Some(row) = rows.next()? {
                let record = record(row, 0)?;
                let timeline: Option<String> = row.get(7)?;
                if let Some(timeline) = timeline.and_then(|text| serde_json::from_str(&text).ok()) {
                    earlier.timelines.push((record.kernel.clone(), timeline));
                }
                earlier.trials.push(record);
            }
            let mut statement = connection.prepare(
                "SELECT kernel, arm, trial, text FROM finding WHERE campaign = ?1 ORDER BY rowid",
            )?;
            let findings = statement.query_map([campaign], |row| {
                let (kernel, arm) = (row.get(0)?, row.get(1)?);
                Ok(Finding { kernel, arm, trial: row.get(2)?, text: row.get(3)? })
            })?;
            earlier.findings = findings.collect::<rusqlite::Result<_>>()?;
            Ok(earlier)
        };
        read().map_err(|source| self.failed(source))
    }

    /// Every campaign, the newest first.
    pub fn campaigns(&self) -> Result<Vec<Summary>, StoreError> {
        let connection = self.lock();
        let read = || -> rusqlite::Result<Vec<Summary>> {
            let mut statement = connection.prepare(
                "SELECT c.id, c.started, c.finished IS NOT NULL, c.plan, c.seed, count(t.id), \
                 count(CASE t.outcome WHEN 'hit' THEN 1 END), \
                 min(CASE t.outcome WHEN 'hit' THEN t.id END) \
                 FROM campaign c LEFT JOIN trial t ON t.campaign = c.id \
                 GROUP BY c.id ORDER BY c.id DESC",
            )?;
            let rows = statement.query_map([], |row| {
                Ok(Summary {
                    id: row.get(0)?,
                    started: row.get(1)?,
                    finished: row.get(2)?,
                    plan: row.get(3)?,
                    seed: row.get::<_, i64>(4)?.cast_unsigned(),
                    trials: row.get::<_, i64>(5)?.cast_unsigned(),
                    hits: row.get::<_, i64>(6)?.cast_unsigned(),
                    first_hit: row.get(7)?,
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| self.failed(source))
    }

    /// The result of that number.
    pub fn result(&self, id: i64) -> Result<StoredTrial, StoreError> {
        let sql = "SELECT t.kernel, t.arm, t.trial, t.seed, t.outcome, t.evidence, t.seconds, \
                   c.settings, c.seed FROM trial t JOIN campaign c ON c.id = t.campaign \
                   WHERE t.id = ?1";
        let found = self.lock().query_row(sql, params![id], |row| {
            Ok(StoredTrial {
                id,
                record: record(row, 0)?,
                settings: row.get(7)?,
                seed: row.get::<_, i64>(8)?.cast_unsigned(),
            })
        });
        match found {
            Err(rusqlite::Error::QueryReturnedNoRows) => {
                Err(StoreError::NoResult { path: self.path().to_owned(), id })
            }
            found => found.map_err(|source| self.failed(source)),
        }
    }
}

/// A trial from seven columns, the first of which is `at`.
fn record(row: &Row<'_>, at: usize) -> rusqlite::Result<TrialRecord> {
    let evidence: String = row.get(at + 5)?;
    let outcome = match row.get::<_, String>(at + 4)?.as_str() {
        "hit" => Outcome::Hit { evidence },
        "miss" => Outcome::Miss { evidence },
        _ => Outcome::Invalid { evidence },
    };
    Ok(TrialRecord {
        kernel: row.get(at)?,
        arm: row.get(at + 1)?,
        trial: row.get(at + 2)?,
        seed: row.get::<_, i64>(at + 3)?.cast_unsigned(),
        outcome,
        seconds: row.get(at + 6)?,
    })
}
