use explorer::{Outcome, Step};

use super::*;

fn row(thread: u8, label: &str, held: &str, changed: &str) -> Row {
    let step = Step { thread, choice: 0 };
    let [label, held, changed] = [label, held, changed].map(str::to_owned);
    Row { step, label, held, changed }
}

#[test]
fn one_column_a_thread_that_moves() {
    let trace = Trace {
        threads: ["fallocate(0..2)", "kworker", "mkwrite(0)"].map(str::to_owned).to_vec(),
        rows: vec![
            row(0, "down_write(i_rwsem)", "i_rwsem W", ""),
            row(0, "look up [0]", "i_rwsem W", "es[0]: - -> H"),
            row(2, "look up [0]", "", ""),
            row(0, "up_write(i_rwsem)", "", ""),
        ],
        outcome: Outcome::Open,
    };
    let expected = "      A: fallocate(0..2)                                  C: mkwrite(0)
  1   down_write(i_rwsem)
        [i_rwsem W]
  2   look up [0]
        es[0]: - -> H
  3                                                       look up [0]
  4   up_write(i_rwsem)
        [nothing]
";
    assert_eq!(draw(&trace), expected);
}

#[test]
fn long_texts_stay_in_their_column() {
    let words = "word ".repeat(40);
    let trace = Trace {
        threads: vec!["a".to_owned(), "b".to_owned()],
        rows: vec![row(0, &words, &words, &words), row(1, &words, "", &words)],
        outcome: Outcome::Open,
    };
    let text = draw(&trace);
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
    let second = text.lines().filter(|line| line.starts_with(&" ".repeat(57))).count();
    assert!(second >= 8, "{text}");
}

#[test]
fn lines_break_at_semicolons_then_commas_then_blanks() {
    let text = "  insert(a); es[0]: H -> D, es[1]: H -> U, es[2]: H -> D";
    let lines = wrap(text, 28, "    ");
    let expected = ["  insert(a);", "  es[0]: H -> D,", "    es[1]: H -> U,", "    es[2]: H -> D"];
    assert_eq!(lines, expected);
    assert_eq!(wrap("one two three", 8, " "), ["one two", " three"]);
}

#[test]
fn nothing_to_draw_is_drawn() {
    let trace = Trace { threads: vec!["a".to_owned()], rows: vec![], outcome: Outcome::End };
    assert_eq!(draw(&trace), "");
}
