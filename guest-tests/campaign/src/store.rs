//! Results as they come, in an SQLite database: a campaign that is killed loses the trial that ran.
//!
//! In: campaigns, trials, findings, failures of the infrastructure. Out: the same, by campaign or by
//! result.
//! Must not know: how a trial runs, what a plan means.
//!
//! One transaction per trial. Several racegates may use the file at once (write-ahead log); what is
//! in it survives the death of a process, not that of the machine's power.

mod error;
mod merge;
mod more;
mod read;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

pub use error::StoreError;
pub use merge::{Merged, Source};
pub use more::{Failure, Judged, Notice, Ordered, Shard, Stored};
pub use read::{Earlier, StoredTrial, Summary};

use crate::runner::{Finding, Outcome, TrialRecord};
use crate::timeline::Timeline;

/// `PRAGMA user_version` of the files that this program reads and writes.
const VERSION: i64 = 1;

/// How long another racegate may keep the file locked.
const BUSY_LIMIT: Duration = Duration::from_secs(20);

const SCHEMA: &str = "
CREATE TABLE campaign (
    id        INTEGER PRIMARY KEY,
    started   INTEGER NOT NULL,           -- seconds since 1970
    finished  INTEGER,                    -- the same; NULL while it runs, or after a crash
    plan      TEXT NOT NULL,              -- its name
    seed      INTEGER NOT NULL,           -- 64 bits, as a signed number
    settings  TEXT NOT NULL,              -- JSON: everything that decides what a trial is
    command   TEXT NOT NULL               -- what was typed
);
CREATE TABLE trial (
    id        INTEGER PRIMARY KEY,
    campaign  INTEGER NOT NULL REFERENCES campaign,
    kernel    TEXT NOT NULL,
    arm       TEXT NOT NULL,
    trial     INTEGER NOT NULL,           -- from 0
    seed      INTEGER NOT NULL,
    outcome   TEXT NOT NULL,              -- hit, miss, invalid
    evidence  TEXT NOT NULL,
    seconds   REAL NOT NULL,
    timeline  TEXT,                       -- JSON, of the first hit of a kernel
    UNIQUE (campaign, kernel, arm, trial)
);
CREATE TABLE finding (
    campaign  INTEGER NOT NULL REFERENCES campaign,
    kernel    TEXT NOT NULL,
    arm       TEXT NOT NULL,
    trial     INTEGER NOT NULL,
    text      TEXT NOT NULL
);
CREATE TABLE failure (                    -- of a guest or its devices: no result, tried again
    campaign  INTEGER NOT NULL REFERENCES campaign,
    kernel    TEXT NOT NULL,
    arm       TEXT NOT NULL,
    trial     INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    text      TEXT NOT NULL
);
";

/// A database of results.
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A campaign whose results are being stored.
#[derive(Clone, Debug)]
pub struct Running {
    store: Arc<Store>,
    campaign: i64,
}

impl Store {
    /// `$XDG_STATE_HOME/racegate/results.db`, or `~/.local/state/racegate/results.db`.
    pub fn usual_path() -> Result<PathBuf, StoreError> {
        let folder = |name| {
            // The XDG base directory specification: relative paths are to be ignored.
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        folder("XDG_STATE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
            .map(|base| base.join("racegate/results.db"))
            .ok_or(StoreError::NoHome)
    }

    /// Opens the database at `path`; it and its folder are made if they are not there.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .map_err(|source| StoreError::Folder { path: folder.to_owned(), source })?;
        }
        let failed = |source| StoreError::Sql { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(failed)?;
        connection.busy_timeout(BUSY_LIMIT).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        // Immediate: of two that make the file at once, one waits.
        let making = connection
            .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
            .map_err(failed)?;
        let version: i64 =
            making.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        match version {
            0 => {
                making.execute_batch(SCHEMA).map_err(failed)?;
                making.pragma_update(None, "user_version", VERSION).map_err(failed)?;
            }
            VERSION => {}
            found => return Err(StoreError::Version { path: path.to_owned(), found }),
        }
        making.execute_batch(more::TABLES).map_err(failed)?;
        making.commit().map_err(failed)?;
        Ok(Store { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new campaign. `settings` is JSON that tells campaigns apart: equal settings and an equal
    /// seed mean equal trials. `command` is what was typed.
    pub fn begin(
        self: &Arc<Store>,
        plan: &str,
        seed: u64,
        settings: &str,
        command: &str,
    ) -> Result<Running, StoreError> {
        let connection = self.lock();
        let sql = "INSERT INTO campaign (started, plan, seed, settings, command) \
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        connection
            .execute(sql, params![now(), plan, seed.cast_signed(), settings, command])
            .map_err(|source| self.failed(source))?;
        let campaign = connection.last_insert_rowid();
        drop(connection);
        Ok(Running { store: Arc::clone(self), campaign })
    }

    /// The newest campaign with those settings and that seed, or any seed; with its seed.
    pub fn resume(
        self: &Arc<Store>,
        settings: &str,
        seed: Option<u64>,
    ) -> Result<Option<(Running, u64)>, StoreError> {
        let sql = "SELECT id, seed FROM campaign WHERE settings = ?1 AND (?2 IS NULL OR seed = ?2) \
                   ORDER BY id DESC LIMIT 1";
        let found =
            self.lock().query_row(sql, params![settings, seed.map(u64::cast_signed)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            });
        match found {
            Ok((campaign, seed)) => {
                let running = Running { store: Arc::clone(self), campaign };
                Ok(Some((running, seed.cast_unsigned())))
            }
            Err(rusqlite::Error::QueryReturnedNoRows) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Sql { path: self.path.clone(), source }
    }
}

impl Running {
    /// Its number in the database.
    pub fn campaign(&self) -> i64 {
        self.campaign
    }

    /// The database.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Everything that was stored of it.
    pub fn earlier(&self) -> Result<Earlier, StoreError> {
        self.store.earlier(self.campaign)
    }

    /// A trial that was carried out; `timeline` if it is one to keep. Gives the result's number.
    pub fn trial(
        &self,
        record: &TrialRecord,
        timeline: Option<&Timeline>,
    ) -> Result<i64, StoreError> {
        let (outcome, evidence) = match &record.outcome {
            Outcome::Hit { evidence } => ("hit", evidence),
            Outcome::Miss { evidence } => ("miss", evidence),
            Outcome::Invalid { evidence } => ("invalid", evidence),
        };
        let timeline = timeline.and_then(|timeline| serde_json::to_string(timeline).ok());
        let connection = self.store.lock();
        let sql = "INSERT INTO trial \
                   (campaign, kernel, arm, trial, seed, outcome, evidence, seconds, timeline) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let TrialRecord { kernel, arm, trial, seed, seconds, .. } = record;
        let seed = seed.cast_signed();
        connection
            .execute(
                sql,
                params![
                    self.campaign,
                    kernel,
                    arm,
                    trial,
                    seed,
                    outcome,
                    evidence,
                    seconds,
                    timeline
                ],
            )
            .map_err(|source| self.store.failed(source))?;
        Ok(connection.last_insert_rowid())
    }

    /// Something that nobody expected.
    pub fn finding(&self, finding: &Finding) -> Result<(), StoreError> {
        let Finding { kernel, arm, trial, text } = finding;
        self.write(
            "INSERT INTO finding (campaign, kernel, arm, trial, text) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![self.campaign, kernel, arm, trial, text],
        )
    }

    /// A failure of the infrastructure: the guest is booted anew, the trial repeated.
    pub fn failure(
        &self,
        kernel: &str,
        arm: &str,
        trial: u32,
        text: &str,
    ) -> Result<(), StoreError> {
        self.write(
            "INSERT INTO failure (campaign, kernel, arm, trial, at, text) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![self.campaign, kernel, arm, trial, now(), text],
        )
    }

    /// It ran to its end.
    pub fn finish(&self) -> Result<(), StoreError> {
        self.write("UPDATE campaign SET finished = ?2 WHERE id = ?1", params![self.campaign, now()])
    }

    fn write(&self, sql: &str, parameters: impl rusqlite::Params) -> Result<(), StoreError> {
        let connection = self.store.lock();
        connection.execute(sql, parameters).map(drop).map_err(|source| self.store.failed(source))
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().cast_signed()
}

#[cfg(test)]
mod tests;
