//! How a fix is taken out of a kernel's source: a few small edits, each bound to one function.
//!
//! In: a file of edits (TOML), source text. Out: source text without the fix, or why the edits do
//! not fit it.
//! Must not know: how a kernel is built, where the source is.
//!
//! An edit names a function and a piece of it that must be there exactly once. A source that has
//! moved on does not have it, or has it twice: then nothing is built, so that a kernel "without" a
//! fix never has it.

use serde::Deserialize;

/// The fixes that can be taken out.
const FIXES: [(&str, &str); 1] = [("M01", include_str!("M01.toml"))];

/// A fix, and the edits that take it out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fix {
    /// Its short name: that of the engine's mutant.
    #[serde(rename = "fix")]
    pub name: String,
    /// The subject of its commit.
    pub subject: String,
    #[serde(rename = "variant")]
    variants: Vec<Variant>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    /// Series whose source these edits fit.
    series: Vec<String>,
    #[serde(rename = "edit")]
    edits: Vec<Edit>,
}

/// One edit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    /// The file, from the top of the source.
    pub(super) file: String,
    /// The function that is edited.
    pub(super) function: String,
    /// What is in it exactly once.
    pub(super) find: String,
    /// What stands there without the fix.
    pub(super) replace: String,
}

/// An edit does not fit the source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The function is not defined there, or more than once.
    #[error(
        "{file} defines {function}() {times} times, not once: the source has moved, and the edit must follow"
    )]
    Function {
        /// The file.
        file: String,
        /// The function.
        function: String,
        /// How often it is defined.
        times: usize,
    },
    /// The text is not there, or more than once.
    #[error(
        "{file}, {function}(): \"{find}\" is there {times} times, not once: the source has moved, and the edit must follow"
    )]
    Text {
        /// The file.
        file: String,
        /// The function.
        function: String,
        /// What was looked for.
        find: String,
        /// How often it is there.
        times: usize,
    },
}

impl Fix {
    /// The fixes that can be taken out.
    pub fn all() -> impl Iterator<Item = Fix> {
        FIXES.iter().filter_map(|(_, text)| toml::from_str(text).ok())
    }

    /// Names of the fixes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FIXES.iter().map(|(name, _)| *name)
    }

    /// The fix of that name.
    pub fn named(name: &str) -> Option<Fix> {
        Fix::all().find(|fix| fix.name == name)
    }

    /// The series that it can be taken out of.
    pub fn series(&self) -> Vec<&str> {
        self.variants.iter().flat_map(|variant| variant.series.iter().map(String::as_str)).collect()
    }

    /// The edits for one series.
    pub(super) fn edits(&self, series: &str) -> Option<&[Edit]> {
        let fits = |variant: &&Variant| variant.series.iter().any(|known| known == series);
        self.variants.iter().find(fits).map(|variant| variant.edits.as_slice())
    }
}

impl Edit {
    /// `text` with the edit.
    ///
    /// # Errors
    /// The function or the piece of it is not there exactly once.
    pub(super) fn apply(&self, text: &str) -> Result<String, EditError> {
        let Edit { file, function, find, replace } = self;
        let bodies = definitions(text, function);
        let [(start, end)] = bodies[..] else {
            let (file, function) = (file.clone(), function.clone());
            return Err(EditError::Function { file, function, times: bodies.len() });
        };
        let body = text.get(start..end).unwrap_or_default();
        let times = body.matches(find.as_str()).count();
        if times != 1 {
            let (file, function, find) = (file.clone(), function.clone(), find.clone());
            return Err(EditError::Text { file, function, find, times });
        }
        let edited = body.replacen(find.as_str(), replace, 1);
        Ok(format!("{}{edited}{}", &text[..start], &text[end..]))
    }
}

/// Where `function` is defined in C source of the kernel's style: from a line that starts with its
/// head at the left edge to the closing brace at the left edge. A declaration ends with `;`.
fn definitions(text: &str, function: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let head = line.find(function).is_some_and(|index| {
            let before = line[..index].chars().next_back();
            let word = before.is_some_and(|c| c == ' ' || c == '*');
            (word || index == 0) && line[index + function.len()..].starts_with('(')
        });
        if !head || line.starts_with([' ', '\t', '/', '*', '#']) {
            continue;
        }
        let rest = &text[start..];
        let Some(open) = rest.find("\n{\n") else { continue };
        if rest[..open].contains(';') {
            continue;
        }
        if let Some(close) = rest[open..].find("\n}\n") {
            found.push((start, start + open + close + 3));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "static int one(int a);\n\nstatic int one(int a)\n{\n\tif (a) {\n\t\treturn \
        two(a);\n\t}\n\treturn 0;\n}\n\nint\nthree(void)\n{\n\treturn one(1) + a;\n}\n";

    fn edit(function: &str, find: &str) -> Edit {
        Edit {
            file: "f.c".to_owned(),
            function: function.to_owned(),
            find: find.to_owned(),
            replace: "if (0 && a) {".to_owned(),
        }
    }

    #[test]
    fn an_edit_changes_one_place_of_one_function() {
        let edited = edit("one", "if (a) {").apply(SOURCE).unwrap();
        assert_eq!(edited, SOURCE.replace("if (a) {", "if (0 && a) {"));
        let three = edit("three", "return").apply(SOURCE).unwrap();
        assert_eq!(three.matches("if (0 && a) { one(1)").count(), 1);
    }

    #[test]
    fn a_source_that_has_moved_is_refused() {
        let error = |function, find| edit(function, find).apply(SOURCE).unwrap_err();
        assert!(matches!(error("two", "a"), EditError::Function { times: 0, .. }));
        assert!(matches!(error("one", "if (b)"), EditError::Text { times: 0, .. }));
        assert!(matches!(error("one", "return"), EditError::Text { times: 2, .. }));
        let twice = format!("{SOURCE}{SOURCE}");
        let error = edit("one", "if (a) {").apply(&twice).unwrap_err();
        assert!(matches!(error, EditError::Function { times: 2, .. }));
        // Without the fix already: what the edit looks for is not there any more.
        let edited = edit("one", "if (a) {").apply(SOURCE).unwrap();
        assert!(edit("one", "if (a) {").apply(&edited).is_err());
    }

    #[test]
    fn every_file_of_edits_is_sound() {
        assert_eq!(Fix::all().count(), FIXES.len());
        for (name, text) in FIXES {
            let fix: Fix = toml::from_str(text).unwrap();
            assert_eq!(fix.name, name);
            for series in fix.series() {
                for edit in fix.edits(series).unwrap() {
                    assert_ne!(edit.find, edit.replace);
                    assert!(!edit.find.trim().is_empty() && edit.find.lines().count() <= 3);
                }
            }
        }
        assert!(Fix::named("M01").unwrap().edits("6.1").is_some());
        assert!(Fix::named("M01").unwrap().edits("1.0").is_none());
    }
}
