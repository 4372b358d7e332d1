//! Goal: the rules files that come with racegate are sound and mean what their comments say.
//! Method: parse each, and a snapshot of its meaning in words.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use pipeline::RuleSet;

#[test]
fn examples_are_sound() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-tests/plans/rules");
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "toml") {
            files.push(file);
        }
    }
    files.sort();
    let mut meanings = String::new();
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let mut read =
            |name: &str| fs::read_to_string(folder.join(name)).map_err(|error| error.to_string());
        let rules = RuleSet::parse_with(&fs::read_to_string(&file)?, &name, &mut read)?;
        writeln!(meanings, "{name}")?;
        for (rule, meaning) in rules.names().zip(rules.meanings()) {
            writeln!(meanings, "  {rule}: {meaning}")?;
        }
    }
    insta::assert_snapshot!(meanings);
    Ok(())
}
