//! What reports need besides trials: how long requests were delayed, what was ordered, the verdicts,
//! and what shadows noticed.
//!
//! In: the same, while a campaign runs and when it ends. Out: [`Stored`], everything of a campaign.
//!
//! The tables are added to a database that lacks them, and an older racegate leaves them alone.

use rusqlite::{Row, params};

use super::{Earlier, Running, Store, StoreError};
use crate::delays::Delayed;
use crate::runner::{Campaign, Noticed};

pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS delay (
    result    INTEGER NOT NULL REFERENCES trial,
    rule      TEXT NOT NULL,
    asked_ns  INTEGER NOT NULL,
    waited_ns INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS delay_of ON delay (result);
CREATE TABLE IF NOT EXISTS ordered (
    campaign  INTEGER PRIMARY KEY REFERENCES campaign,
    trials    INTEGER NOT NULL,           -- of each arm and kernel, all shards together
    sure      REAL,                       -- error of a sequential test; NULL without one
    shard     INTEGER,                    -- from 1; NULL if it is the whole
    shards    INTEGER
);
CREATE TABLE IF NOT EXISTS judged (
    campaign  INTEGER NOT NULL REFERENCES campaign,
    kernel    TEXT NOT NULL,
    verdict   TEXT NOT NULL,
    error     REAL NOT NULL,
    reason    TEXT,
    UNIQUE (campaign, kernel)
);
CREATE TABLE IF NOT EXISTS notice (       -- of a shadow
    campaign  INTEGER NOT NULL REFERENCES campaign,
    kernel    TEXT NOT NULL,
    arm       TEXT NOT NULL,
    trial     INTEGER NOT NULL,
    rule      TEXT NOT NULL,
    text      TEXT NOT NULL,
    after_us  INTEGER NOT NULL
);
";

/// A part of a campaign: of every `of` trials the one with number `index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    pub index: u32,
    /// How many there are.
    pub of: u32,
}

impl Shard {
    /// Whether a trial, counted from 0, belongs to it.
    pub fn has(self, trial: u32) -> bool {
        trial % self.of.max(1) == self.index - 1
    }
}

/// What was to be run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ordered {
    /// Trials of each arm and kernel, those of other shards included.
    pub trials: u32,
    /// The error probability of the sequential test that may end a kernel's trials early.
    pub sure: Option<f64>,
    /// Which part of it.
    pub shard: Option<Shard>,
}

impl Ordered {
    /// Trials of each arm and kernel in this database.
    pub fn here(&self) -> u32 {
        let has = |trial: &u32| self.shard.is_none_or(|shard| shard.has(*trial));
        (0..self.trials).filter(has).count() as u32
    }
}

/// A verdict as it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The kernel.
    pub kernel: String,
    /// The verdict's name.
    pub verdict: String,
    /// Probability that it is wrong.
    pub error: f64,
    /// Why it is inconclusive.
    pub reason: Option<String>,
}

/// A failure of a guest or its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// The trial that was repeated.
    pub trial: u32,
    /// When, in seconds since 1970.
    pub at: i64,
    /// What happened.
    pub text: String,
}

/// Something that a shadow noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// The kernel.
    pub kernel: String,
    /// The arm.
    pub arm: String,
    /// The trial.
    pub trial: u32,
    /// The rule that was broken.
    pub rule: String,
    /// What led to it.
    pub text: String,
    /// Microseconds from the kernel's step to when the host had it.
    pub after_us: u64,
}

impl From<&Noticed> for Notice {
    fn from(noticed: &Noticed) -> Notice {
        let Noticed { kernel, arm, trial, rule, text, noticed_after_us, .. } = noticed.clone();
        Notice { kernel, arm, trial, rule, text, after_us: noticed_after_us }
    }
}

/// Everything that is known of a campaign.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its number.
    pub id: i64,
    /// When it was started, in seconds since 1970.
    pub started: i64,
    /// When it ended; `None` while it runs, or after a crash.
    pub finished: Option<i64>,
    /// The plan's name.
    pub plan: String,
    /// Its seed.
    pub seed: u64,
    /// Its settings, as [`Store::begin`] got them.
    pub settings: String,
    /// What was typed.
    pub command: String,
    /// Trials, first hits, findings.
    pub earlier: Earlier,
    /// What was to be run; `None` in the results of an older racegate.
    pub ordered: Option<Ordered>,
    /// Verdicts, if it ran to its end.
    pub judged: Vec<Judged>,
    /// Guests that failed.
    pub failures: Vec<Failure>,
    /// What shadows noticed.
    pub notices: Vec<Notice>,
    /// Delays by kernel and arm.
    pub delays: Vec<(String, String, Delayed)>,
}

impl Running {
    /// How long requests of a result were delayed.
    pub fn delays(&self, result: i64, delays: &[Delayed]) -> Result<(), StoreError> {
        let mut connection = self.store.lock();
        let mut write = || -> rusqlite::Result<()> {
            let writing = connection.transaction()?;
            let sql =
                "INSERT INTO delay (result, rule, asked_ns, waited_ns) VALUES (?1, ?2, ?3, ?4)";
            for Delayed { rule, asked_ns, waited_ns } in delays {
                let (asked, waited) = (asked_ns.cast_signed(), waited_ns.cast_signed());
                writing.prepare_cached(sql)?.execute(params![result, rule, asked, waited])?;
            }
            writing.commit()
        };
        if delays.is_empty() { Ok(()) } else { write().map_err(|source| self.store.failed(source)) }
    }

    /// What is to be run; a campaign that is resumed with more trials is one of more trials.
    pub fn ordered(&self, ordered: &Ordered) -> Result<(), StoreError> {
        let Ordered { trials, sure, shard } = ordered;
        self.write(
            "INSERT OR REPLACE INTO ordered (campaign, trials, sure, shard, shards) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.campaign, trials, sure, shard.map(|s| s.index), shard.map(|s| s.of)],
        )
    }

    /// It ran to its end, with these verdicts.
    pub fn conclude(&self, campaign: &Campaign) -> Result<(), StoreError> {
        for (kernel, verdict, error) in &campaign.verdicts {
            let reason = campaign.reasons.iter().find(|(known, _)| known == kernel);
            let reason = reason.map(|(_, reason)| reason);
            self.write(
                "INSERT OR REPLACE INTO judged (campaign, kernel, verdict, error, reason) \
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![self.campaign, kernel, verdict.name(), error, reason],
            )?;
        }
        for noticed in &campaign.noticed {
            self.notice(&Notice::from(noticed))?;
        }
        self.finish()
    }

    /// Something that a shadow noticed.
    pub(super) fn notice(&self, notice: &Notice) -> Result<(), StoreError> {
        let Notice { kernel, arm, trial, rule, text, after_us } = notice;
        self.write(
            "INSERT INTO notice (campaign, kernel, arm, trial, rule, text, after_us) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![self.campaign, kernel, arm, trial, rule, text, after_us.cast_signed()],
        )
    }

    /// A failure that was seen elsewhere.
    pub(super) fn failure_at(&self, failure: &Failure) -> Result<(), StoreError> {
        let Failure { kernel, arm, trial, at, text } = failure;
        self.write(
            "INSERT INTO failure (campaign, kernel, arm, trial, at, text) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.campaign, kernel, arm, trial, at, text],
        )
    }

    /// Its verdicts are no longer those of what is stored.
    pub(super) fn unjudge(&self) -> Result<(), StoreError> {
        self.write("DELETE FROM judged WHERE campaign = ?1", params![self.campaign])
    }
}

impl Store {
    /// Everything that is known of a campaign.
    pub fn stored(&self, id: i64) -> Result<Stored, StoreError> {
        let earlier = self.earlier(id)?;
        let connection = self.lock();
        let read = || -> rusqlite::Result<Stored> {
            let sql = "SELECT started, finished, plan, seed, settings, command FROM campaign \
                       WHERE id = ?1";
            let mut stored = connection.query_row(sql, [id], |row| {
                Ok(Stored {
                    id,
                    started: row.get(0)?,
                    finished: row.get(1)?,
                    plan: row.get(2)?,
                    seed: row.get::<_, i64>(3)?.cast_unsigned(),
                    settings: row.get(4)?,
                    command: row.get(5)?,
                    earlier,
                    ordered: None,
                    judged: Vec::new(),
                    failures: Vec::new(),
                    notices: Vec::new(),
                    delays: Vec::new(),
                })
            })?;
            let of = |sql: &str| connection.prepare(sql);
            let sql = "SELECT trials, sure, shard, shards FROM ordered WHERE campaign = ?1";
            stored.ordered = of(sql)?.query_map([id], ordered)?.next().transpose()?;
            let sql = "SELECT kernel, verdict, error, reason FROM judged WHERE campaign = ?1 \
                       ORDER BY rowid";
            stored.judged = of(sql)?.query_map([id], judged)?.collect::<rusqlite::Result<_>>()?;
            let sql = "SELECT kernel, arm, trial, at, text FROM failure WHERE campaign = ?1 \
                       ORDER BY rowid";
            stored.failures =
                of(sql)?.query_map([id], failure)?.collect::<rusqlite::Result<_>>()?;
            let sql = "SELECT kernel, arm, trial, rule, text, after_us FROM notice \
                       WHERE campaign = ?1 ORDER BY rowid";
            stored.notices = of(sql)?.query_map([id], notice)?.collect::<rusqlite::Result<_>>()?;
            let sql = "SELECT t.kernel, t.arm, d.rule, d.asked_ns, d.waited_ns FROM delay d \
                       JOIN trial t ON t.id = d.result WHERE t.campaign = ?1 ORDER BY d.rowid";
            stored.delays = of(sql)?.query_map([id], delay)?.collect::<rusqlite::Result<_>>()?;
            Ok(stored)
        };
        read().map_err(|source| match source {
            rusqlite::Error::QueryReturnedNoRows => {
                StoreError::NoCampaign { path: self.path.clone(), id }
            }
            source => self.failed(source),
        })
    }
}

fn ordered(row: &Row<'_>) -> rusqlite::Result<Ordered> {
    let (index, of): (Option<u32>, Option<u32>) = (row.get(2)?, row.get(3)?);
    let shard = index.zip(of).map(|(index, of)| Shard { index, of });
    Ok(Ordered { trials: row.get(0)?, sure: row.get(1)?, shard })
}

fn judged(row: &Row<'_>) -> rusqlite::Result<Judged> {
    let (kernel, verdict) = (row.get(0)?, row.get(1)?);
    Ok(Judged { kernel, verdict, error: row.get(2)?, reason: row.get(3)? })
}

fn failure(row: &Row<'_>) -> rusqlite::Result<Failure> {
    let (kernel, arm) = (row.get(0)?, row.get(1)?);
    Ok(Failure { kernel, arm, trial: row.get(2)?, at: row.get(3)?, text: row.get(4)? })
}

fn notice(row: &Row<'_>) -> rusqlite::Result<Notice> {
    Ok(Notice {
        kernel: row.get(0)?,
        arm: row.get(1)?,
        trial: row.get(2)?,
        rule: row.get(3)?,
        text: row.get(4)?,
        after_us: row.get::<_, i64>(5)?.cast_unsigned(),
    })
}

fn delay(row: &Row<'_>) -> rusqlite::Result<(String, String, Delayed)> {
    let (asked, waited): (i64, i64) = (row.get(3)?, row.get(4)?);
    let (asked_ns, waited_ns) = (asked.cast_unsigned(), waited.cast_unsigned());
    Ok((row.get(0)?, row.get(1)?, Delayed { rule: row.get(2)?, asked_ns, waited_ns }))
}
