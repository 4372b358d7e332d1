//! Text from a guest, made harmless: a guest may say anything, and a report is read on terminals, in
//! browsers and by programs.
//!
//! In: any text. Out: the same without what is not seen, or moves what is: control characters are
//! shown as `\u{1b}`, and so are marks that turn the direction of text or take no room.
//! Must not know: which kind of report it is for; HTML and XML are escaped by those who write them.

use std::fmt::Write as _;

/// Most characters of one piece of text.
const MOST: usize = 4000;

/// One line: line breaks and tabs are shown, too.
pub fn line(text: &str) -> String {
    clean(text, |_| false)
}

/// Several lines.
pub fn lines(text: &str) -> String {
    clean(text, |c| c == '\n')
}

/// Several lines, each of which may be as long as [`line()`] has it: a whole table.
pub fn lines_of(text: &str) -> String {
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn clean(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        if at == MOST {
            // Writing to a String does not fail.
            let _ = write!(cleaned, " ... ({} more characters)", text.chars().count() - MOST);
            break;
        }
        match c {
            '\t' if !keep(c) => cleaned += " ",
            c if c.is_control() && !keep(c) => cleaned.extend(c.escape_unicode()),
            c if is_hidden(c) => cleaned.extend(c.escape_unicode()),
            c => cleaned.push(c),
        }
    }
    cleaned
}

/// Marks of direction and of no width, separators that some take for line breaks, and what is no
/// character in XML.
fn is_hidden(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_moves_a_cursor_is_shown() {
        assert_eq!(line("a\u{1b}[2Jb\r\n\0c\td"), r"a\u{1b}[2Jb\u{d}\u{a}\u{0}c d");
        assert_eq!(lines("a\nb\rc"), "a\nb\\u{d}c");
        assert_eq!(line("user\u{202e}txt.exe"), r"user\u{202e}txt.exe");
        assert_eq!(line("EXT4-fs (vda): Größe ✓"), "EXT4-fs (vda): Größe ✓");
    }

    #[test]
    fn endless_text_is_cut() {
        let long = line(&"x".repeat(MOST + 7));
        assert!(long.ends_with("x ... (7 more characters)"), "{}", &long[MOST - 5..]);
        assert_eq!(line(&"x".repeat(MOST)).len(), MOST);
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left(text in any::<String>()) {
            prop_assert!(!line(&text).chars().any(|c| c.is_control() || is_hidden(c)));
            prop_assert!(!lines(&text).chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
