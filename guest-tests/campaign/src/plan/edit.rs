//! Changes to the text of a plan: a piece less, another delay, other arms.
//!
//! In: the text of a plan file. Out: another text, with the comments and the layout of the first.
//! Must not know: whether the changed plan still makes sense; parsing it tells.

use std::time::Duration;

use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, TableLike, Value, value};

use super::{Plan, PlanError, RULES_ARM};

/// What the name of an arm of a sweep begins with; the length of the delay follows.
const DOSE: &str = "delay=";

/// The parts of a workload that are lists of operations, besides its threads.
const PARTS: [&str; 3] = ["setup", "finish", "cleanup"];

/// Something that a plan can be without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A rule of the arm `rules`, by its place.
    Rule(usize),
    /// A thread, by its place.
    Thread(usize),
    /// An operation of a thread, by both places.
    ThreadOp(usize, usize),
    /// An operation of `setup`, `finish` or `cleanup`.
    Op(&'static str, usize),
}

/// The text of a plan, taken apart. What it does not have, or has in a form of its own, is left
/// alone.
#[derive(Clone, Debug)]
pub struct PlanText {
    document: DocumentMut,
}

impl PlanText {
    /// The text of `plan`.
    ///
    /// # Errors
    /// None for the text of a [`Plan`] that was parsed.
    pub fn of(plan: &Plan) -> Result<PlanText, PlanError> {
        match plan.source.parse() {
            Ok(document) => Ok(PlanText { document }),
            // The text has been read before; only then can there be a plan.
            Err(_) => {
                Plan::parse(&plan.source, &plan.name).and(Err(PlanError::unknown(&plan.name)))
            }
        }
    }

    /// The plan that it is now.
    ///
    /// # Errors
    /// What no longer fits.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        let text = self.document.to_string();
        let name = self.document.get("name").and_then(Item::as_str).unwrap_or_default();
        Plan::parse(&text, &format!("{name} (changed)"))
    }

    /// Gives the plan another name.
    pub fn rename(&mut self, name: &str) {
        set(self.document.as_table_mut(), "name", name);
    }

    /// Puts a comment above everything else.
    pub fn head(&mut self, comment: &str) {
        let lines = comment.lines().fold(String::new(), |text, line| text + "# " + line + "\n");
        if let Some(mut first) = self.document.as_table_mut().key_mut("name") {
            let before = first.leaf_decor().prefix().and_then(|prefix| prefix.as_str());
            let before = before.unwrap_or_default().to_owned();
            first.leaf_decor_mut().set_prefix(format!("{lines}#\n{before}"));
        }
    }

    /// Keeps the arm `rules` alone.
    pub fn only_rules(&mut self) {
        if let Some(arms) = self.document.get_mut("arm").and_then(Item::as_array_of_tables_mut) {
            arms.retain(|arm| arm.get("name").and_then(Item::as_str) == Some(RULES_ARM));
        }
    }

    /// What the plan could be without: rules, threads, then operations, the last ones first.
    pub fn pieces(&self) -> Vec<Piece> {
        let rules = self.rules().map_or(0, |rules| rules.len());
        let threads: Vec<usize> = self.threads().map(ops_of).collect();
        let mut pieces: Vec<Piece> = (0..rules).rev().map(Piece::Rule).collect();
        pieces.extend((0..threads.len()).rev().map(Piece::Thread));
        for part in PARTS.into_iter().rev() {
            let ops = self.workload().and_then(|workload| workload.get(part)).map_or(0, len);
            pieces.extend((0..ops).rev().map(|op| Piece::Op(part, op)));
        }
        for (thread, ops) in threads.into_iter().enumerate().rev() {
            pieces.extend((0..ops).rev().map(|op| Piece::ThreadOp(thread, op)));
        }
        pieces
    }

    /// The text without `piece`; none if it is not there.
    pub fn without(&self, piece: &Piece) -> Option<PlanText> {
        let mut text = self.clone();
        match *piece {
            Piece::Rule(rule) => {
                let mut rules = self.rules()?;
                (rule < rules.len()).then(|| rules.remove(rule))?;
                text.set_rules(rules)?;
            }
            Piece::Thread(thread) => {
                let threads = text.workload_mut()?.get_mut("thread")?.as_array_of_tables_mut()?;
                (thread < threads.len()).then(|| threads.remove(thread))?;
            }
            Piece::ThreadOp(thread, op) => {
                let threads = text.workload_mut()?.get_mut("thread")?.as_array_of_tables_mut()?;
                remove(threads.get_mut(thread)?.get_mut("ops")?, op)?;
            }
            Piece::Op(part, op) => remove(text.workload_mut()?.get_mut(part)?, op)?,
        }
        Some(text)
    }

    /// What a piece is, in words.
    pub fn name_of(&self, piece: &Piece, plan: &Plan) -> String {
        let label = |ops: &[agent::wire::Op], op: usize| {
            ops.get(op).map_or_else(|| format!("operation {}", op + 1), agent::wire::Op::label)
        };
        let workload = &plan.workload;
        match *piece {
            Piece::Rule(rule) => {
                let rules = self.rules();
                let name = rules.as_ref().and_then(|rules| Some(name(rules.get(rule)?)));
                format!("rule {}", name.unwrap_or_default())
            }
            Piece::Thread(thread) => {
                let name = workload.threads.get(thread).map_or("", |thread| &thread.name);
                format!("thread {name}")
            }
            Piece::ThreadOp(thread, op) => {
                workload.threads.get(thread).map_or_else(String::new, |thread| {
                    format!("{}: {}", thread.name, label(&thread.ops, op))
                })
            }
            Piece::Op(part, op) => {
                let ops = match part {
                    "setup" => &workload.setup,
                    "finish" => &workload.finish,
                    _ => &workload.cleanup,
                };
                format!("{part}: {}", label(ops, op))
            }
        }
    }

    /// How long each rule of the arm `rules` makes a request wait, by its place: a fixed delay, or
    /// the longest time of a hold.
    pub fn delays(&self) -> Vec<(usize, Duration)> {
        let Some(rules) = self.rules() else {
            return Vec::new();
        };
        let delay = |rule: &Table| {
            let action = rule.get("action")?.as_table_like()?;
            let hold = || action.get("hold")?.as_table_like()?.get("at_most")?.as_str();
            let text = action.get("delay").and_then(Item::as_str).or_else(hold)?;
            humantime::parse_duration(text).ok()
        };
        let of = |(index, rule)| Some((index, delay(rule)?));
        rules.iter().enumerate().filter_map(of).collect()
    }

    /// The text with another time for one rule, or for every rule that has one.
    pub fn with_delay(&self, rule: Option<usize>, delay: Duration) -> Option<PlanText> {
        let mut text = self.clone();
        text.set_rules(self.rules_with_delay(rule, delay)?)?;
        Some(text)
    }

    fn rules_with_delay(&self, rule: Option<usize>, delay: Duration) -> Option<ArrayOfTables> {
        let mut rules = self.rules()?;
        let length = humantime::format_duration(delay).to_string().replace(' ', "");
        for (index, _) in self.delays() {
            if rule.is_some_and(|rule| rule != index) {
                continue;
            }
            let action = rules.get_mut(index)?.get_mut("action")?.as_table_like_mut()?;
            if action.get("delay").is_some() {
                set(action, "delay", &length);
            } else {
                set(action.get_mut("hold")?.as_table_like_mut()?, "at_most", &length);
            }
        }
        Some(rules)
    }

    /// Adds an arm for each length: the arm `rules` with that time in place of its own. Gives their
    /// names; none if no rule makes a request wait for a time.
    pub fn sweep(&mut self, doses: &[Duration]) -> Option<Vec<String>> {
        if self.delays().is_empty() {
            return None;
        }
        let mut names = Vec::new();
        for &dose in doses {
            let rules = text_of(self.rules_with_delay(None, dose)?);
            let length = humantime::format_duration(dose).to_string().replace(' ', "");
            let mut arm = Table::new();
            arm.insert("name", value(format!("{DOSE}{length}")));
            arm.insert("rules", value(rules));
            self.document.get_mut("arm")?.as_array_of_tables_mut()?.push(arm);
            names.push(format!("{DOSE}{length}"));
        }
        Some(names)
    }

    fn workload(&self) -> Option<&dyn TableLike> {
        self.document.get("workload")?.as_table_like()
    }

    fn workload_mut(&mut self) -> Option<&mut dyn TableLike> {
        self.document.get_mut("workload")?.as_table_like_mut()
    }

    fn threads(&self) -> impl Iterator<Item = &Table> {
        let threads = self.workload().and_then(|workload| workload.get("thread"));
        threads.and_then(Item::as_array_of_tables).into_iter().flatten()
    }

    /// The rules of the arm `rules`.
    fn rules(&self) -> Option<ArrayOfTables> {
        let mut arms = self.document.get("arm")?.as_array_of_tables()?.iter();
        let arm = arms.find(|arm| name(arm) == RULES_ARM)?;
        let rules: DocumentMut = arm.get("rules")?.as_str()?.parse().ok()?;
        rules.get("rule")?.as_array_of_tables().cloned()
    }

    fn set_rules(&mut self, rules: ArrayOfTables) -> Option<()> {
        let arms = self.document.get_mut("arm")?.as_array_of_tables_mut()?;
        let arm = arms.iter_mut().find(|arm| name(arm) == RULES_ARM)?;
        if rules.is_empty() {
            arm.remove("rules");
        } else {
            let text = text_of(rules);
            // Without characters that only a basic string can hold, it is written as it is read.
            let literal = format!("rules = '''\n{text}'''").parse::<DocumentMut>();
            let item = literal.ok().and_then(|mut made| made.remove("rules"));
            arm.insert("rules", item.unwrap_or_else(|| value(text)));
        }
        Some(())
    }
}

impl std::fmt::Display for PlanText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.document.fmt(f)
    }
}

/// The length of the delay that an arm of a sweep stands for: none for another arm.
pub fn dose(arm: &str) -> Option<Duration> {
    humantime::parse_duration(arm.strip_prefix(DOSE)?).ok()
}

fn name(table: &Table) -> &str {
    table.get("name").and_then(Item::as_str).unwrap_or_default()
}

fn text_of(rules: ArrayOfTables) -> String {
    let mut document = DocumentMut::new();
    document.insert("rule", Item::ArrayOfTables(rules));
    document.to_string().trim_start().to_owned()
}

fn ops_of(thread: &Table) -> usize {
    thread.get("ops").map_or(0, len)
}

fn len(item: &Item) -> usize {
    item.as_array()
        .map(Array::len)
        .or(item.as_array_of_tables().map(ArrayOfTables::len))
        .unwrap_or(0)
}

fn remove(item: &mut Item, index: usize) -> Option<()> {
    if index >= len(item) {
        return None;
    }
    match item {
        Item::Value(Value::Array(list)) => drop(list.remove(index)),
        Item::ArrayOfTables(list) => drop(list.remove(index)),
        _ => return None,
    }
    Some(())
}

/// Sets a string without touching what stands around it.
fn set(table: &mut dyn TableLike, key: &str, text: &str) {
    let mut new = Value::from(text);
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *new.decor_mut() = old.decor().clone();
            *old = new;
        }
        None => drop(table.insert(key, Item::Value(new))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    fn founding() -> (Plan, PlanText) {
        let plan = Plan::find("mkwrite-fallocate").unwrap();
        let text = PlanText::of(&plan).unwrap();
        (plan, text)
    }

    #[test]
    fn nothing_changed_is_the_same_text() {
        for name in plan::names() {
            let plan = Plan::find(name).unwrap();
            assert_eq!(PlanText::of(&plan).unwrap().to_string(), plan.source, "{name}");
        }
    }

    #[test]
    fn every_piece_can_go_and_has_a_name() {
        for name in plan::names() {
            let plan = Plan::find(name).unwrap();
            let text = PlanText::of(&plan).unwrap();
            let pieces = text.pieces();
            let ops = |plan: &Plan| {
                let workload = &plan.workload;
                let threads = workload.threads.iter().map(|thread| thread.ops.len() + 1);
                let parts = workload.setup.len() + workload.finish.len() + workload.cleanup.len();
                let arm = plan.arms.iter().find(|arm| arm.name == RULES_ARM).unwrap();
                threads.sum::<usize>() + parts + arm.rules.len()
            };
            assert_eq!(pieces.len(), ops(&plan), "{name}");
            for piece in pieces {
                assert!(!text.name_of(&piece, &plan).is_empty());
                let smaller = text.without(&piece).unwrap();
                assert!(smaller.to_string().len() < text.to_string().len(), "{piece:?}");
                // Some pieces are needed: a value that the hit reads, the file of an operation.
                if let Ok(smaller) = smaller.plan() {
                    assert!(ops(&smaller) < ops(&plan), "{name}: {piece:?}");
                }
            }
        }
    }

    #[test]
    fn a_piece_that_is_not_there_is_none() {
        let (_, text) = founding();
        assert!(text.without(&Piece::Rule(9)).is_none());
        assert!(text.without(&Piece::ThreadOp(0, 99)).is_none());
        assert!(text.without(&Piece::Op("setup", 99)).is_none());
    }

    #[test]
    fn a_sweep_is_an_arm_for_each_length() {
        let (_, mut text) = founding();
        let doses = [1, 20].map(Duration::from_millis);
        assert_eq!(text.sweep(&doses).unwrap(), ["delay=1ms", "delay=20ms"]);
        let plan = text.plan().unwrap();
        let names: Vec<_> = plan.arms.iter().map(|arm| arm.name.as_str()).collect();
        assert_eq!(names, ["rules", "none", "uniform", "delay=1ms", "delay=20ms"]);
        assert_eq!(names.iter().map(|name| dose(name)).collect::<Vec<_>>()[3..], doses.map(Some));
        let meaning = plan.arms[4].rules.meanings()[0].clone();
        assert!(meaning.contains("20ms") || meaning.contains("20 ms"), "{meaning}");
        assert_eq!(dose("rules"), None);
        let mut without = PlanText::of(&Plan::find("inline-truncate").unwrap()).unwrap();
        assert!(without.sweep(&doses).is_none(), "it has no rule");
    }

    #[test]
    fn another_delay_another_name_a_comment_and_nothing_else() {
        let (plan, text) = founding();
        assert_eq!(text.delays(), [(0, Duration::from_millis(80))]);
        let mut text = text.with_delay(Some(0), Duration::from_millis(5)).unwrap();
        text.rename("smaller");
        text.head("Smaller.\nYes.");
        let expected = plan
            .source
            .replace(
                "{ delay = \"80ms\" }\n'''\n\n[[arm]]\nname = \"none\"",
                "{ delay = \"5ms\" }\n'''\n\n[[arm]]\nname = \"none\"",
            )
            .replace("name = \"mkwrite-fallocate\"", "name = \"smaller\"");
        assert_eq!(text.to_string(), format!("# Smaller.\n# Yes.\n#\n{expected}"));
        let gated = PlanText::of(&Plan::find("mkwrite-fallocate-gated").unwrap()).unwrap();
        assert_eq!(gated.delays(), [(0, Duration::from_secs(2))], "a hold has one too");
    }
}
