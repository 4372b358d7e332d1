//! Documentation that is made from the code: the reference of plans and rules, and the cookbook.
//!
//! In: the sources that define plans and rules, the plan files. Out: `guest-tests/docs/reference.md`
//! and `cookbook.md`; or the first of them that is not current.
//! Must not know: what a field means; that is said where it is defined, once.

mod cookbook;
mod reference;
mod source;

use std::fs;

use anyhow::{Context, Result, bail};

use crate::command::top;

/// Each file and what makes it.
type Page = (&'static str, fn() -> Result<String>);

const PAGES: [Page; 2] = [
    ("guest-tests/docs/reference.md", reference::page),
    ("guest-tests/docs/cookbook.md", cookbook::page),
];

/// Writes the pages.
pub(crate) fn write() -> Result<()> {
    for (path, page) in PAGES {
        let text = page().with_context(|| format!("cannot make {path}"))?;
        fs::write(top().join(path), text).with_context(|| format!("cannot write {path}"))?;
        println!("ci: {path} is current");
    }
    Ok(())
}

/// Whether the pages are what the code makes of them.
pub(crate) fn check() -> Result<()> {
    for (path, page) in PAGES {
        let wanted = page().with_context(|| format!("cannot make {path}"))?;
        let found = fs::read_to_string(top().join(path)).unwrap_or_default();
        if found != wanted {
            let lines = found.lines().zip(wanted.lines());
            let line = 1 + lines.take_while(|(found, wanted)| found == wanted).count();
            bail!("{path}:{line}: not what the code makes of it; make it with: cargo ci docs");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_current() {
        check().unwrap();
    }
}
