//! Several databases into one: shards of a campaign become the campaign.
//!
//! In: databases of results. Out: a database in which campaigns with equal settings and an equal
//! seed are one.
//! Must not know: what settings mean.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Ordered, Running, Store, StoreError, Stored};
use crate::delays::Delayed;
use crate::runner::{Outcome, TrialRecord};

/// What was taken over from one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Campaigns in it.
    pub campaigns: usize,
    /// Trials that were not there before.
    pub trials: usize,
    /// Trials that were, with the same outcome.
    pub known: usize,
}

/// What came out of merging.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// By database, in the order in which they were given.
    pub sources: Vec<Source>,
    /// Numbers of the campaigns in the database that they were merged into, each once.
    pub campaigns: Vec<i64>,
}

/// The trials of a campaign that are there already.
type Known = HashMap<(String, String, u32), Outcome>;

impl Store {
    /// Takes over every campaign of `sources`. Trials that are there already are passed over, so
    /// merging twice is merging once. `sources` are not changed.
    ///
    /// # Errors
    /// A database that cannot be used; a trial that is there with another outcome.
    pub fn merge(self: &Arc<Store>, sources: &[Arc<Store>]) -> Result<Merged, StoreError> {
        let same = |source: &&Arc<Store>| {
            let real = |path| fs::canonicalize(path).ok();
            real(source.path()).is_some_and(|path| Some(path) == real(self.path()))
        };
        if let Some(source) = sources.iter().find(same) {
            return Err(StoreError::Itself { path: source.path().to_owned() });
        }
        let mut merged = Merged::default();
        for source in sources {
            let mut of =
                Source { path: source.path().to_owned(), campaigns: 0, trials: 0, known: 0 };
            // From old to new, as they were run.
            let mut campaigns = source.campaigns()?;
            campaigns.reverse();
            for campaign in campaigns {
                let stored = source.stored(campaign.id)?;
                let into = self.take(source, &stored, &mut of)?;
                of.campaigns += 1;
                if !merged.campaigns.contains(&into) {
                    merged.campaigns.push(into);
                }
            }
            merged.sources.push(of);
        }
        Ok(merged)
    }

    /// Takes over one campaign; gives its number here.
    fn take(
        self: &Arc<Store>,
        source: &Store,
        stored: &Stored,
        of: &mut Source,
    ) -> Result<i64, StoreError> {
        let running = match self.resume(&stored.settings, Some(stored.seed))? {
            Some((running, _)) => running,
            None => self.begin(&stored.plan, stored.seed, &stored.settings, &stored.command)?,
        };
        let here = self.stored(running.campaign())?;
        let key = |record: &TrialRecord| (record.kernel.clone(), record.arm.clone(), record.trial);
        let mut known: Known = HashMap::new();
        known
            .extend(here.earlier.trials.iter().map(|record| (key(record), record.outcome.clone())));
        let mut timelines = source.timelines(stored.id)?;
        let mut delays = source.delays_by_trial(stored.id)?;
        for record in &stored.earlier.trials {
            match known.get(&key(record)) {
                None => {
                    let timeline = timelines.remove(&key(record));
                    let result = running.trial(record, timeline.as_ref())?;
                    running.delays(result, &delays.remove(&key(record)).unwrap_or_default())?;
                    of.trials += 1;
                }
                Some(outcome) if *outcome == record.outcome => of.known += 1,
                Some(_) => {
                    let (path, TrialRecord { kernel, arm, trial, .. }) = (of.path.clone(), record);
                    let (kernel, arm) = (kernel.clone(), arm.clone());
                    return Err(StoreError::Conflict { path, kernel, arm, trial: *trial });
                }
            }
        }
        for finding in &stored.earlier.findings {
            if !here.earlier.findings.contains(finding) {
                running.finding(finding)?;
            }
        }
        for failure in &stored.failures {
            if !here.failures.contains(failure) {
                running.failure_at(failure)?;
            }
        }
        for notice in &stored.notices {
            if !here.notices.contains(notice) {
                running.notice(notice)?;
            }
        }
        running.take_order(&here, stored)?;
        Ok(running.campaign())
    }
}

impl Running {
    /// The whole of which both are parts. Verdicts of parts say nothing about it: they are left out.
    fn take_order(&self, here: &Stored, stored: &Stored) -> Result<(), StoreError> {
        let larger = |a: Ordered, b: Ordered| Ordered {
            trials: a.trials.max(b.trials),
            sure: [a.sure, b.sure].into_iter().flatten().reduce(f64::max),
            shard: None,
        };
        if let Some(ordered) = here.ordered.into_iter().chain(stored.ordered).reduce(larger) {
            self.ordered(&Ordered { shard: None, ..ordered })?;
        }
        self.unjudge()?;
        // The whole is over when every part is; a part that is not yet here is over when it comes.
        if stored.finished.is_some() { self.finish() } else { Ok(()) }
    }
}

/// Delays by kernel, arm and trial.
pub(super) type ByTrial<T> = HashMap<(String, String, u32), T>;

impl Store {
    fn timelines(&self, campaign: i64) -> Result<ByTrial<crate::timeline::Timeline>, StoreError> {
        self.by_trial(
            "SELECT kernel, arm, trial, timeline FROM trial \
             WHERE campaign = ?1 AND timeline IS NOT NULL",
            campaign,
            |timelines: &mut ByTrial<_>, key, row| {
                let text: String = row.get(3)?;
                // One that cannot be read is shown nowhere.
                timelines.extend(serde_json::from_str(&text).ok().map(|timeline| (key, timeline)));
                Ok(())
            },
        )
    }

    fn delays_by_trial(&self, campaign: i64) -> Result<ByTrial<Vec<Delayed>>, StoreError> {
        self.by_trial(
            "SELECT t.kernel, t.arm, t.trial, d.rule, d.asked_ns, d.waited_ns FROM delay d \
             JOIN trial t ON t.id = d.result WHERE t.campaign = ?1 ORDER BY d.rowid",
            campaign,
            |delays: &mut ByTrial<Vec<Delayed>>, key, row| {
                let (asked, waited): (i64, i64) = (row.get(4)?, row.get(5)?);
                delays.entry(key).or_default().push(Delayed {
                    rule: row.get(3)?,
                    asked_ns: asked.cast_unsigned(),
                    waited_ns: waited.cast_unsigned(),
                });
                Ok(())
            },
        )
    }

    fn by_trial<T>(
        &self,
        sql: &str,
        campaign: i64,
        add: impl Fn(&mut ByTrial<T>, (String, String, u32), &rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<ByTrial<T>, StoreError> {
        let connection = self.lock();
        let read = || -> rusqlite::Result<ByTrial<T>> {
            let mut all = ByTrial::new();
            let mut statement = connection.prepare(sql)?;
            let mut rows = statement.query([campaign])?;
            while let Some(row) = rows.next()? {
                add(&mut all, (row.get(0)?, row.get(1)?, row.get(2)?), row)?;
            }
            Ok(all)
        };
        read().map_err(|source| self.failed(source))
    }
}

#[cfg(test)]
mod tests;
